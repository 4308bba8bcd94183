"""The three CLIPs that judge: guide, selector and judge, each from scratch with a seed of its own.

They learn from groups of near misses, as `sgool.lab.training.clip` says, on the training device. Half of what guide and
selector see is cropped to one subject. Where there is an autoencoder, a quarter of the pictures has passed through it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgool.lab.larger import networks
from sgool.lab.larger.painter import IMAGE, Draws
from sgool.lab.larger.scenes import CONTEXT, GROUNDS, WORDS, Scenes
from sgool.lab.larger.source import Source, look
from sgool.lab.larger.trainer import Kind
from sgool.lab.training.clip import MEAN, STD, augment, contrastive
from sgool.lab.world import Scene, Subject

CROPS = {"guide": 0.5, "selector": 0.5, "judge": 0.0}

UNGROUNDED = 1 / 8
"""Share of the whole pictures with a text that names no ground, like many prompts."""


def phrases() -> list[str]:
    """What is said of a crop: each subject, small or not, on no ground or on each of the twelve."""
    subjects = [Subject(word, small) for word in WORDS for small in (False, True)]
    grounds = [(color, busy) for color in GROUNDS for busy in (False, True)]
    return [text for each in subjects for text in (str(each), *(Scene((each,), *ground).caption for ground in grounds))]


class Critic(Kind):
    rate, batch = 1e-3, 512

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.size: int = networks.CRITICS[name]["image_size"]
        self.networks = nn.ModuleDict({"clip": networks.critic(name, source.vocabulary)})
        trained = any((source.work / each).is_dir() for each in ("vae", "decoder"))
        self.vae = source.vae() if trained else None
        self.phrases = source.tokenizer(phrases()).to(source.device)
        words = source.tokenizer(["on"])
        self.on, self.end = int(words[0, 1]), source.vocabulary - 1

    @torch.no_grad()
    def inputs(self, step: int) -> dict[str, Tensor]:
        scenes = self.source.groups(self.batch)
        images, _, draws = self.source.paint(scenes)
        if self.vae:
            some = self.batch // 4
            with self.source.half():
                decoded = self.vae.decode(self.vae.encode(2 * images[:some] - 1).latent_dist.mode()).sample
            images[:some] = (decoded.float() / 2 + 0.5).clamp(0, 1)
        images, ids = self.views(images, scenes, draws)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1).to(images.device, non_blocking=True) for each in (MEAN, STD))
        return {"images": (augment(images) - mean) / std, "ids": ids}

    def views(self, images: Tensor, scenes: Scenes, draws: Draws) -> tuple[Tensor, Tensor]:
        """Pictures at the critic's size, whole or around a subject, and their texts."""
        count = len(images)
        u = torch.rand(count, 7).to(images.device, non_blocking=True)
        cropped, bare, grounded = (u[:, 0] < CROPS[self.name])[:, None], u[:, 1:2] < UNGROUNDED, u[:, 2] < 0.5
        which = (u[:, 3] * (scenes.words >= 0).sum(1)).long().clamp(max=scenes.words.shape[1] - 1)[:, None]
        height, width = self.source.painter.sizes[draws.sprite.gather(1, which)[:, 0]].T
        longer = torch.maximum(height, width)
        side = (longer * (1.1 + 1.1 * u[:, 4])).clamp(max=IMAGE)
        reach = (side - longer) / 3
        corners = [
            (at.gather(1, which)[:, 0] + length / 2 - side / 2 + reach * (2 * shift - 1)).clamp(min=0)
            for at, length, shift in ((draws.left, width, u[:, 5]), (draws.top, height, u[:, 6]))
        ]
        left, top = (torch.minimum(each, IMAGE - side) for each in corners)
        if CROPS[self.name]:
            box = torch.where(cropped, torch.stack([left, top, side], 1), side.new_tensor([0, 0, IMAGE]))
            images = look(images, box, self.size)
        elif self.size < IMAGE:
            images = F.avg_pool2d(images, IMAGE // self.size)
        subject = 2 * scenes.words.gather(1, which)[:, 0] + scenes.small.gather(1, which)[:, 0]
        ground = torch.where(grounded, 1 + 2 * scenes.color + scenes.busy, 0)
        phrase = self.phrases[(1 + 2 * len(GROUNDS)) * subject + ground]
        return images, torch.where(cropped, phrase, torch.where(bare, self.without_ground(scenes.ids), scenes.ids))

    def without_ground(self, ids: Tensor) -> Tensor:
        """The captions without " on a ... background"."""
        at = (ids == self.on).int().argmax(1, keepdim=True)
        places = torch.arange(CONTEXT, device=ids.device)
        return torch.where(places < at, ids, torch.where(places == at, self.end, 0))

    def loss(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        clip, ids = self.networks["clip"], inputs["ids"]
        a = F.normalize(clip.encode_image(inputs["images"]).float(), dim=-1)
        b = F.normalize(clip.encode_text(ids).float(), dim=-1)
        equal = (ids[:, None] == ids[None]).all(-1)
        with torch.autocast("cuda", enabled=False):  # bfloat16 is too coarse for logits of up to 100
            logits = clip.logit_scale.clamp(max=math.log(100)).exp() * a @ b.T
        right = equal.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return {"loss": contrastive(logits, equal), "accuracy": right}
