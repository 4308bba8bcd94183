"""A critic: a frozen network that says how well an image fits a text.

The loss, the guide and the selector see critics only. A new critic is a file with a subclass of `Critic` and a
`CriticKind`, and one line in `sgool.guidance.CRITICS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgool.errors import SgoolError
from sgool.guidance.views import scaled
from sgool.weights import Weight

Role = Literal["guide", "selector"]
"""What a critic is loaded for. The two of a run must be different networks."""


GENERIC = tuple(
    f"a photo of {each}"
    for each in (
        "a person", "a woman", "a crowd", "a face", "a hand", "a dog", "a horse", "a bird", "a fish", "an insect",
        "a car", "a train", "an airplane", "a boat", "a bicycle", "a house", "a tower", "a bridge", "a street",
        "a room", "a chair", "a table", "a bed", "a window", "a door", "a lamp", "a book", "a phone", "a computer",
        "a clock", "a bottle", "a cup", "a plate", "a cake", "a fruit", "a vegetable", "a flower", "a tree", "a forest",
        "a mountain", "a river", "a beach", "a field", "the sky", "the moon", "a cloud", "snow", "fire", "a shirt",
        "a hat", "a shoe", "a bag", "a guitar", "a ball", "a statue", "a toy", "a tool", "a machine", "a wall",
        "a sign", "text", "a pattern", "nothing", "a background",
    )
)  # fmt: skip
"""Phrases of all kinds, for CLIPs that know the world."""


class Critic(ABC):
    """Scores images for texts. Images are RGB [N, 3, H, W] in [0, 1], of any size; scores are float32.

    An image is encoded once and may then be rated for several texts. Encoding and rating are differentiable with
    respect to the image.
    """

    image_size: tuple[int, int]
    """Height and width of the images that the network itself sees, in pixels."""

    name: str = ""
    """What its scores are called by: its name in the settings."""

    unit: str = "cosine"
    """What its scores are measured in. Scores of one unit may be added."""

    @abstractmethod
    def to(self, device: torch.device, half: bool | None = None) -> Critic:
        """This critic, moved to another device.

        half: whether a large network computes images in float16 there; None leaves its precision as it is.
        """

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Features [N, ...] of the images, with the network's own preprocessing."""

    @abstractmethod
    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores [N] of N encoded images, each for its own text; the higher, the better."""

    def distance(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """What the loss minimizes: distances [N] of N encoded images, each from its own text."""
        return -self.rate(features, texts)

    def table(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores [N, T] of N encoded images for each of T texts."""
        return torch.stack([self.rate(features, [text] * len(features)) for text in texts], 1)

    def resize(self, images: Tensor) -> Tensor:
        """The images at the network's own size; stretched where the shapes differ."""
        return scaled(images, self.image_size)

    def encode(self, views: Sequence[Tensor]) -> Tensor:
        """Features [N, ...] of N views [n, 3, h, w], which may differ in size, in one batch."""
        return self.encode_image(torch.cat([self.resize(view) for view in views]))

    def blocks(self) -> Iterable[nn.Module]:
        """The parts of the network that the memory settings `balanced` and `low` recompute one at a time."""
        return ()

    def fresh(self) -> Critic:
        """This critic for one run, without what it has learned in another."""
        return self

    @property
    def settled(self) -> bool:
        """Whether it needs no `settle` before its scores can be compared with each other."""
        return True

    def parts(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """The scores [N, K] that those of N encoded images are made of: one, but for a sum of critics."""
        return self.rate(features, texts)[:, None]

    def settle(self, parts: Tensor) -> Tensor:
        """The scores [N] of images whose parts [N, K] are these. A sum weighs its critics by them from here on."""
        return parts[:, 0]

    def score(self, images: Tensor, text: str) -> Tensor:
        """Scores [N] of images [N, 3, H, W] for one text; differentiable."""
        return self.table(self.encode_image(images), [text])[:, 0]

    @torch.no_grad()
    def judge(self, image: Tensor, text: str) -> float:
        """The score of one image [1, 3, H, W] for a text: the mean over five `shifted` views of it."""
        return float(self.score(shifted(image), text).mean())

    @torch.no_grad()
    def judge_all(self, images: Tensor, text: str) -> list[float]:
        """The same for each of the images [B, 3, H, W]."""
        scores: list[float] = self.score(shifted(images), text).view(-1, len(images)).mean(0).tolist()
        return scores

    def judge_parts(self, images: Tensor, text: str) -> Tensor:
        """What `judge_all` gives, by its parts [B, K]; on the CPU, where images are compared by them."""
        return torch.tensor(self.judge_all(images, text))[:, None]


class EmbeddingCritic(Critic):
    """A critic that embeds images and texts in one space: features are unit vectors [N, D], scores are cosines."""

    generic: Sequence[str] = GENERIC
    """Phrases of all kinds, which a phrase is compared with; see `sgool.guidance.evidence`. Each ends with its noun."""

    @abstractmethod
    def encode_text(self, text: str) -> Tensor:
        """The text's embedding, a unit vector [D]."""

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return (features * self.encode_texts(texts)).sum(-1)

    def table(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return features @ self.encode_texts(texts).T

    def distance(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return spherical_distance(features, self.encode_texts(texts))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [T, D] of several texts."""
        return torch.stack([self.encode_text(text) for text in texts])


def singles(critics: Iterable[Critic]) -> list[Critic]:
    """The critics one by one: of a sum, each that it is made of."""
    return [each for critic in critics for each in getattr(critic, "critics", (critic,))]


def spherical_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 arcsin(|x - y| / 2)^2 over the last dimension: half the squared angle between unit vectors, in [0, pi^2 / 2].

    From the square of the chord, clamped off the two points where the derivative of arcsin(sqrt(s)) is not finite.
    """
    s = (x - y).square().sum(-1) / 4
    return 2 * s.clamp(1e-12, 1 - 1e-6).sqrt().arcsin().square()


def shifted(images: Tensor, share: float = 1 / 32) -> Tensor:
    """[B, 3, H, W] -> [5 B, 3, H, W]: the images, and all of them moved to each diagonal by a share of their sides.

    The border is repeated. The score of a vision transformer depends on where the borders of its patches fall; the mean
    of five depends on it less.
    """
    height, width = images.shape[-2:]
    down, right = max(1, round(share * height)), max(1, round(share * width))
    wide = F.pad(images, (right, right, down, down), mode="replicate")
    corners = [(down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right)]
    return torch.cat([wide[..., top : top + height, left : left + width] for top, left in corners])


def no_variants(variant: str) -> None:
    """The check of a critic that comes in one variant only."""
    if variant:
        raise SgoolError(f"This critic has no variants, and {variant!r} names one.")


def no_weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """The files of a critic that needs none."""
    return ()


@dataclass(frozen=True)
class CriticKind:
    """A kind of critic.

    description: what it measures, a line for people. load: the critic of a variant ("" for the one that suits the
    role), for a role, from a models folder, on a device; raises SgoolError. check: raises SgoolError for a variant that
    cannot be. weights: the files that it needs, for a variant and a role; asks nobody, and raises SgoolError for a
    variant that there is not. network: names the image network of a variant in a role; critics with one name share it.
    licence: of the weights. download: their size in GB. memory: what its weights take of a GPU, in GiB.
    """

    description: str
    load: Callable[[str, Role, Path, torch.device], Critic]
    check: Callable[[str], None] = no_variants
    weights: Callable[[str, Role], Sequence[Weight]] = no_weights
    network: Callable[[str, Role], str] | None = None
    licence: str = ""
    download: float = 0.0
    memory: float = 0.0
