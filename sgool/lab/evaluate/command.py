"""``python -m sgool evaluate``: its flags, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sgool.cli import path

OUT = Path("sgool-evaluation")


def add(commands: Any) -> None:
    """Add the command to `argparse`'s subparsers."""
    from sgool.flags import add_settings
    from sgool.lab.evaluate.methods import GIVEN, METHODS
    from sgool.lab.evaluate.prompts import SETS

    text = "compare methods on prompt sets as the paper does, and write a report; broken off, it goes on"
    command = commands.add_parser("evaluate", help=text, description=text)
    command.set_defaults(run=run_evaluate)
    what = command.add_argument_group("what")
    what.add_argument(
        "--prompts",
        nargs="+",
        metavar="NAME-OR-FILE",
        default=["hard"],
        help=f"of {', '.join(SETS)}, or CSV files with a column prompt (and category), or text files with a prompt a "
        "line (default hard)",
    )
    what.add_argument(
        "--prompts-dir",
        metavar="FOLDER",
        type=path,
        help="where csp.csv, drawbench.csv and dailydalle.csv are (default: what SGOOL_PROMPTS names, or prompts)",
    )
    some = f"some of {', '.join(METHODS)} (default: all)"
    what.add_argument("--methods", nargs="+", metavar="METHOD", default=list(METHODS), help=some)
    what.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        default=[],
        help="some of clip-score, guide, selector, judge (the embedded model's own), and the critics (default: "
        "clip-score hps-v2.1 pickscore image-reward; embedded model: judge selector guide)",
    )
    what.add_argument("--limit", metavar="N", type=int, help="prompts of each set (default: all)")
    what.add_argument("--seeds", metavar="N", type=int, default=1, help="images for a prompt and method (default 1)")
    what.add_argument("--first-seed", metavar="N", type=int, default=0, help="of a prompt's images (default 0)")
    what.add_argument("--model", default="tiny", help="as for generate (default tiny, the embedded model)")
    what.add_argument("--size", metavar="PIXELS", type=int, help="of the square images (default: the model's own)")
    what.add_argument(
        "--best-of", metavar="N", type=int, help="images best-of-n chooses from (default: as many as take sgool's time)"
    )
    what.add_argument("--out", metavar="FOLDER", type=path, default=OUT, help=f"for all of it (default {OUT})")
    what.add_argument("--json", action="store_true", help="print evaluation.json, and nothing else, to stdout")
    machine = command.add_argument_group("machine")
    machine.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    dtypes = ("float32", "float16", "bfloat16")
    machine.add_argument("--dtype", choices=dtypes, help="of the UNet (default: float16 on cuda, else float32)")
    machine.add_argument(
        "--models-dir",
        metavar="FOLDER",
        type=path,
        help="where downloaded weights are kept (default: what SGOOL_MODELS names, or ~/.cache/sgool)",
    )
    machine.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on Ray: on a cluster of this machine's own, or on that of the address",
    )
    machine.add_argument(
        "--workers", metavar="N", type=int, help="processes on Ray (default: one for each GPU, or core without any)"
    )
    add_settings(command, None, GIVEN)


def run_evaluate(args: argparse.Namespace) -> int:
    import json

    from sgool.errors import SgoolError
    from sgool.job import machine
    from sgool.lab.evaluate.plan import Plan
    from sgool.lab.evaluate.prompts import default_prompts_dir, read_prompts
    from sgool.lab.evaluate.run import Where, check_libraries, evaluate
    from sgool.settings import ABOUT
    from sgool.weights import default_models_dir

    check_libraries()
    if args.limit is not None and args.limit < 1:
        raise SgoolError("--limit must be at least 1.")
    if args.workers is not None and (args.ray is None or args.workers < 1):
        raise SgoolError("--workers must be at least 1, and belongs to --ray.")
    given = {name: value for name, value in vars(args).items() if name in ABOUT}
    prompts = read_prompts(args.prompts, args.prompts_dir or default_prompts_dir(), args.limit)
    # On Ray, the device is another machine's.
    dtype = str(machine(args.device if args.ray is None else None, args.dtype)[1]).removeprefix("torch.")
    plan = Plan(
        tuple(prompts),
        tuple(dict.fromkeys(args.methods)),
        tuple(args.metrics),
        **{name: getattr(args, name) for name in ("seeds", "first_seed", "model", "size", "best_of")},
        given=given,
        dtype=dtype,
    )
    where = Where(args.models_dir or default_models_dir(), args.device, args.ray, args.workers)
    about = evaluate(plan, args.out, where, args.guard)
    print(json.dumps(about, indent=1) if args.json else f"The report is {(args.out / 'report.html').resolve()}")
    return 0
