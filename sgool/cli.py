"""The command line: ``python -m sgool demo | generate | export-webui``. Only results go to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sgool import __version__, streams
from sgool.errors import SgoolError, out_of_memory
from sgool.signals import Guard, Terminated

DEMO_PROMPT = "a small frog and a car on a yellow background"

AddCommands = Callable[[Any], None]
"""Adds commands to what `argparse` calls subparsers."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"sgool: {message}", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None, more: AddCommands | None = None) -> int:
    """Run a command; returns the exit code (see `EXIT_CODES`).

    arguments: None for those of the process, which ends with this. more: adds the laboratory's commands, where there is
    one.
    """
    with streams.tolerant_stderr(), Guard(last=arguments is None) as guard:
        return _run(arguments, more, guard)


def _run(arguments: Sequence[str] | None, more: AddCommands | None, guard: Guard) -> int:
    try:
        with streams.collected():
            args = build_parser(more).parse_args(arguments, argparse.Namespace(guard=guard))
            return args.run(args)
    except SgoolError as error:
        return _failed(str(error))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return _failed("There is not enough memory; with --memory low a run takes less.")
    except KeyboardInterrupt as error:
        guard.hold()
        return _failed("Interrupted.", 143 if isinstance(error, Terminated) else 130)


def _failed(sentence: str, code: int = 2) -> int:
    print(f"sgool: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def build_parser(more: AddCommands | None = None) -> argparse.ArgumentParser:
    parser = Parser(prog="sgool", description="Saliency guided optimization of diffusion latents.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, text in (
        ("demo", "generate with the embedded model and its defaults"),
        ("generate", "make an image and optimize its starting latent"),
    ):
        _add_generate(commands.add_parser(name, help=text, description=text, allow_abbrev=False), name == "demo")
    command = commands.add_parser("export-webui", help="write the embedded model for the WebUI", allow_abbrev=False)
    command.set_defaults(run=run_export)
    command.add_argument("folder", type=Path, help="usually the WebUI's models/Stable-diffusion")
    if more is not None:
        more(commands)
    return parser


def _add_generate(command: argparse.ArgumentParser, demo: bool) -> None:
    from sgool.settings import ABOUT, DEFAULTS

    command.set_defaults(run=run_generate)
    command.add_argument("--prompt", default=DEMO_PROMPT if demo else None, required=not demo)
    command.add_argument("--negative-prompt", default="")
    command.add_argument("--seed", type=int, default=5 if demo else 0)
    command.add_argument("--model", default="tiny", help="tiny, a folder, a checkpoint file or a hub name")
    command.add_argument("--init-image", type=Path, help="the image to start from (with --start image)")
    command.add_argument("--out", type=Path, default=Path("sgool-output"), help="folder for the pictures")
    command.add_argument("--json", action="store_true", help="print result.json")
    for key, about in ABOUT.items():
        kind = type(DEFAULTS[key])
        command.add_argument(
            "--" + key.replace("_", "-"),
            type=kind,
            default=argparse.SUPPRESS,
            help=f"{about.help} (default {DEFAULTS[key]})",
            metavar=kind.__name__.upper(),
        )
    command.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the UNet")
    command.add_argument("--models-dir", type=Path, help="where downloaded weights are kept")


def run_generate(args: argparse.Namespace) -> int:
    from sgool import job
    from sgool.result import Ending
    from sgool.settings import ABOUT

    given = vars(args)
    own = {name: given[name] for name in ("prompt", "negative_prompt", "seed", "model", "init_image", "out")}
    machine = {name: given[name] for name in ("device", "dtype", "models_dir")}
    values = {name: value for name, value in given.items() if name in ABOUT}
    figures, result = job.run(job.Job(**own, **machine, values=values), args.guard)
    print(json.dumps(figures, indent=1) if args.json else f"The pictures are in {args.out.resolve()}")
    if result.ended:
        print(f"sgool: {result.ended}", file=sys.stderr)
    if result.failed:
        return 2
    stopped = 130 if result.ending is Ending.INTERRUPTED else 0
    return 128 + args.guard.number if args.guard.number else stopped


def run_export(args: argparse.Namespace) -> int:
    from sgool.tiny.export import export

    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        print(export(args.folder))
    except OSError as error:
        raise SgoolError(f"The folder {args.folder} cannot be written to: {error.strerror or error}.") from error
    return 0
