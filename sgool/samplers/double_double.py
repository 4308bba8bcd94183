"""Double-double arithmetic: a number is the unevaluated sum of two float64 words, with a relative error near 2^-104.

The inverse of a damped sampler divides by alpha < 1 at every step. This amplifies rounding errors too much for a single
float64 word. The error-free sum is Knuth's (The Art of Computer Programming 2, 4.2.2). The error-free product is
Dekker's (Numerische Mathematik 18, 1971), because torch has no fused multiply-add. The operations on pairs are
algorithms 4, 7 and 15 of Joldes, Muller and Popescu (ACM TOMS 44, 2017). All hold for magnitudes up to 1e300.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


class DoubleDouble(NamedTuple):
    """The number high + low, where high is that sum rounded to float64; low may be a scalar zero."""

    high: Tensor
    low: Tensor


def exact(x: Tensor) -> DoubleDouble:
    """The float64 tensor x as a double-double."""
    return DoubleDouble(x, x.new_zeros(()))


def add(x: DoubleDouble, y: Tensor) -> DoubleDouble:
    """x + y."""
    total = x.high + y
    part = total - x.high
    lost = (x.high - (total - part)) + (y - part)
    return _normalized(total, x.low + lost)


def multiply(x: DoubleDouble, factor: float) -> DoubleDouble:
    """factor * x."""
    product, lost = _product(x.high, factor)
    return _normalized(product, lost + factor * x.low)


def divide(x: DoubleDouble, divisor: float) -> DoubleDouble:
    """x / divisor."""
    quotient = x.high / divisor
    product, lost = _product(quotient, divisor)
    rest = (x.high - product) + (x.low - lost)
    return _normalized(quotient, rest / divisor)


def _product(x: Tensor, y: float) -> tuple[Tensor, Tensor]:
    """(x * y rounded, the rounding error)."""
    product = x * y
    x1, x2 = _halves(x)
    y1, y2 = _halves(y)
    return product, ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


def _halves(x: Number) -> tuple[Number, Number]:
    """Split x into two summands of at most 26 significant bits each. Products of such summands are exact."""
    spread = (2.0**27 + 1) * x
    first = spread - (spread - x)
    return first, x - first


def _normalized(high: Tensor, low: Tensor) -> DoubleDouble:
    total = high + low
    return DoubleDouble(total, low - (total - high))
