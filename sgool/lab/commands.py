"""The laboratory's commands: ``python -m sgool bench | bench-phrases | compare | evaluate | study``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from sgool.cli import path
from sgool.errors import SgoolError
from sgool.lab.evaluate import command as evaluate
from sgool.lab.study import command as study


def add(commands: Any) -> None:
    """Add the commands to `argparse`'s subparsers."""
    from sgool.lab.compare import ALL, PLAIN, Plan

    text = "measure the samplers, or with --size an update"
    command = commands.add_parser("bench", help=text, description=text)
    command.set_defaults(run=run_bench)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.add_argument("--quick", action="store_true", help="a few settings only")
    command.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    update = command.add_argument_group("one update of networks with random weights, instead of the samplers")
    update.add_argument("--size", choices=("small", "sd15", "sdxl"), help="with --device meta only counted, not done")
    update.add_argument("--steps", type=int, help="sampling steps (default: the size's own)")
    update.add_argument("--doodl", type=path, help="checkout of github.com/salesforce/DOODL to measure it against")

    plan, text = Plan(), "compare methods at the same budget"
    command = commands.add_parser("compare", help=text, description=text)
    command.set_defaults(run=run_compare)
    command.add_argument("--captions", type=path, help="CSV with a column caption (default: 200 held-out captions)")
    for name, text in (
        ("limit", "captions taken from the file"),
        ("seeds", "images per caption"),
        ("first-seed", "of a caption's images"),
        ("budget", "UNet evaluations per image; one with a gradient counts as two"),
    ):
        default = getattr(plan, name.replace("-", "_"))
        command.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{text} (default {default})")
    command.add_argument("--model", choices=tuple(PLAIN), default=plan.model, help=f"(default {plan.model})")
    some = f"some of {', '.join(ALL)}; the last one's gain is shown (default: {' '.join(plan.methods)})"
    command.add_argument("--methods", nargs="+", metavar="METHOD", help=some)
    command.add_argument("--jobs", metavar="N", type=int, help="processes (default: one per core)")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    evaluate.add(commands)
    study.add(commands)

    text = "measure the maps and the presence of phrases on composed scenes"
    command = commands.add_parser("bench-phrases", help=text, description=text)
    command.set_defaults(run=run_bench_phrases)
    command.add_argument(
        "--assets", metavar="FOLDER", type=path, required=True, help="of the emoji, see sgool/lab/world.py"
    )
    command.add_argument("--scenes", metavar="N", type=int, default=200, help="at most 200, the default")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run_bench(args: argparse.Namespace) -> int:
    if args.size:
        return run_bench_update(args)
    if args.steps is not None or args.doodl is not None:
        raise SgoolError("--steps and --doodl belong to an update: say of which --size.")
    import torch

    from sgool import lab, tiny
    from sgool.backends.diffusers import load_backend
    from sgool.guidance.clip import load_clip_folder
    from sgool.job import machine
    from sgool.lab.bench import Subject, bench, render_tables
    from sgool.lab.compare import read_captions

    device, _ = machine(args.device, None)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    torch.backends.cudnn.allow_tf32 = False  # rows of float32 are float32
    judge, guide = (load_clip_folder(tiny.CLIPS[name], device=device) for name in ("judge", "guide"))
    captions = [row["caption"] for row in read_captions(lab.CAPTIONS)]
    backend, low = (load_backend("tiny", device=device, dtype=dtype) for dtype in (torch.float32, half))
    figures = bench(Subject(backend, judge, guide, captions, low), quick=args.quick)
    _print(figures, args.json, render_tables)
    return 0


def run_bench_update(args: argparse.Namespace) -> int:
    from sgool.job import machine
    from sgool.lab.bench_update import bench_update, render_tables

    device, dtype = machine(args.device, "float16" if args.device == "meta" else None, meta=True)
    steps = 2 if args.quick and args.steps is None else args.steps
    repeats = 1 if args.quick else 3
    figures = bench_update(args.size, device, dtype, doodl=args.doodl, steps=steps, repeats=repeats)
    _print(figures, args.json, render_tables)
    return 0


def run_compare(args: argparse.Namespace) -> int:
    from sgool.lab.compare import METHODS, Plan, compare, render_tables

    plan = Plan(
        args.limit, args.seeds, args.budget, tuple(args.methods or METHODS), args.jobs, args.model, args.first_seed
    )
    _print(compare(args.captions, plan), args.json, render_tables)
    return 0


def run_bench_phrases(args: argparse.Namespace) -> int:
    from sgool.lab.bench_phrases import bench_phrases, render_tables

    if not 4 <= args.scenes <= 200:
        raise SgoolError("--scenes must be between 4 and 200.")
    if not args.assets.is_dir():
        raise SgoolError(f"There is no folder {args.assets} with the emoji pictures.")
    _print(bench_phrases(args.assets, args.scenes), args.json, render_tables)
    return 0


def _print(figures: Mapping[str, Any], as_json: bool, render: Callable[[Mapping[str, Any]], str]) -> None:
    print(json.dumps(figures, indent=1) if as_json else render(figures))
