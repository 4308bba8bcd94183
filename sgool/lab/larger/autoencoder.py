"""The autoencoder, and its decoder alone.

The loss is L1, L1 of the horizontal and vertical differences, and a distance of features: L1 alone asks for the median
of what could be there, which is a blur wherever the latent does not say it all. The features are those of the selector,
compared as LPIPS does (arXiv 1801.03924). They are not the guide's, whose gradients a run follows, nor the judge's,
which should know nothing of the decoder it judges. There is no adversarial loss, because it is one more network to keep
in balance, in slices that nobody watches. What a subject's pixels count grows as the subject gets smaller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgool.lab.larger import networks
from sgool.lab.larger.source import Source
from sgool.lab.larger.trainer import Kind, load_average
from sgool.lab.training.autoencoder import NOISE, differences
from sgool.lab.training.clip import STD

PERCEPTUAL, KL, FOCUS = 1.0, 1e-4, 4.0


class Features(nn.Module):
    """Activations of the selector's convolutions, at strides from 2 to 16, each of unit length."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        found: Any = nn.ModuleDict({"clip": networks.critic("selector", source.vocabulary)})
        load_average(found, source.work / "selector")
        self.visual = found["clip"].visual.to(source.device).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: [N, 3, H, W] in [-1, 1]."""
        see = self.visual
        x = see.act1(see.bn1(see.conv1(x * 0.5 / STD[0])))
        found = [x]
        x = see.avgpool(see.act3(see.bn3(see.conv3(see.act2(see.bn2(see.conv2(x)))))))
        for layer in (see.layer1, see.layer2, see.layer3):
            x = layer(x)
            found.append(x)
        return [F.normalize(each.float(), dim=1) for each in found]

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self(x)
        return sum((a - b).square().sum(1).mean() for a, b in zip(wanted, self(y), strict=True)) / len(wanted)


class Autoencoder(Kind):
    rate, batch = 1e-3, 32

    def __init__(self, source: Source) -> None:
        self.source = source
        vae = networks.autoencoder()
        with torch.no_grad():
            vae.quant_conv.bias[4:] = -4.0  # little noise at first; otherwise the decoder learns to ignore the latent
        self.networks = nn.ModuleDict({"vae": vae})
        self.features = Features(source)

    def inputs(self, step: int) -> dict[str, Tensor]:
        image, focus, _ = self.source.paint(self.source.scenes(self.batch))
        weight = 1 + FOCUS * focus
        noise = torch.randn(self.batch, 4, *(side // 8 for side in image.shape[2:]), device=image.device)
        return {"image": 2 * image - 1, "weight": weight / weight.mean(), "noise": noise}

    def latent(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What is decoded, and the KL divergence per element."""
        posterior = self.networks["vae"].encode(inputs["image"]).latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return posterior.mean + posterior.std * inputs["noise"], kl

    def loss(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x, weight = inputs["image"], inputs["weight"]
        latent, kl = self.latent(inputs)
        y = self.networks["vae"].decode(latent).sample.float()
        error = (weight * (y - x).abs()).mean()
        edges = sum((a - b).abs().mean() for a, b in zip(differences(weight * x), differences(weight * y), strict=True))
        perceptual = self.features.distance(x, y)
        loss = error + edges + PERCEPTUAL * perceptual + KL * kl
        plain = (y - x).abs().mean() / 2  # of pictures in [0, 1]
        return {"loss": loss, "l1": plain, "edges": edges, "perceptual": perceptual, "kl": kl}


class Decoder(Autoencoder):
    """The decoder goes on alone, so a UNet trained on the latents stays valid.

    Half of the latents get a little noise, because sampled latents are never perfect.
    """

    rate = 5e-4

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        load_average(self.networks, source.work / "vae")
        for part in (self.networks["vae"].encoder, self.networks["vae"].quant_conv):
            part.requires_grad_(False)

    def inputs(self, step: int) -> dict[str, Tensor]:
        found = super().inputs(step)
        amount = NOISE * torch.rand(self.batch, 1, 1, 1) * (torch.arange(self.batch) % 2)[:, None, None, None]
        return found | {"noise": amount.to(found["noise"].device, non_blocking=True) * found["noise"]}

    def latent(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            mean = self.networks["vae"].encode(inputs["image"]).latent_dist.mean.float()
        return mean + mean.std() * inputs["noise"], mean.new_zeros(())
