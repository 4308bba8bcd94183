"""PickScore, a CLIP trained on which of two images people pick (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgool.errors import SgoolError
from sgool.guidance.clip_loading import State, open_model
from sgool.guidance.clip_weights import on_hub
from sgool.guidance.critic import CriticKind, Role
from sgool.guidance.hps import Preference
from sgool.guidance.views import center_cropped
from sgool.weights import Weight, ensure

MODEL = "ViT-H-14"
"""Its architecture, by open_clip's name."""

REPOSITORY = "yuvalkirstain/PickScore_v1"

TOWERS = {
    "vision_model": ("visual.", {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
    }),
    "text_model": ("", {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
    }),
}  # fmt: skip
"""By the tower's name in transformers: its prefix in open_clip, and the two names of what is no block."""

BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""The parts of a block in transformers and in open_clip, but for query, key and value, which open_clip joins."""


class PickScore(Preference):
    """Score: the cosine times the model's own scale, near 20. The middle square of the image counts."""

    unit = "pickscore"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.scale = float(model.logit_scale.exp())

    def resize(self, images: Tensor) -> Tensor:
        return center_cropped(images, self.image_size)

    def rate(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return self.scale * super().rate(features, texts)

    def table(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        return self.scale * super().table(features, texts)


def to_open_clip(state: State) -> State:
    """The weights of transformers' CLIPModel under open_clip's names. Raises SgoolError for those that are none."""
    found: State = {"logit_scale": state["logit_scale"]} if "logit_scale" in state else {}
    for name, value in state.items():
        tower, _, rest = name.partition(".")
        block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", rest)
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = value.T.contiguous()
        elif tower not in TOWERS or name.endswith("position_ids"):
            continue
        elif block is None:
            prefix, names = TOWERS[tower]
            known = next((each for each in names if rest == each or rest.startswith(f"{each}.")), None)
            if known is None:
                raise SgoolError(f"These are not the weights of a CLIPModel: {name} is unknown.")
            found[f"{prefix}{names[known]}{rest.removeprefix(known)}"] = value
        elif block[2] in BLOCK:
            found[f"{TOWERS[tower][0]}transformer.resblocks.{block[1]}.{BLOCK[block[2]]}.{block[3]}"] = value
        elif block[2] == "self_attn.q_proj":
            joined = [state[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            found[f"{TOWERS[tower][0]}transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"] = torch.cat(joined)
    return found


def weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """See CriticKind."""
    plain = on_hub(REPOSITORY, "pytorch_model.bin", "PickScore_v1.bin")
    return (replace(on_hub(REPOSITORY, "model.safetensors", "PickScore_v1.safetensors"), instead=plain),)


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> PickScore:
    """See CriticKind."""
    path = ensure(weights(variant, role)[0], models_dir)
    return PickScore(*open_model(MODEL, path, rename=to_open_clip), device=device)


KIND = CriticKind(
    "what people pick, for the prompt (PickScore)",
    load,
    weights=weights,
    licence="MIT",
    download=3.9,
    memory=1.2,
)
