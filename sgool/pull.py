"""CLIP guidance: a critic pulls the noise prediction at every sampling step, and nothing is optimized.

With x0(x) = (x - sigma * eps(x)) / a, the image that a step predicts, and L the loss of its decoded image:

    eps'(x) = eps(x) + scale * sigma * dL/dx

This is classifier guidance (Dhariwal and Nichol, arXiv 2105.05233, algorithm 2) with exp(-scale * L) in place of the
classifier, which needs no critic of noisy images. The gradient goes through critic, decoder and network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.loss import SaliencyLoss, gradient_of
from sgool.samplers import Network, Schedule


@dataclass(frozen=True)
class Pull:
    """How a critic pulls. loss: holds the critic and the prompt; no regions count. decode: see `Backend`.

    scale: see above. way_back: what of the network the gradient goes through, see `Trajectory`. seed: of the cutouts,
    which are the same whenever a step is made.
    """

    loss: SaliencyLoss
    decode: Callable[[Tensor], Tensor]
    scale: float
    way_back: str = "full"
    seed: int = 0


class Pulled(Network):
    """A network whose predictions a critic pulls: for sampling, without a gradient of its own."""

    def __init__(self, network: Network, schedule: Schedule, pull: Pull) -> None:
        super().__init__(network.branches, network.alphas_cumprod, network.prediction, network.dtype, network.autocast)
        self.schedule = schedule
        self.pull = pull

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The pulled prediction, float64. Raises SgoolError like `Network`, and where the decoder returns NaN."""
        eps = super().__call__(x, t)
        if not self.pull.scale:
            return eps
        node = self.schedule.timesteps.index(t)
        a, sigma = self.schedule.a[node], self.schedule.sigma[node]
        cotangent = torch.cat([self._cotangent(one, node) for one in torch.split((x - sigma * eps) / a, 1)])
        product = self.prompt_vjp(x, t, cotangent) if self.pull.way_back == "prompt" else self.vjp(x, t, cotangent)[1]
        return eps + self.pull.scale * sigma * (cotangent - sigma * product) / a

    @torch.enable_grad()
    def _cotangent(self, predicted: Tensor, node: int) -> Tensor:
        """The gradient of the loss with respect to one predicted latent [1, 4, h, w], float64."""
        leaf = predicted.float().requires_grad_()
        decoded = self.pull.decode(leaf)
        if not torch.isfinite(decoded).all():
            raise SgoolError("The decoder returned NaN or infinite values; use a higher precision.")
        pixels = decoded.detach().float().requires_grad_()
        cutouts = torch.Generator().manual_seed((self.pull.seed + node) % 2**63)
        value = self.pull.loss(pixels.clamp(0, 1), (), cutouts)
        return gradient_of(value, pixels, decoded, leaf)
