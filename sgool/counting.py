"""Counting what a piece of work would take: its arithmetic, and all of it without doing it, on shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):
    """``with Flops() as flops: ...``; `flops.total`: those of matrix products, convolutions and attention so far.

    Counts as torch's FlopCounterMode does, but without its hooks on every module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def shapes_only(truth: bool) -> Iterator[None]:
    """Let code written for real tensors run on the device "meta", where tensors are shapes without values.

    A number asked of such a tensor is 1, a comparison `truth`. Attention is fused as on a GPU: left to itself, torch
    would write out its matrix there.
    """

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=attn_mask)[0]

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
