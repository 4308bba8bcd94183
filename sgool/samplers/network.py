"""The noise prediction for the samplers: float64 outside, the network's own precision inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import SgoolError


@dataclass(frozen=True)
class Branch:
    """One term of the prediction: `weight` times `function(x, t)`.

    function: latent [B, 4, h, w] in the network's dtype and timestep -> prediction of the same shape.
    evals: network evaluations per call and latent (2 where the host batches its own guidance).
    back: the branches that carry the gradient where only the prompt's half does (`Network.prompt_vjp`); () for a
    negative prompt, None for a branch that carries its own.
    """

    weight: float
    function: Callable[[Tensor, float], Tensor]
    evals: int = 1
    back: tuple[Branch, ...] | None = None


class Network:
    """eps(x, t) = sum of weight * function(x, t) over the branches, and its vector-Jacobian product.

    Classifier-free guidance with scale s has two branches: (1 - s, unconditional) and (s, conditional). Only one
    branch has a graph in memory at a time. A host's denoiser that applies guidance itself is one branch of weight 1
    with evals=2.

    alphas_cumprod: [N]. prediction: the meaning of the weighted sum, "epsilon" or "v_prediction" (arXiv 2202.00512);
    the latter needs whole timesteps. dtype: the branches get the latent in this dtype. autocast: makes the context in
    which the branches run.
    evals_forward and evals_backward count evaluations without a graph (by `__call__`) and with one (by `vjp` and
    `prompt_vjp`). repeats: whether a latent gets the same prediction, to the last bit, when it is asked for again.

    The samplers recover earlier latents only as exactly as the network repeats eps. `__call__` and `vjp` cast the same
    float64 latent to the same network input. A deterministic network therefore gives both the same eps, even in half
    precision. Raises SgoolError without branches and for an unknown prediction type.
    """

    repeats = True

    def __init__(
        self,
        branches: Sequence[Branch],
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        dtype: torch.dtype = torch.float32,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
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
    def cost(self) -> int:
        """Evaluations of one prediction of one latent."""
        return sum(branch.evals for branch in self.branches)

    @property
    def prompt_cost(self) -> int:
        """Evaluations of one `prompt_vjp` of one latent."""
        return sum(each.evals for each in self._back())

    @torch.no_grad()
    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The noise prediction, float64, for the float64 latent x at timestep t. Raises SgoolError if not finite."""
        total = torch.zeros_like(x)
        for branch in self.branches:
            total += branch.weight * self._forward(branch, x.to(self.dtype), t).double()
            self.evals_forward += branch.evals * len(x)
        by_x, by_output = self._conversion(t)
        return by_x * x + by_output * total

    def vjp(self, x: Tensor, t: float, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (eps, J^T cotangent), both float64, with J = d eps / d x. One branch has a graph in memory at a time.

        Raises SgoolError if either is not finite, or if no gradient flows through the network.
        """
        # The product is linear in the cotangent, so the scale can be removed before the low precision and restored
        # after it. A root mean square of 1 leaves float16 a factor of 6e4 on both sides. A maximum of 1 would lose the
        # small entries.
        scale = _rms(cotangent)
        unit = cotangent / scale
        total, pulled = torch.zeros_like(x), torch.zeros_like(x)
        for branch in self.branches:
            output, gradient = self._pull(branch, x, t, unit)
            total += branch.weight * output
            pulled += branch.weight * scale * gradient
        by_x, by_output = self._conversion(t)
        return by_x * x + by_output * total, by_x * cotangent + by_output * pulled

    def prompt_vjp(self, x: Tensor, t: float, cotangent: Tensor) -> Tensor:
        """J^T cotangent, float64, where guidance counts as a constant: J is that of the prompt's prediction alone.

        The branches' `back` say what that is. The negative prompt is not evaluated. Raises SgoolError like `vjp`.
        """
        scale = _rms(cotangent)
        pulled = torch.zeros_like(x)
        for branch in self._back():
            pulled += branch.weight * scale * self._pull(branch, x, t, cotangent / scale)[1]
        by_x, by_output = self._conversion(t)
        return by_x * cotangent + by_output * pulled

    def _back(self) -> list[Branch]:
        """The branches that a gradient goes through where only the prompt's half carries it."""
        own = ((branch,) if branch.back is None else branch.back for branch in self.branches)
        return [each for branches in own for each in branches]

    def _pull(self, branch: Branch, x: Tensor, t: float, unit: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.to(self.dtype).detach().requires_grad_()
        with torch.enable_grad():
            output = self._forward(branch, leaf, t)
        self.evals_backward += branch.evals * len(x)
        gradient = None
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(output, leaf, unit.to(output.dtype), allow_unused=True)
        if gradient is None:
            raise SgoolError("No gradient flows through the network: its host blocks gradients or uses inference mode.")
        if not torch.isfinite(gradient).all():
            raise SgoolError(f"The network's gradient is NaN or infinite at timestep {t}; use a higher precision.")
        return output.detach().double(), gradient.double()

    def _forward(self, branch: Branch, x: Tensor, t: float) -> Tensor:
        with self.autocast():
            output = branch.function(x, t)
        if not torch.isfinite(output).all():
            raise SgoolError(f"The network returned NaN or infinite values at timestep {t}; use a higher precision.")
        return output

    def _conversion(self, t: float) -> tuple[float, float]:
        """(p, q) with eps = p * x + q * output. For v = a * eps - sigma * x0, eps = sigma * x + a * v."""
        if self.prediction == "epsilon":
            return 0.0, 1.0
        alphabar = self.alphas_cumprod[int(t)].item()
        return (1 - alphabar) ** 0.5, alphabar**0.5


def _rms(cotangent: Tensor) -> Tensor:
    """The root mean square of each sample [B, 1, 1, 1], 1 where that is 0."""
    rms = torch.stack([sample.square().mean().sqrt() for sample in cotangent])
    return torch.where(rms > 0, rms, 1.0).view(-1, 1, 1, 1)
