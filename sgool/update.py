"""Updates of the starting latents: steps against the gradient that keep the latents close to the model's prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sgool.errors import SgoolError

RULES = ("momentum", "adam")
"""How `SgoolUpdate` makes a direction of the gradients."""


class Update(Protocol):
    """An update rule. A state is a list of float64 latents [B, 4, h, w]; its gradients have the same form."""

    def step(self, state: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """The state after one step against the gradients of a loss."""
        ...


@dataclass(frozen=True)
class Prior:
    """Target statistics of the latents, per latent, sample and channel: four moments, and the power in octave bands.

    A latent far from Gaussian noise can please CLIP while the image gets worse. Keeping the norm, as DOODL does, is not
    enough: an offset or a smooth pattern can hide within the same norm. ReNO (arXiv 2406.04312) penalizes the
    likelihood of the norm, DNO (arXiv 2405.18881) moments of parts, MPGR (arXiv 2509.07027) moments and the power
    spectrum. Here each statistic is measured in standard errors of Gaussian noise, and only the part beyond `tolerance`
    counts. True noise therefore stays as it is.

    mean, std: [L, B, C, 1, 1] for L latents. skew_kurtosis: [2, L, B, C], means of the Hermite polynomials He3 and He4
    of the standardized latent. power: [bands, L, B, C], 1 for white noise. Each may be one number for all.
    """

    mean: Tensor | float
    std: Tensor | float
    skew_kurtosis: Tensor | float
    power: Tensor | float
    tolerance: float = 2.0

    @classmethod
    def gaussian(cls) -> Prior:
        """White noise of unit variance: the prior of a start from noise."""
        return cls(0.0, 1.0, 0.0, 1.0)

    @classmethod
    def of(cls, state: Sequence[Tensor]) -> Prior:
        """The statistics of this state itself, which suit an inverted image: its state is not quite Gaussian."""
        x = torch.stack(list(state)).detach()
        mean = x.mean((-2, -1), keepdim=True)
        std = x.std((-2, -1), keepdim=True, correction=0).clamp_min(1e-6)
        y = (x - mean) / std
        return cls(mean, std, _hermite_means(y)[2:], _band_power(y)[0].clamp_min(1e-12))

    def z_scores(self, x: Tensor) -> Tensor:
        """Distance of each statistic of x [L, B, C, h, w] from its target, in standard errors: [statistics, L, B, C].

        Means of Hermite polynomials are uncorrelated with variance k!/n. A band power has a chi-square distribution
        with one degree of freedom per mode of the band; its cube root is nearly normal (Wilson and Hilferty 1931).
        """
        y = (x - self.mean) / self.std
        hermite = _hermite_means(y)
        hermite = torch.cat([hermite[:2], hermite[2:] - self.skew_kurtosis])
        errors = [math.sqrt(math.factorial(k) / y[0, 0, 0].numel()) for k in (1, 2, 3, 4)]
        power, modes = _band_power(y)
        variance = 2 / (9 * modes).view(-1, 1, 1, 1)
        cube_root = (power / self.power).clamp_min(1e-12) ** (1 / 3)
        moments = hermite / hermite.new_tensor(errors).view(-1, 1, 1, 1)
        return torch.cat([moments, (cube_root - 1 + variance) / variance.sqrt()])

    def excess(self, x: Tensor) -> Tensor:
        """The part of each z-score beyond the tolerance."""
        z = self.z_scores(x)
        return z - z.clamp(-self.tolerance, self.tolerance)

    def penalty(self, state: Sequence[Tensor]) -> Tensor:
        """Half the sum of the squared excesses: a scalar, differentiable, 0 for nearly every true sample."""
        return self.excess(torch.stack(list(state))).square().sum() / 2

    def pull(self, state: Sequence[Tensor], weight: float) -> list[Tensor]:
        """One Gauss-Newton step on the penalty. weight: the share of the excess to remove, in [0, 1].

        A plain gradient step needs a weight that depends on the size of the latent, and oscillates when that weight is
        large. -J^T (J J^T)^-1 excess is the smallest change that corrects the statistics, whatever their units.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.stack(list(state)).detach().clone().requires_grad_(True)
            excess = self.excess(x)
            active = [e for e in excess if e.detach().any()]
            if not weight or not active:
                return list(state)
            # A channel's statistics depend on that channel alone, so one gradient of the sum serves all channels.
            rows = torch.stack([torch.autograd.grad(e.sum(), x, retain_graph=True)[0] for e in active], -3).flatten(-2)
        gram = rows @ rows.mT
        gram = gram + 1e-6 * torch.eye(len(active), dtype=gram.dtype, device=gram.device)
        shares = torch.linalg.solve(gram, torch.stack(active, -1).detach().unsqueeze(-1))
        change = (rows.mT @ shares).view_as(x)
        return list((x.detach() - weight * change).unbind())


class DoodlUpdate:
    """DOODL's published update (arXiv 2303.13703; github.com/salesforce/DOODL, `gen` in doodl.py).

    Both latents of EDICT are tied to one x, and g = learning_rate * half of dloss/dx (the mean over the two latents).
    A step clips g elementwise to `clip`. Then v <- momentum * v + g and x <- x - v + perturbation * N(0, 1). Finally x
    is scaled to its first norm, except with renormalize=False, for a start from an image. After each step the latents
    of the state are averaged into one, as in the published code. learning_rate: the factor of the loss, published as
    `grad_scale`.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1.0,
        clip: float = 1e-3,
        momentum: float = 0.9,
        perturbation: float = 1e-4,
        renormalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.clip = clip
        self.momentum = momentum
        self.perturbation = perturbation
        self.renormalize = renormalize
        self.generator = generator
        self._velocity: Tensor | float = 0.0
        self._norm: Tensor | None = None

    def step(self, state: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """See Update. Raises SgoolError if a gradient is not finite."""
        latents = torch.stack(list(state))
        gradient = self.learning_rate * 0.5 * _checked(grads).sum(0)
        self._velocity = self.momentum * self._velocity + gradient.clamp(-self.clip, self.clip)
        if self._norm is None:
            self._norm = _norm(latents[0])
        device = self.generator.device if self.generator is not None else latents.device
        noise = torch.randn(latents.shape[1:], generator=self.generator, device=device, dtype=latents.dtype)
        x = latents.mean(0) - self._velocity + self.perturbation * noise.to(latents.device)
        if self.renormalize:
            x = x * (self._norm / _norm(x))
        return [x.clone() for _ in state]


class SgoolUpdate:
    """A step of a chosen length against the gradient, then back to the prior and to the norm of the first state.

    prior: `Prior.gaussian()` for a start from noise. None means `Prior.of` the first state, for a start from an image
    or partway through sampling, because such latents are not quite Gaussian. learning_rate: how far a latent moves per
    update under a constant gradient, in units of its own root mean square (rms). rule: "momentum" (a running mean of
    the gradients, each scaled to unit rms) or "adam" (Kingma and Ba 2015, on the same gradients). warmup: updates until
    the full learning rate. regularization: the weight of `Prior.pull`, in [0, 1]; 0 keeps only the norm. Raises
    SgoolError for another rule or a regularization out of range.
    """

    def __init__(
        self,
        prior: Prior | None = None,
        *,
        learning_rate: float = 0.02,
        rule: str = "momentum",
        momentum: float = 0.9,
        warmup: int = 3,
        regularization: float = 1.0,
    ) -> None:
        if not 0 <= regularization <= 1:
            raise SgoolError(f"The regularization must be between 0 and 1, not {regularization}.")
        if rule not in RULES:
            raise SgoolError(f"The update rule must be one of {', '.join(RULES)}, not {rule!r}.")
        self.prior = prior
        self.learning_rate = learning_rate
        self.rule = rule
        self.momentum = momentum
        self.warmup = warmup
        self.regularization = regularization
        self._done = 0
        self._first: Tensor | float = 0.0
        self._second: Tensor | float = 0.0
        self._norm: Tensor | None = None

    def step(self, state: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """See Update. Gradients may be zero. Raises SgoolError if a gradient is not finite."""
        x, g = torch.stack(list(state)), _checked(grads)
        if self._norm is None:
            self._norm = _norm(x)
        if self.prior is None:
            self.prior = Prior.of(state)
        # One scale for all latents of a sample: the latent with the largest gradient moves at the learning rate.
        g = g / _norm(g).amax(0, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny) * math.sqrt(g[0, 0].numel())
        self._done += 1
        speed = self.learning_rate * min(1.0, self._done / max(1, self.warmup))
        x = x - speed * self._norm / math.sqrt(x[0, 0].numel()) * self._direction(g)
        x = torch.stack(self.prior.pull(list(x), self.regularization))
        x = x * (self._norm / _norm(x).clamp_min(torch.finfo(x.dtype).tiny))
        return list(x.unbind())

    def _direction(self, g: Tensor) -> Tensor:
        self._first = self.momentum * self._first + (1 - self.momentum) * g
        mean = self._first / (1 - self.momentum**self._done)
        if self.rule != "adam":
            return mean
        self._second = 0.999 * self._second + 0.001 * g.square()
        return mean / ((self._second / (1 - 0.999**self._done)).sqrt() + 1e-8)


def _radius(height: int, width: int, like: Tensor) -> Tensor:
    """The radial frequency of each Fourier mode [height, width], in cycles a pixel."""
    fy = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    fx = torch.fft.fftfreq(width, dtype=like.dtype, device=like.device)[None]
    radius: Tensor = (fy.square() + fx.square()).sqrt()
    return radius


def _norm(x: Tensor) -> Tensor:
    """The norm of each sample over channels and space, [..., 1, 1, 1]."""
    return x.square().sum((-3, -2, -1), keepdim=True).sqrt()


def _checked(grads: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(grads))
    if not stacked.isfinite().all():
        raise SgoolError("The gradient is not finite; a VAE or UNet in higher precision usually fixes this.")
    return stacked


def _hermite_means(y: Tensor) -> Tensor:
    """Spatial means of He1 to He4, [4, ...]."""
    square = y.square()
    polynomials = (y, square - 1, y * (square - 3), square.square() - 6 * square + 3)
    return torch.stack([p.mean((-2, -1)) for p in polynomials])


def _band_power(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power of the 2-D Fourier modes per octave of radial frequency [bands, ...], and the modes per band.

    The constant mode is in no band, because it is the mean.
    """
    height, width = y.shape[-2:]
    octave = (_radius(height, width, y) * max(height, width) + 1e-9).log2().floor()
    masks = [octave == k for k in range(int(octave.max()) + 1)]
    masks = [mask for mask in masks if mask.any()]
    spectrum = torch.fft.fft2(y, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.stack([power[..., mask].mean(-1) for mask in masks]), torch.stack([m.sum() for m in masks]).to(y.dtype)
