"""The command line: ``python -m sgool demo | generate | bench | compare | export-webui``. Only results go to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sgool import __version__
from sgool.errors import SgoolError, out_of_memory

DEMO_PROMPT = "a small frog and a car on a yellow background"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"sgool: {message}", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for an error the user can mend, 130 after Ctrl-C."""
    try:
        args = build_parser().parse_args(arguments)
        return args.run(args)
    except SgoolError as error:
        print(f"sgool: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print("sgool: There is not enough memory; with --memory low a run takes less.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sgool: Interrupted.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    from sgool.settings import SETTINGS

    parser = Parser(prog="sgool", description="Saliency guided optimisation of diffusion latents.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    for name, text in (
        ("demo", "generate with the embedded model and its defaults"),
        ("generate", "make an image and optimise its starting latent"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run_generate)
        command.add_argument("--prompt", default=DEMO_PROMPT if name == "demo" else None, required=name != "demo")
        command.add_argument("--negative-prompt", default="")
        command.add_argument("--seed", type=int, default=5 if name == "demo" else 0)
        command.add_argument("--model", default="tiny", help="tiny, a folder, a checkpoint file or a hub name")
        command.add_argument("--init-image", type=Path, help="the image to start from (with --start image)")
        command.add_argument("--out", type=Path, default=Path("sgool-output"), help="folder for the pictures")
        command.add_argument("--json", action="store_true", help="print result.json")
        for key, setting in SETTINGS.items():
            command.add_argument(
                "--" + key.replace("_", "-"),
                type=type(setting.default),
                default=argparse.SUPPRESS,
                help=f"{setting.help} (default {setting.default})",
                metavar=type(setting.default).__name__.upper(),
            )
        command.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
        command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the UNet")
        command.add_argument("--models-dir", type=Path, help="where downloaded weights are kept")

    command = commands.add_parser("bench", help="measure the samplers, or with --size an update", allow_abbrev=False)
    command.set_defaults(run=run_bench)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.add_argument("--quick", action="store_true", help="a few settings only")
    command.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    update = command.add_argument_group("one update of networks with random weights, instead of the samplers")
    update.add_argument("--size", choices=("small", "sd15", "sdxl"), help="with --device meta only counted, not done")
    update.add_argument("--steps", type=int, help="sampling steps (default: the size's own)")
    update.add_argument("--doodl", type=Path, help="checkout of github.com/salesforce/DOODL to measure it against")

    command = commands.add_parser("compare", help="compare methods at the same budget", allow_abbrev=False)
    command.set_defaults(run=run_compare)
    command.add_argument("--captions", type=Path, help="CSV with a column caption (default: 200 held-out captions)")
    command.add_argument("--limit", type=int, default=60, help="captions taken from the file")
    command.add_argument("--seeds", type=int, default=1, help="images per caption")
    command.add_argument("--budget", type=int, default=400, help="network evaluations per image")
    command.add_argument("--methods", nargs="+", metavar="METHOD", help="some of them only (default: all)")
    command.add_argument("--jobs", type=int, help="processes (default: one per core)")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")

    command = commands.add_parser("export-webui", help="write the embedded model for the WebUI", allow_abbrev=False)
    command.set_defaults(run=run_export)
    command.add_argument("folder", type=Path, help="usually the WebUI's models/Stable-diffusion")
    return parser


def run_generate(args: argparse.Namespace) -> int:
    from sgool import job
    from sgool.settings import SETTINGS

    values = {key: value for key, value in vars(args).items() if key in SETTINGS}
    task = job.Job(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        model=args.model,
        init_image=args.init_image,
        out=args.out,
        device=args.device,
        dtype=args.dtype,
        models_dir=args.models_dir,
        values=values,
    )
    report, result = job.run(task)
    print(json.dumps(report, indent=1) if args.json else f"The pictures are in {args.out.resolve()}")
    if result.ended:
        print(f"sgool: {result.ended}", file=sys.stderr)
    return 2 if result.failed else 130 if result.ended.startswith("Interrupted") else 0


def run_export(args: argparse.Namespace) -> int:
    from sgool.tiny.export import export

    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        print(export(args.folder))
    except OSError as error:
        raise SgoolError(f"The folder {args.folder} cannot be written to: {error.strerror or error}.") from error
    return 0


def run_bench(args: argparse.Namespace) -> int:
    if args.size:
        return run_bench_update(args)
    if args.steps is not None or args.doodl is not None:
        raise SgoolError("--steps and --doodl belong to an update: say of which --size.")
    import torch

    from sgool import tiny
    from sgool.backends.diffusers import load_backend
    from sgool.bench import bench, render_tables
    from sgool.compare import read_captions
    from sgool.guidance.clip import load_clip_folder
    from sgool.job import machine

    device, _ = machine(args.device, None)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    torch.backends.cudnn.allow_tf32 = False  # rows of float32 shall be of float32
    judge, guide = (load_clip_folder(tiny.CLIPS[name], device=device) for name in ("judge", "guide"))
    captions = [row["caption"] for row in read_captions(tiny.CAPTIONS)]
    backend, low = (load_backend("tiny", device=device, dtype=dtype) for dtype in (torch.float32, half))
    figures = bench(backend, judge, captions, guide=guide, half=low, quick=args.quick)
    _print(figures, args.json, render_tables)
    return 0


def run_bench_update(args: argparse.Namespace) -> int:
    from sgool.bench_update import bench_update, render_tables
    from sgool.job import machine

    device, dtype = machine(args.device, "float16" if args.device == "meta" else None, meta=True)
    steps = 2 if args.quick and args.steps is None else args.steps
    repeats = 1 if args.quick else 3
    figures = bench_update(args.size, device, dtype, doodl=args.doodl, steps=steps, repeats=repeats)
    _print(figures, args.json, render_tables)
    return 0


def run_compare(args: argparse.Namespace) -> int:
    from sgool.compare import METHODS, compare, render_tables

    figures = compare(
        args.captions,
        limit=args.limit,
        seeds=args.seeds,
        budget=args.budget,
        jobs=args.jobs,
        methods=args.methods or METHODS,
    )
    _print(figures, args.json, render_tables)
    return 0


def _print(figures: dict[str, Any], as_json: bool, render: Any) -> None:
    print(json.dumps(figures, indent=1) if as_json else render(figures))
