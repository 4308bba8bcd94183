"""How gradients pass networks that were made in inference mode and for it alone. All is undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


class NormalTensors:
    """In place of each tensor of the networks that was made in inference mode, a normal one of the same storage."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self.changed: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []

    def set(self) -> None:
        for network in self.networks:
            for module in network.modules():
                stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
                for store in stores:
                    for name, tensor in list(store.items()):
                        if isinstance(tensor, Tensor) and tensor.is_inference():
                            stand_in = normal(tensor)
                            if isinstance(tensor, nn.Parameter):
                                stand_in = nn.Parameter(stand_in, requires_grad=False)
                            self.changed.append((store, name, tensor, stand_in))
                            store[name] = stand_in

    def restore(self) -> None:
        """Put the tensors back. Where another one has come in the meantime, that one stays."""
        while self.changed:
            store, name, tensor, stand_in = self.changed.pop()
            if store.get(name) is stand_in:
                store[name] = tensor


def normal(tensor: Tensor) -> Tensor:
    """A tensor that autograd may keep, of the same storage."""
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore[call-overload]


@contextmanager
def copying(network: nn.Module) -> Iterator[None]:
    """Transformer blocks do `x += n` after `norm(x)`, which has kept x: so each norm gets a copy.

    Without it autograd complains. Where blocks are recomputed it does not even do that, and the gradient is wrong.
    """
    hooks = [
        module.register_forward_pre_hook(_copy_first)
        for module in network.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _copy_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (args[0].clone(), *args[1:]) if torch.is_grad_enabled() else None


@contextmanager
def undecorated(network: nn.Module) -> Iterator[None]:
    """Modules with `@torch.inference_mode()` on their forward (Forge Neo's VAE) get what is below it."""
    changed = []
    try:
        for module in network.modules():
            forward = type(module).forward
            if "forward" not in vars(module) and _blocks_gradients(forward):
                module.forward = MethodType(forward.__wrapped__, module)  # type: ignore[attr-defined]
                changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _blocks_gradients(forward: Any) -> bool:
    """Whether it is wrapped by one of torch's context managers."""
    return getattr(forward, "__globals__", {}).get("__name__") == "torch.utils._contextlib"
