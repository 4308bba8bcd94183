"""The benchmark of one update: configurations, counts that must hold on any machine, and DOODL's published code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sgool.__main__ import main
from sgool.checkpointing import MEMORY
from sgool.lab.bench_doodl import Doodl
from sgool.lab.bench_update import PROMPT, SCALE, bench_update, measure, our_work, random_critics, render_tables
from sgool.lab.counting import Flops
from sgool.lab.random_backend import SIZES, RandomBackend, random_clip

counts_on_shapes = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"), reason="needs torch 2.2 or newer"
)
CPU, META = torch.device("cpu"), torch.device("meta")
FOLDER = os.environ.get("SGOOL_DOODL")


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "unet"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_the_networks_have_as_many_parameters_as_the_published_ones(size: str, unet: int) -> None:
    backend = RandomBackend(SIZES[size], META, torch.float16)
    assert parameters(backend.unet) == unet
    assert parameters(backend.vae) == 83_653_863
    assert parameters(random_clip(SIZES[size].guide, META).model) == 151_277_313


def test_bench_prints_the_cost_of_each_memory_setting(capsys) -> None:
    assert main(["bench", "--size", "small", "--quick", "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rows = {row["memory"]: row for row in figures["updates"]}
    assert list(rows) == list(MEMORY) and figures["steps"] == 2 and figures["ratios"] == []
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["fast"]["teraflop"] < rows["balanced"]["teraflop"] < rows["low"]["teraflop"]
    assert rows["low"]["peak_memory_mb"] <= rows["balanced"]["peak_memory_mb"] < 0.7 * rows["fast"]["peak_memory_mb"]
    assert render_tables(figures).count("\n| sgool |") == 3


@counts_on_shapes
def test_counting_on_shapes_alone_matches_a_real_run() -> None:
    rows = []
    for device in (CPU, META):
        backend = RandomBackend(SIZES["small"], device, torch.float32)
        rows.append(measure(our_work(backend, random_critics(SIZES["small"], device), 2), device, True, 1))
    real, counted = rows
    assert counted["seconds"] is None
    assert counted["teraflop"] == pytest.approx(real["teraflop"], rel=0.01)
    assert counted["peak_memory_mb"] == pytest.approx(real["peak_memory_mb"], rel=0.05)


def test_counted_arithmetic_matches_the_formulas() -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    weight = torch.randn(10, 4, 3, 3)
    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 7, 16)
    with Flops() as flops:
        torch.nn.functional.conv2d(x, weight, padding=1, groups=2).sum().backward()
        assert flops.total == 2 * 2 * (2 * 10 * 6 * 6) * (4 * 3 * 3)  # forward, and the gradient of x alone
        before = flops.total
        torch.nn.functional.linear(torch.randn(3, 4), torch.randn(5, 4), torch.randn(5))
        assert flops.total - before == 2 * 3 * 4 * 5
        before = flops.total
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
        assert flops.total - before == 2 * 2 * (2 * 5 * 7 * 16)


def test_a_folder_without_doodl_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["bench", "--size", "small", "--device", "cpu", "--doodl", str(tmp_path)]) == 2
    assert "github.com/salesforce/DOODL" in capsys.readouterr().err


@pytest.mark.skipif(not FOLDER, reason="needs SGOOL_DOODL, a checkout of github.com/salesforce/DOODL")
def test_doodl_as_published_runs_and_leaves_nothing_behind() -> None:
    backend = RandomBackend(SIZES["small"], CPU, torch.float32)
    clip = random_clip(SIZES["small"].guide, CPU)
    calls: list[bool] = []
    backend.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    peer = Doodl(Path(FOLDER or ""), backend, clip, PROMPT, 3, SCALE)
    marks: list[int] = []
    with peer.weights(True):
        peer.work(2, lambda: marks.append(len(calls)))
    # In each of 3 steps: EDICT's two latents times guidance's two branches, forward without and backward with a graph.
    assert marks == [0, 24, 48] and calls[:24] == [False] * 12 + [True] * 12
    assert torch.is_grad_enabled()
    assert not any(p.requires_grad or p.grad is not None for p in backend.unet.parameters())


@counts_on_shapes
@pytest.mark.skipif(not FOLDER, reason="needs SGOOL_DOODL, a checkout of github.com/salesforce/DOODL")
def test_an_update_costs_less_than_one_of_doodl() -> None:
    figures = bench_update("small", META, torch.float16, doodl=Path(FOLDER or ""), steps=2)
    ratios = {(row["memory"], row["against"]): row for row in figures["ratios"]}
    assert len(ratios) == 6
    assert ratios["balanced", "doodl"]["teraflop"] < 0.45 and ratios["balanced", "doodl"]["peak_memory_mb"] < 0.5
