"""The command line: ``python -m sgool demo | generate | critics | export-webui``. Only results go to stdout."""

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

EXIT_CODES = "Exit codes: 0, done; 2, a wrong argument or a failure; 130, Ctrl-C; 143, SIGTERM."
KEPT = "Once there is a first image, the best one so far is written, whatever ends the run."

AddCommands = Callable[[Any], None]
"""Adds commands to what `argparse` calls subparsers."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose flags are written in full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"epilog": EXIT_CODES, "allow_abbrev": False, **options})

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
        from sgool.flags import sentence

        return _failed(sentence(error))
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
    parser = Parser(prog="sgool", description="Saliency guided optimization of diffusion latents.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, text in (
        ("demo", "generate with the embedded model and its defaults"),
        ("generate", "make an image and optimize its starting latent"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=f"{EXIT_CODES} {KEPT}")
        _add_generate(command, demo=name == "demo")
    text = "list the critics: what each measures, its size and licence, and whether its weights are here"
    command = commands.add_parser("critics", help=text, description=text)
    command.set_defaults(run=run_critics)
    command.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    _add_models_dir(command)
    text = "write the embedded model for the WebUI"
    command = commands.add_parser("export-webui", help=text, description=text)
    command.set_defaults(run=run_export)
    command.add_argument("folder", type=path, help="usually the WebUI's models/Stable-diffusion")
    if more is not None:
        more(commands)
    return parser


def path(text: str) -> Path:
    """A path that an argument names. An empty one, often a variable that is not set, would be this folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _add_generate(command: argparse.ArgumentParser, demo: bool) -> None:
    from sgool.flags import add_settings

    prompt, seed = (DEMO_PROMPT, 5) if demo else (None, 0)
    command.set_defaults(run=run_generate)
    image = command.add_argument_group("image")
    asked = f"what the image should show (default: {prompt})" if demo else "what the image should show"
    image.add_argument("--prompt", metavar="TEXT", default=prompt, required=not demo, help=asked)
    image.add_argument(
        "--negative-prompt", metavar="TEXT", default="", help="what it should not show (default: nothing)"
    )
    image.add_argument("--seed", metavar="N", type=int, default=seed, help=f"of the starting noise (default {seed})")
    image.add_argument(
        "--model",
        default="tiny",
        help="tiny (the embedded model, the default), tiny-lcm (its sibling for 4 steps), a diffusers folder, a "
        "checkpoint file or a hub name (owner/name)",
    )
    image.add_argument("--init-image", metavar="FILE", type=path, help="start from this image (--start image)")
    image.add_argument(
        "--mask", metavar="FILE", type=path, help="zoom into what is white in this image (--zoom-by mask)"
    )
    image.add_argument(
        "--look-at", metavar="FILE", type=path, help="look at what is white in this image (--saliency mask)"
    )
    output = command.add_argument_group("output")
    folder = Path("sgool-output")
    output.add_argument(
        "--out", metavar="FOLDER", type=path, default=folder, help=f"for the pictures (default {folder})"
    )
    output.add_argument("--json", action="store_true", help="print result.json, and nothing else, to stdout")
    add_settings(command, "tiny" if demo else "")
    machine = command.add_argument_group("machine")
    machine.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    dtypes = ("float32", "float16", "bfloat16")
    machine.add_argument("--dtype", choices=dtypes, help="of the UNet (default: float16 on cuda, else float32)")
    _add_models_dir(machine)


def _add_models_dir(command: Any) -> None:
    command.add_argument(
        "--models-dir",
        metavar="FOLDER",
        type=path,
        help="where downloaded weights are kept (default: what SGOOL_MODELS names, or ~/.cache/sgool)",
    )


def run_generate(args: argparse.Namespace) -> int:
    from sgool import job
    from sgool.result import Ending
    from sgool.settings import ABOUT

    given = vars(args)
    asked = ("prompt", "negative_prompt", "seed", "model", "init_image", "mask", "look_at", "out")
    own = {name: given[name] for name in asked}
    machine = {name: given[name] for name in ("device", "dtype", "models_dir")}
    values = {name: value for name, value in given.items() if name in ABOUT}
    figures, result = job.run(job.Job(**own, **machine, values=values), args.guard)
    print(json.dumps(figures, indent=1) if args.json else f"The pictures are in {args.out.resolve()}")
    if figures["ended"]:
        print(f"sgool: {figures['ended']}", file=sys.stderr)
    if result.failed:
        return 2
    stopped = 130 if result.ending is Ending.INTERRUPTED else 0
    return 128 + args.guard.number if args.guard.number else stopped


def run_critics(args: argparse.Namespace) -> int:
    from sgool.guidance import listed
    from sgool.weights import default_models_dir

    critics = listed(args.models_dir or default_models_dir())
    if args.json:
        print(json.dumps(critics, indent=1))
        return 0
    for each in critics:
        size = (
            f"{each['download_gb']:.1f} GB, {each['gpu_gib']:.1f} GiB of a GPU"
            if each["download_gb"]
            else "no download"
        )
        here = "here" if each["here"] else "not here yet"
        print(f"{each['name']:13} {each['measures']}\n{'':13} {size}; {each['licence']}; {here}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    from sgool.tiny.export import export, export_few_step

    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        print(export(args.folder))
        print(export_few_step(args.folder))
    except OSError as error:
        raise SgoolError(f"The folder {args.folder} cannot be written to: {error.strerror or error}.") from error
    return 0
