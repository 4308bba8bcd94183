"""The noise prediction as the samplers need it: float64 outside, the network's own precision inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import SgoolError

GRADIENT = 2
"""The cost of an evaluation with its gradient, in forward passes: one there, and one back through frozen weights."""


@dataclass(frozen=True)
class Branch:
    """One term of the prediction: `weight` times `function(x, t)`.

    function: latent [B, 4, h, w] in the network's dtype and integer timestep -> prediction of the same shape.
    evals: how many network evaluations one call stands for (2 for a host's own batched guidance).
    """

    weight: float
    function: Callable[[Tensor, int], Tensor]
    evals: int = 1


class Network:
    """eps(x, t) = sum of weight * function(x, t) over the branches, with its vector-Jacobian product.

    Classifier-free guidance of scale s is two branches, (1 - s, unconditional) and (s, conditional), whose graphs are
    never alive together; a host's denoiser that guides by itself is one branch of weight 1 with evals=2.

    alphas_cumprod: [N]. prediction: what the weighted sum means, "epsilon" or "v_prediction" (arXiv 2202.00512).
    dtype: what the latent is cast to for the branches. autocast: makes the context the branches run in.
    evals_forward and evals_backward count evaluations without a graph (by `__call__`) and with one (by `vjp`);
    forward_equivalents is what both cost.

    The samplers recover earlier latents only as well as eps is reproduced: `__call__` and `vjp` cast the same float64
    latent to the same network input, so their eps agree as far as the network is deterministic, even in half precision.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        dtype: torch.dtype = torch.float32,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        if not branches:
            raise SgoolError("A noise prediction needs at least one branch.")
        if prediction not in ("epsilon", "v_prediction"):
            raise SgoolError(f"The prediction type must be epsilon or v_prediction, not {prediction}.")
        self.branches = tuple(branches)
        self.alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float64)
        self.prediction = prediction
        self.dtype = dtype
        self.autocast = autocast
        self.evals_forward = 0
        self.evals_backward = 0

    @property
    def forward_equivalents(self) -> int:
        """The cost of all evaluations so far, in forward passes; see `GRADIENT`."""
        return self.evals_forward + GRADIENT * self.evals_backward

    @torch.no_grad()
    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Noise prediction, float64, for the float64 latent x at timestep t. Raises SgoolError when not finite."""
        total = torch.zeros_like(x)
        for branch in self.branches:
            total += branch.weight * self._forward(branch, x.to(self.dtype), t).double()
            self.evals_forward += branch.evals
        by_x, by_output = self._conversion(t)
        return by_x * x + by_output * total

    def vjp(self, x: Tensor, t: int, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """(eps, J^T cotangent), both float64, where J = d eps / d x; one branch's graph is alive at a time.

        Raises SgoolError when either is not finite, or when the network lets no gradient through.
        """
        # The product is linear in the cotangent, so its scale is taken out before the low precision and put back after.
        # Root mean square 1 leaves float16 a factor 6e4 both ways (a maximum of 1 would lose the small entries).
        scale = cotangent.square().mean().sqrt().item() or 1.0
        unit = cotangent / scale
        total, pulled = torch.zeros_like(x), torch.zeros_like(x)
        for branch in self.branches:
            output, gradient = self._pull(branch, x, t, unit)
            total += branch.weight * output
            pulled += branch.weight * scale * gradient
        by_x, by_output = self._conversion(t)
        return by_x * x + by_output * total, by_x * cotangent + by_output * pulled

    def _pull(self, branch: Branch, x: Tensor, t: int, unit: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.to(self.dtype).detach().requires_grad_()
        with torch.enable_grad():
            output = self._forward(branch, leaf, t)
        self.evals_backward += branch.evals
        gradient = None
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(output, leaf, unit.to(output.dtype), allow_unused=True)
        if gradient is None:
            raise SgoolError("No gradient flows through the network: its host cuts it off or uses inference mode.")
        if not torch.isfinite(gradient).all():
            raise SgoolError(f"The network's gradient is NaN or infinite at timestep {t}; use a higher precision.")
        return output.detach().double(), gradient.double()

    def _forward(self, branch: Branch, x: Tensor, t: int) -> Tensor:
        with self.autocast():
            output = branch.function(x, t)
        if not torch.isfinite(output).all():
            raise SgoolError(f"The network returned NaN or infinite values at timestep {t}; use a higher precision.")
        return output

    def _conversion(self, t: int) -> tuple[float, float]:
        """(p, q) with eps = p * x + q * output; for v = a * eps - sigma * x0 that is sigma * x + a * v."""
        if self.prediction == "epsilon":
            return 0.0, 1.0
        alphabar = self.alphas_cumprod[t].item()
        return (1 - alphabar) ** 0.5, alphabar**0.5
