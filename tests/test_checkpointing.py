from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sgool.backends.diffusers import load_backend
from sgool.checkpointing import blocks, checkpoint
from sgool.lab.peak_memory import PeakMemory


def gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    with PeakMemory(x.device) as memory:
        leaf = x.clone().requires_grad_()
        (result,) = torch.autograd.grad(network(leaf).square().sum(), leaf)
    return result, memory.bytes


@pytest.mark.parametrize("part", ["decoder", "network"])
def test_recomputed_blocks_give_the_same_gradient_in_less_memory_and_are_restored(part):
    backend = load_backend("tiny")
    unet = backend.unet
    condition = torch.randn(1, 8, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(0))
    network = {
        "decoder": backend.vae.decoder,
        "network": lambda x: unet(x, torch.tensor([301]), encoder_hidden_states=condition).sample,
    }[part]
    changed = list(blocks(backend.vae.decoder if part == "decoder" else unet))
    x = backend.noise(1).float()
    plain, most = gradient(network, x)
    before = [dict(vars(module)) for module in changed]
    undo = checkpoint(changed)
    again, less = gradient(network, x)
    undo()
    assert torch.allclose(again, plain, rtol=1e-4, atol=1e-5)
    assert less < 0.6 * most
    assert [dict(vars(module)) for module in changed] == before


def test_low_memory_gives_the_same_guided_prediction_and_gradient_as_fast():
    fast, low = (load_backend("tiny", memory=memory).network("a red car", "", 5.0) for memory in ("fast", "low"))
    x, cotangent = (torch.randn(1, 4, 16, 16, dtype=torch.float64) for _ in range(2))
    for one, other in zip(fast.vjp(x, 501, cotangent), low.vjp(x, 501, cotangent), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    assert low.evals_backward == 2
