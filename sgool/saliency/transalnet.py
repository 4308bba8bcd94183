"""TranSalNet, a detector of human fixations (Lou et al., "TranSalNet: Towards perceptually relevant visual saliency
prediction", Neurocomputing 2022, arXiv 2110.03593).

A convolutional backbone gives feature maps at 1/8, 1/16 and 1/32 of the image size. A transformer encoder relates all
positions of each map. A decoder multiplies the maps together from coarse to fine. Learned position embeddings fix the
input to 288x384. Module names match the published checkpoints, because the checkpoints are loaded strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgool.errors import SgoolError, brief
from sgool.saliency.densenet import densenet161
from sgool.saliency.resnet import resnet50
from sgool.weights import Weight, ensure, load_state_dict

CANVAS = (288, 384)
PADDING = 1 / 255  # the published preprocessing pads with 8-bit ones, not zeros
NORM_EPS = 1e-6
# The backbone, the children that give feature maps, and the channels of these maps, from fine to coarse.
VARIANTS: dict[str, tuple[Callable[[], nn.ModuleList], tuple[int, ...], tuple[int, ...]]] = {
    "res": (resnet50, (5, 6, 7), (512, 1024, 2048)),
    "dense": (densenet161, (6, 8, 10), (768, 2112, 2208)),
}
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_KEY = "decoder.TransEncoder1.patch_embeddings.weight"
WEIGHTS = {
    "res": Weight(
        "TranSalNet_Res.pth", _DRIVE.format("14czAAQQcRLGeiddPOM6AaTJTieu6QiHy"), 473, _KEY, (768, 2048, 1, 1)
    ),
    "dense": Weight(
        "TranSalNet_Dense.pth", _DRIVE.format("1JVTYq5UE6Q0OHoOVoXWF5WW5w42jlM1T"), 1115, _KEY, (768, 2208, 1, 1)
    ),
}
"""The published weights of each variant."""

# Output channels of the decoder's seven convolutions; the first one takes 768.
DECODER_CHANNELS = (768, 512, 256, 128, 64, 32, 1)


class _Attention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 64)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x


class _FeedForward(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.attn = _Attention(hidden)
        self.ffn_norm = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.ffn = _FeedForward(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        x = x + self.ffn(self.ffn_norm(x))
        return x


class _Transformer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(_Block(hidden), _Block(hidden))
        self.encoder_norm = nn.LayerNorm(hidden, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder_norm(self.layer(x))
        return x


class _PlaceEncoder(nn.Module):
    """Relates all positions of one feature map: [B, C, h, w] -> [B, hidden, h, w]. h*w is fixed by training."""

    def __init__(self, channels: int, hidden: int, stride: int) -> None:
        super().__init__()
        places = (CANVAS[0] // stride) * (CANVAS[1] // stride)
        self.patch_embeddings = nn.Conv2d(channels, hidden, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, places, hidden))
        self.transformer_encoder = _Transformer(hidden)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embeddings(x).flatten(2).transpose(1, 2) + self.position_embeddings
        related: Tensor = self.transformer_encoder(tokens)
        return related.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


class _Encoder(nn.Module):
    def __init__(self, backbone: nn.ModuleList, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = backbone
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number, child in enumerate(self.encoder):
            x = child(x)
            if number in self.taps:
                features.append(x)
        return features


class _Decoder(nn.Module):
    def __init__(self, fine: int, middle: int, coarse: int) -> None:
        super().__init__()
        self.TransEncoder1 = _PlaceEncoder(coarse, 768, stride=32)
        self.TransEncoder2 = _PlaceEncoder(middle, 768, stride=16)
        self.TransEncoder3 = _PlaceEncoder(fine, 512, stride=8)
        channels = 768
        for number, out in enumerate(DECODER_CHANNELS, start=1):
            setattr(self, f"conv{number}", nn.Conv2d(channels, out, 3, padding=1))
            if number < len(DECODER_CHANNELS):
                setattr(self, f"batchnorm{number}", nn.BatchNorm2d(out))
            channels = out

    def _stage(self, number: int, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"batchnorm{number}")(getattr(self, f"conv{number}")(x)))

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        x = _double(self._stage(1, self.TransEncoder1(coarse)))
        x = _double(self._stage(2, F.relu(x * self.TransEncoder2(middle))))
        x = _double(self._stage(3, F.relu(x * self.TransEncoder3(fine))))
        x = _double(self._stage(4, x))
        x = _double(self._stage(5, x))
        return torch.sigmoid(getattr(self, "conv7")(self._stage(6, x)))  # noqa: B009 (made by setattr above)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class TranSalNet(nn.Module):
    """RGB [B, 3, 288, 384] in [0, 1], *not* ImageNet-normalized -> saliency map [B, 1, 288, 384] in (0, 1).

    `variant` is "res" (ResNet-50) or "dense" (DenseNet-161).
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        backbone, taps, (fine, middle, coarse) = VARIANTS[variant]
        self.encoder = _Encoder(backbone(), taps)
        self.decoder = _Decoder(fine, middle, coarse)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder(*self.encoder(x))
        return x


def letterbox(image: Tensor) -> Tensor:
    """Image [B, 3, H, W] in [0, 1] of any size -> the image centered on a [B, 3, 288, 384] canvas, its aspect kept.

    The image fills the canvas in one direction; its other side is rounded down. Interpolation is bilinear with
    half-pixel centers and no antialiasing, as in training (OpenCV's INTER_LINEAR), but without rounding to 8 bits.
    """
    height, width = image.shape[-2:]
    rows, columns = CANVAS
    if height * columns > width * rows:
        columns = max(1, width * rows // height)
    else:
        rows = max(1, height * columns // width)
    top, left = (CANVAS[0] - rows) // 2, (CANVAS[1] - columns) // 2
    canvas = torch.full((*image.shape[:-2], *CANVAS), PADDING, dtype=image.dtype, device=image.device)
    canvas[..., top : top + rows, left : left + columns] = _bilinear(image, rows, columns)
    return canvas


def unletterbox(saliency: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `letterbox`: map [B, 1, 288, 384] -> [B, 1, height, width], the padding cut away."""
    rows, columns = height, width
    if height * CANVAS[1] > width * CANVAS[0]:
        columns = CANVAS[1] * height // CANVAS[0]
    else:
        rows = CANVAS[0] * width // CANVAS[1]
    top, left = (rows - height) // 2, (columns - width) // 2
    return _bilinear(saliency, rows, columns)[..., top : top + height, left : left + width]


def _bilinear(x: Tensor, rows: int, columns: int) -> Tensor:
    return F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=False)


def build(variant: str, state: Mapping[str, Tensor]) -> TranSalNet:
    """The network with the weights of a state dict, frozen, float32, in eval mode, on the CPU.

    Raises SgoolError if a key is missing or unknown, or a shape differs.
    """
    with torch.device("meta"):  # skips the initialization, because the checkpoint replaces all values
        model = TranSalNet(variant)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SgoolError(f"These weights are not those of TranSalNet ({variant}): {brief(error)}") from error
    return model.float().eval().requires_grad_(False)


def predict(model: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Saliency map [H, W] in (0, 1) of an image [1, 3, H, W] in [0, 1] of any size."""
    height, width = image.shape[-2:]
    return unletterbox(model(letterbox(image)), height, width)[0, 0]


def weights(variant: str) -> tuple[Weight, ...]:
    """The file that a variant needs."""
    return (WEIGHTS[variant],)


def load(variant: str, models_dir: str | Path | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Download the published weights if needed, and return the detector: image [1, 3, H, W] -> map [H, W]."""
    return Predictor(build(variant, load_state_dict(ensure(WEIGHTS[variant], models_dir))).to(device))


class Predictor(nn.Module):
    """`predict` with its network, as a module that can be moved to another device."""

    def __init__(self, network: TranSalNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return predict(self.network, image)
