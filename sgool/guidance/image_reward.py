"""ImageReward, a BLIP trained on how people rank images (Xu et al. 2023, arXiv 2304.05977; BLIP: arXiv 2201.12086).

Text and image have no space in common here: the text encoder looks at the image by cross-attention, and a head rates
what it has seen. The networks are transformers', 4.30 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgool.errors import SgoolError, brief
from sgool.guidance.clip import OPENAI_MEAN, OPENAI_STD
from sgool.guidance.clip_loading import State
from sgool.guidance.clip_weights import on_hub
from sgool.guidance.critic import Critic, CriticKind, Role
from sgool.guidance.half import in_precision, precision
from sgool.guidance.prompt import clean_prompt
from sgool.guidance.views import center_cropped
from sgool.weights import Weight, ensure, load_state_dict

REPOSITORY = "THUDM/ImageReward"
VOCABULARY = (
    "google-bert/bert-base-uncased",
    "vocab.txt",
    "bert-base-uncased-vocab.txt",
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)

CONTEXT = 35
"""Tokens of a text, start and end included; the rest is cut off."""

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's values over the authors' data, which scores are standardized by."""

HEADS = (16, 12)
"""Attention heads of the image encoder and of the text encoder, which the weights do not tell."""

IMAGE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
"""The image encoder's parts as published, and in transformers; but for its blocks."""

BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""The same of a block."""


class ImageReward(Critic):
    """Score: the head's value, standardized: 0 for a usual image, 1 for one that is better by a standard deviation.

    Features [N, tokens, D] are the image encoder's tokens. image, text: transformers' BlipVisionModel and
    BlipTextModel. head: from the text's first token to a value. tokenizer: `text -> ` what has `ids` and
    `attention_mask`.
    """

    unit = "reward"

    def __init__(self, image: nn.Module, text: nn.Module, head: nn.Module, tokenizer: Any) -> None:
        self.image, self.text, self.head = (each.eval().requires_grad_(False) for each in (image, text, head))
        self.tokenizer = tokenizer
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        config: Any = image.config
        size = int(config.image_size)
        self.image_size = size, size
        self._mean, self._std = (torch.tensor(each).view(1, 3, 1, 1) for each in (OPENAI_MEAN, OPENAI_STD))

    def to(self, device: torch.device, half: bool | None = None) -> ImageReward:
        self.device = torch.device(device)
        if half is not None:
            parameters = sum(each.numel() for network in (self.image, self.text) for each in network.parameters())
            self.dtype = precision(parameters, self.device, half)
        for network in (self.image, self.text):
            network.to(self.device, self.dtype)
        self.head.to(self.device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def resize(self, images: Tensor) -> Tensor:
        return center_cropped(images, self.image_size)

    def blocks(self) -> Iterable[nn.Module]:
        image: Any = self.image
        text: Any = self.text
        return [*image.encoder.layers, *text.encoder.layer]

    def encode_image(self, images: Tensor) -> Tensor:
        pixels = self.resize(images.to(self.device, torch.float32))

        def tokens(pixels: Tensor) -> Tensor:
            found: Tensor = self.image(pixel_values=pixels).last_hidden_state
            return found

        return in_precision(tokens, (pixels - self._mean) / self._std, self.dtype)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        encoded = [self.tokenizer.encode(clean_prompt(text)) for text in texts]
        ids, mask = (
            torch.tensor([getattr(each, name) for each in encoded], device=self.device)
            for name in ("ids", "attention_mask")
        )

        def first(features: Tensor) -> Tensor:
            seen = torch.ones(features.shape[:2], dtype=torch.long, device=self.device)
            found: Tensor = self.text(
                input_ids=ids, attention_mask=mask, encoder_hidden_states=features, encoder_attention_mask=seen
            ).last_hidden_state
            return found[:, 0]

        value: Tensor = self.head(in_precision(first, features, self.dtype))[:, 0]
        return (value - MEAN) / STD


def build(state: State, vocabulary: Path, heads: tuple[int, int]) -> ImageReward:
    """ImageReward of published weights, its size read off them.

    vocabulary: BERT's, a word piece a line. heads: see `HEADS`. Raises SgoolError where something is missing or has
    another shape.
    """
    from tokenizers import BertWordPieceTokenizer

    try:
        image, text = _image_encoder(_below(state, "blip.visual_encoder."), heads[0]), _text_encoder(state, heads[1])
        head = _head(_below(state, "mlp."))
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    except Exception as error:  # of a name, a shape, or of the libraries
        raise SgoolError(f"These are not the weights of ImageReward: {brief(error)}") from error
    tokenizer.enable_truncation(CONTEXT)
    tokenizer.enable_padding(length=CONTEXT)
    return ImageReward(image, text, head, tokenizer)


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _image_encoder(state: State, heads: int) -> nn.Module:
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(state, r"blocks\.(\d+)\."),
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    return _filled(BlipVisionModel(config), {_in_transformers(name): value for name, value in state.items()})


def _in_transformers(name: str) -> str:
    """A published name of the image encoder's, as transformers has it."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if block:
        return f"encoder.layers.{block[1]}.{BLOCK.get(block[2], block[2])}.{block[3]}"
    part, dot, kind = name.rpartition(".")
    return IMAGE.get(name) or f"{IMAGE.get(part, part)}{dot}{kind}"


def _text_encoder(state: State, heads: int) -> nn.Module:
    """Both have BERT's names here."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    own = _below(state, "blip.text_encoder.")
    words, width = own["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=own["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(own["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_count(own, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=heads,
        max_position_embeddings=len(own["embeddings.position_embeddings.weight"]),
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # which gives it cross-attention; it is called as an encoder
    )
    return _filled(BlipTextModel(config, add_pooling_layer=False), own)


def _head(state: State) -> nn.Module:
    """Linear layers one after another; between them it has dropout, which does nothing after training."""
    layers = []
    for number in sorted({int(name.split(".")[1]) for name in state}):
        weight = state[f"layers.{number}.weight"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": state[f"layers.{number}.bias"].float()})
        layers.append(layer)
    return nn.Sequential(*layers)


def _count(state: State, pattern: str) -> int:
    """The number of blocks whose names fit."""
    return len({match[1] for match in (re.match(pattern, name) for name in state) if match})


def _filled(network: nn.Module, state: State) -> nn.Module:
    """The network with these weights. What the file holds besides is left out, but nothing may be lacking."""
    lacking = {name for name, _ in network.named_parameters()} - set(state)
    if lacking:
        raise SgoolError(f"{sorted(lacking)[0]} is missing")
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return network


def weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """See CriticKind."""
    return on_hub(REPOSITORY, "ImageReward.pt", "ImageReward.pt"), on_hub(*VOCABULARY)


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> ImageReward:
    """See CriticKind."""
    file, words = (ensure(each, models_dir) for each in weights(variant, role))
    with torch.inference_mode(False):
        return build(load_state_dict(file), words, HEADS).to(device)


KIND = CriticKind(
    "what people prefer, for the prompt (ImageReward)",
    load,
    weights=weights,
    licence="Apache-2.0",
    download=1.8,
    memory=0.8,
)
