"""``python -m sgool study``: makes the page, serves it, and analyses the answers."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sgool.cli import path
from sgool.errors import SgoolError
from sgool.flags import flag
from sgool.lab.evaluate.command import OUT

HOST, PORT = "127.0.0.1", 8765

MAKES = ("methods", "against", "pairs", "session")
"""The options that belong to making a study."""


def add(commands: Any) -> None:
    """Add the command to `argparse`'s subparsers, and --study to evaluate's flags."""
    text = "let people choose between an evaluation's pictures: makes the page where there is none, and serves it"
    command = commands.add_parser("study", help=text, description=text)
    command.set_defaults(run=run_study)
    command.add_argument("folder", nargs="?", type=path, default=OUT, help=f"the evaluation's (default {OUT})")
    what = command.add_argument_group("instead of serving it").add_mutually_exclusive_group()
    what.add_argument("--make", action="store_true", help="write the page anew; it can lie on any web server")
    what.add_argument(
        "--add", nargs="+", metavar="FILE", type=path, help="take answers that people have saved from the page"
    )
    what.add_argument("--analyse", action="store_true", help="print what the answers come to, and write analysis.json")
    asked = command.add_argument_group("what is asked, where the page is made")
    asked.add_argument("--methods", nargs="+", metavar="METHOD", help="pairs of these only (default: all)")
    asked.add_argument("--against", metavar="METHOD", help="only pairs with this one, for example sgool")
    asked.add_argument("--pairs", metavar="N", type=int, help="of the whole study, chosen at random (default: all)")
    asked.add_argument("--session", metavar="N", type=int, help="pairs until a visitor is thanked (default 30)")
    server = command.add_argument_group("server")
    server.add_argument("--host", default=HOST, help=f"whose address it listens at (default {HOST}: this machine only)")
    server.add_argument("--port", metavar="N", type=int, default=PORT, help=f"0 for any that is free (default {PORT})")
    command.add_argument("--json", action="store_true", help="with --analyse: print JSON instead of tables")
    evaluate = commands.choices["evaluate"]
    evaluate.add_argument(
        "--study",
        metavar="FOLDER",
        type=path,
        action=Study,
        help="write a page that lets people choose between the pictures of the evaluation in this folder, and do "
        "nothing else (the same as: study FOLDER --make)",
    )


class Study(argparse.Action):
    """--study of evaluate: another command, with no other flags."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.study, namespace.run = values, partial(run_from_evaluate, parser)


def run_study(args: argparse.Namespace) -> int:
    folder = args.folder
    options = {name: value for name in MAKES if (value := getattr(args, name)) is not None}
    if args.json and not args.analyse:
        raise SgoolError("--json belongs to --analyse.")
    if options and (args.add or args.analyse):
        raise SgoolError(f"--{next(iter(options))} belongs to making a study, with --make.")
    if args.analyse:
        return run_analyse(folder, args.json)
    if args.add:
        return run_add(folder, args.add)
    if args.make:
        return run_make(folder, options)
    return run_serve(folder, options, args.host, args.port)


def run_make(folder: Path, options: dict[str, Any]) -> int:
    print(_made(folder, options))
    return 0


def _made(folder: Path, options: dict[str, Any]) -> str:
    """Make the study; what there is to tell of it."""
    from sgool.lab.study import FOLDER, PAGE
    from sgool.lab.study.page import INDEX, make
    from sgool.lab.study.pairs import Choice

    for name in ("pairs", "session"):
        if options.get(name, 1) < 1:
            raise SgoolError(f"--{name} must be at least 1.")
    made = make(folder, Choice(**{**options, "methods": tuple(options.get("methods", ()))}))
    asked = sum(pair.right is None for pair in made.pairs)
    same = sum(made.equal.values())
    told = f" ({same} with two equal pictures left out)" if same else ""
    return f"A study of {asked} pairs{told}: {(folder / FOLDER / PAGE / INDEX).resolve()}"


def run_serve(folder: Path, options: dict[str, Any], host: str, port: int) -> int:
    from sgool.lab.study import FOLDER, KEY
    from sgool.lab.study.server import Server

    if not 0 <= port <= 65535:
        raise SgoolError("--port must be from 0 to 65535.")
    if not (folder / FOLDER / KEY).exists():
        print(_made(folder, options), file=sys.stderr)
    elif options:
        raise SgoolError(f"There is a study in {folder} already; --make writes it anew with --{next(iter(options))}.")
    with Server(folder, host, port) as server:
        print(f"The study is at {server.url} until Ctrl-C. Answers so far: {server.answers.count()}.", file=sys.stderr)
        if host not in (HOST, "localhost"):
            print("Anybody who reaches this machine can answer.", file=sys.stderr)
        server.serve_forever(poll_interval=0.2)
    return 0


def run_add(folder: Path, files: list[Path]) -> int:
    from sgool.lab.study import ANSWERS, FOLDER
    from sgool.lab.study.answers import Answers, add_file
    from sgool.lab.study.pairs import read_study

    study = read_study(folder)
    answers = Answers(folder / FOLDER / ANSWERS)
    for file in files:
        print(f"{file}: {add_file(file, study, answers)} answers")
    return 0


def run_analyse(folder: Path, as_json: bool) -> int:
    from sgool import outputs
    from sgool.lab.study import ANALYSIS, ANSWERS, FOLDER
    from sgool.lab.study.analysis import analyse
    from sgool.lab.study.answers import Answers
    from sgool.lab.study.pairs import read_study
    from sgool.lab.study.tables import render

    study = read_study(folder)
    file = folder / FOLDER / ANSWERS
    answers = Answers(file).every() if file.exists() else []
    if not answers:
        raise SgoolError(f"Nobody has answered the study in {folder} yet.")
    figures = analyse(study, answers)
    text = json.dumps(figures, indent=1, allow_nan=False)
    outputs.replace(folder / FOLDER, {ANALYSIS: text.encode()}, (ANALYSIS,))
    print(text if as_json else render(figures))
    return 0


def run_from_evaluate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    for name, value in vars(args).items():
        if name not in ("study", "run", "guard", "command") and value != parser.get_default(name):
            raise SgoolError(f"{flag(name)} does not go with --study; see python -m sgool study --help.")
    return run_make(args.study, {})
