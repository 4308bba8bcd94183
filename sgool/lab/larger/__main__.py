"""Prepare, train and evaluate the larger world: ``python -m sgool.lab.larger --help``. See docs/larger-world.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sgool.errors import SgoolError
from sgool.job import machine
from sgool.lab.larger import evaluate
from sgool.lab.larger.autoencoder import Autoencoder, Decoder
from sgool.lab.larger.critics import Critic
from sgool.lab.larger.diffusion import Diffusion, FewStep
from sgool.lab.larger.networks import CRITICS
from sgool.lab.larger.painter import write_sprites
from sgool.lab.larger.scenes import all_words, write_table
from sgool.lab.larger.source import Source
from sgool.lab.larger.trainer import Kind, Slice, Trainer
from sgool.lab.training import vocabulary

KINDS: dict[str, Callable[[Source], Kind]] = {
    **{name: lambda source, name=name: Critic(source, name) for name in CRITICS},  # type: ignore[misc]
    **{"vae": Autoencoder, "decoder": Decoder, "unet": Diffusion, "few-step": FewStep},
}
"""What can be trained. The autoencoder needs the selector; what follows needs the autoencoder; few-step the UNet."""


def prepare(args: argparse.Namespace) -> None:
    if not args.assets.is_dir():
        raise SgoolError(f"There is no folder {args.assets} with the emoji pictures.")
    args.work.mkdir(parents=True, exist_ok=True)
    write_sprites(args.assets, args.work / "sprites.npz")
    vocabulary.write(all_words(), args.work / "tokenizer", args.work / "bpe.txt.gz")
    write_table(args.work, args.groups, args.seed, args.jobs)


def train(args: argparse.Namespace) -> None:
    device, _ = machine(args.device, None)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    source = Source(args.work, device)
    for number, name in enumerate(args.kinds):
        print(f"{name}:", flush=True)
        kind = KINDS[name](source)
        kind.batch = args.batch or kind.batch
        trainer = Trainer(kind, args.work / name, device, seed=list(KINDS).index(name))
        trainer.run(Slice(args.minutes[min(number, len(args.minutes) - 1)], args.steps, args.last))


def run_evaluate(args: argparse.Namespace) -> None:
    device, _ = machine(args.device, None)
    folder = evaluate.assemble(args.work)
    found = evaluate.figures(args.work, args.count, str(device))
    (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(*evaluate.table(found), f"{size / 2**20:.1f} MiB in {folder}", sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sgool.lab.larger", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[[argparse.Namespace], None], name: str, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        found.add_argument("--work", metavar="FOLDER", type=Path, required=True, help="where everything is kept")
        return found

    some = command(prepare, "prepare", "resize the emoji, cut the vocabulary and choose the scenes")
    some.add_argument("--assets", metavar="FOLDER", type=Path, required=True, help="of the emoji pictures")
    some.add_argument("--groups", metavar="N", type=int, default=50_000, help="of four scenes (default 50000)")
    some.add_argument("--jobs", metavar="N", type=int, default=2, help="processes (default 2)")
    some.add_argument("--seed", metavar="N", type=int, default=0)
    some = command(train, "train", "train some networks in turn, each going on from what the folder holds")
    some.add_argument("kinds", nargs="+", metavar="KIND", choices=tuple(KINDS), help=", ".join(KINDS))
    some.add_argument("--minutes", metavar="M", nargs="+", type=float, default=[10.0], help="each (default 10)")
    some.add_argument("--steps", metavar="N", type=float, default=float("inf"), help="each at most")
    some.add_argument("--batch", metavar="N", type=int, help="pictures in a step; of critics a multiple of 4")
    some.add_argument("--last", action="store_true", help="the rate falls to nothing at the end")
    some.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    some = command(run_evaluate, "evaluate", "assemble what is trained, and measure it")
    some.add_argument("--count", metavar="N", type=int, default=200, help="captions kept out (default 200)")
    some.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    args = parser.parse_args()
    try:
        args.run(args)
    except SgoolError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
