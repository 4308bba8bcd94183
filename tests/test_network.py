"""Double-double words, and the guided network with its vector-Jacobian products."""

from __future__ import annotations

import weakref
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from toys import SD, Toy, error, guided, latent, toys

from sgool.errors import SgoolError
from sgool.samplers import Branch, Network, double_double
from sgool.samplers.double_double import DoubleDouble


@pytest.mark.parametrize("factor", [0.5, 0.93, -1.0 / 3, 1.7e5])
def test_double_doubles_are_twice_as_precise(factor: float) -> None:
    def value(x: DoubleDouble) -> list[Fraction]:
        pairs = zip(*torch.broadcast_tensors(*x), strict=True)
        return [Fraction(high.item()) + Fraction(low.item()) for high, low in pairs]

    def deviation(result: DoubleDouble, expected: list[Fraction]) -> float:
        assert torch.equal(result.high + result.low, result.high)
        assert any(result.low != 0)
        return max(float(abs(a / b - 1)) for a, b in zip(value(result), expected, strict=True))

    high, low, other = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = high.tolist(), low.tolist()
    x = double_double.add(double_double.exact(high), 2.0**-54 * low)
    assert deviation(x, [Fraction(a) + Fraction(b) / 2**54 for a, b in zip(*pair, strict=True)]) == 0
    scale = Fraction(factor)
    assert deviation(double_double.multiply(x, factor), [scale * a for a in value(x)]) < 2.0**-103
    assert deviation(double_double.divide(x, factor), [a / scale for a in value(x)]) < 2.0**-103
    added = [a + Fraction(b) for a, b in zip(value(x), other.tolist(), strict=True)]
    assert deviation(double_double.add(x, other), added) < 2.0**-100  # Relative to a sum that cancels a few bits.


def test_a_combined_denoiser_equals_sequential_guidance() -> None:
    uncond, cond = toys()
    combined = Network([Branch(1.0, lambda x, t: -6.5 * uncond(x, t) + 7.5 * cond(x, t), evals=2)], SD)
    sequential = guided(7.5)
    results = [n.vjp(latent(), 501, latent(2)) for n in (combined, sequential)]
    for one, other in zip(*results, strict=True):
        assert error(one, other) < 1e-5
    assert combined.evals_backward == sequential.evals_backward == 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_vjp_repeats_eps_bit_for_bit(prediction: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network = guided(dtype=dtype, prediction=prediction)
        assert torch.equal(network(latent(), 301), network.vjp(latent(), 301, latent(2))[0])


def test_a_tiny_or_huge_cotangent_survives_low_precision() -> None:
    network = guided(dtype=torch.bfloat16)
    half = Network([Branch(1.0, lambda x, t: (x.float() * (1 + x.float().sin())).half())], SD, dtype=torch.float16)
    for n in (network, half):
        plain = n.vjp(latent(), 301, latent(2))[1]
        for scale in (2.0**-80, 2.0**80):
            assert error(n.vjp(latent(), 301, scale * latent(2))[1], scale * plain) < 1e-12
        assert n.vjp(latent(), 301, torch.zeros_like(latent()))[1].abs().max() == 0


def test_faulty_networks_raise_sgool_error() -> None:
    with pytest.raises(SgoolError, match="NaN"):
        Network([Branch(1.0, lambda x, t: x / 0)], SD)(latent(), 1)
    with pytest.raises(SgoolError, match="gradient is NaN"):
        Network([Branch(1.0, lambda x, t: (x - x).sqrt())], SD).vjp(latent(), 1, latent())
    for cut in (torch.no_grad(), torch.inference_mode()):
        with pytest.raises(SgoolError, match="No gradient flows"):
            Network([Branch(1.0, cut(lambda x, t: 2 * x))], SD).vjp(latent(), 1, latent())


def test_only_one_branch_has_a_graph_at_a_time() -> None:
    uncond, cond = toys()
    saved: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def watched(net: Toy):
        def function(x: Tensor, t: int) -> Tensor:
            assert len(saved) == 0
            hidden = x * 1.0
            saved.add(hidden)
            return net(hidden, t)

        return function

    Network([Branch(-6.5, watched(uncond)), Branch(7.5, watched(cond))], SD).vjp(latent(), 301, latent(2))
