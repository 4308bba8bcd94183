"""Step 5: assemble the embedded model from the trained parts. ``python -m sgool.lab.training.assemble --work WORK``

Writes float16 safetensors in the layout of a diffusers Stable Diffusion folder. Old and new versions of transformers
can read the names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from sgool.lab.training.diffusion import SCHEDULE
from sgool.tiny import MODEL

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.25.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

TEXT_CONFIG = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "projection_dim",
    "vocab_size",
)
"""The keys to keep of the text encoder's configuration. Newer versions of transformers write more."""


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def assemble(parts: dict[str, Any], scale: float, folder: Path) -> None:
    """Write a diffusers folder, in which ``tokenizer`` is already.

    parts: vae, unet and text_encoder. scale: what the latents are multiplied with.
    """
    vae = parts["vae"]
    vae.register_to_config(scaling_factor=scale)
    vae.half().save_pretrained(folder / "vae")
    parts["unet"].half().save_pretrained(folder / "unet")
    for path in (folder / "vae" / "config.json", folder / "unet" / "config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # the training folder
        write_json(path, config)

    text = parts["text_encoder"].state_dict()
    named = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in text.items()}
    named = {key: value.half().contiguous() for key, value in named.items() if "position_ids" not in key}
    (folder / "text_encoder").mkdir(parents=True, exist_ok=True)
    save_file(named, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    config = parts["text_encoder"].config.to_dict() | {"architectures": ["CLIPTextModel"]}
    tokens = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    config |= {"bos_token_id": tokens["<|startoftext|>"], "eos_token_id": tokens["<|endoftext|>"]}
    write_json(folder / "text_encoder" / "config.json", {key: config[key] for key in TEXT_CONFIG if key in config})
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULE})
    write_json(folder / "model_index.json", INDEX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    parts = {"vae": AutoencoderKL.from_pretrained(work / "vae")}
    parts |= {"unet": UNet2DConditionModel.from_pretrained(work / "unet")}
    parts |= {"text_encoder": CLIPTextModel.from_pretrained(work / "text_encoder")}
    assemble(parts, json.loads((work / "scale.json").read_text()), MODEL)
    size = sum(path.stat().st_size for path in MODEL.parent.rglob("*") if path.is_file())
    print(f"size of everything embedded: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
