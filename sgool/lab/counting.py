"""Counts the arithmetic of a piece of work, and runs work on tensor shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sgool.errors import SgoolError


class Flops(TorchDispatchMode):
    """``with Flops() as flops: ...``; `flops.total`: operations in matrix products, convolutions and attention so far.

    A multiplication and an addition count as two. torch's FlopCounterMode counts the same, but it hooks every module
    and its table differs in every version.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += 2 * _products(func._overloadpacket.__name__, args, result)
        return result


def _products(name: str, args: Any, result: Any) -> int:
    """The multiplications of one ATen operation."""
    if name in ("mm", "bmm"):
        return args[0].numel() * args[1].shape[-1]
    if name in ("addmm", "baddbmm"):
        return args[1].numel() * args[2].shape[-1]
    if name == "convolution":
        return result.numel() * (args[1].numel() // len(args[1]))
    if name == "convolution_backward":
        wanted = sum(args[10][:2])  # the gradients of the input and of the weight
        return wanted * args[0].numel() * (args[2].numel() // len(args[2]))
    if name.startswith("_scaled_dot_product") and "attention" in name:
        backward = "backward" in name
        q, k = args[1:3] if backward else args[:2]
        # Forward: q k^T, and its product with v. Backward: q k^T again, and four products for the gradients.
        return (5 if backward else 2) * q.numel() * k.shape[-2]
    return 0


@contextmanager
def shapes_only(truth: bool) -> Iterator[None]:
    """Run code written for real tensors on the device "meta", where tensors have shapes but no values.

    A number read from such a tensor is 1, and a comparison gives `truth`. Attention is fused as on a GPU, because torch
    would otherwise store the attention matrix on this device. Raises SgoolError if torch is older than 2.2.
    """
    attention = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if attention is None:
        raise SgoolError("Counting on shapes alone needs torch 2.2 or newer.")

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        return attention(q, k, v, attn_mask=attn_mask)[0]

    with patch("torch.nn.functional.scaled_dot_product_attention", fused), _Values(truth):
        yield


class _Values(TorchDispatchMode):
    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return self.truth if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))
