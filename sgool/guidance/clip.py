"""A frozen CLIP whose image encoder can be differentiated (Radford et al. 2021, arXiv 2103.00020; open_clip's models).

Works with open_clip 2.20 to 3.3. It says where the weights of a name and a tag are published; they are downloaded
here, and read in `clip_loading`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgool.errors import SgoolError, brief
from sgool.guidance.clip_loading import BpeTokenizer, open_model
from sgool.guidance.clip_weights import known_weights, published
from sgool.guidance.critic import CriticKind, EmbeddingCritic, Role
from sgool.guidance.half import in_precision, precision
from sgool.guidance.prompt import clean_prompt, split_prompt
from sgool.weights import Weight, ensure

VARIANTS: dict[Role, str] = {"guide": "ViT-B-32/laion2b_s34b_b79k", "selector": "ViT-B-16/laion2b_s34b_b88k"}
"""The model and the weights that suit each role: two architectures, so their errors differ."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip(EmbeddingCritic):
    """A CLIP model of open_clip, its parameters frozen; embeddings are float32 of unit length.

    Only its image encoder goes to `device`: a run asks the text encoder once, and a GPU has better use for the memory.

    model: has `encode_image` by its `visual`, `encode_text`, `logit_scale` and `visual.image_size`.
    tokenizer: `list of str -> int64 [N, context]`. mean, std: normalization per color channel; by default the model's
    own, else OpenAI's.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.model = model.to(dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.dtype = dtype
        visual: Any = model.visual
        visual.to(device)
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        mean = mean or getattr(visual, "image_mean", None) or OPENAI_MEAN
        std = std or getattr(visual, "image_std", None) or OPENAI_STD
        self._mean = torch.tensor(mean, device=device, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device, dtype=torch.float32).view(1, 3, 1, 1)
        # Tokenizers of Hugging Face count as open_clip calls them: 77, whatever their text tower could take.
        default = 77 if hasattr(tokenizer, "tokenizer") else getattr(model, "context_length", 77)
        self.context_length: int = getattr(tokenizer, "context_length", None) or default
        self._texts: dict[str, Tensor] = {}

    def to(self, device: torch.device | str, half: bool | None = None) -> Clip:
        """This CLIP, its image encoder moved to another device; half: see `Critic`."""
        self.device = torch.device(device)
        visual: Any = self.model.visual
        if half is not None:
            self.dtype = precision(sum(each.numel() for each in visual.parameters()), self.device, half)
        visual.to(self.device, self.dtype)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self._texts.clear()  # they would only ever become more, and are quickly made again
        return self

    def blocks(self) -> Iterable[nn.Module]:
        """The image encoder's, where it is a transformer of open_clip's."""
        return getattr(getattr(self.model.visual, "transformer", None), "resblocks", ())

    def encode_text(self, prompt: str) -> Tensor:
        """The prompt's embedding [D]. WebUI syntax is removed first; text beyond the model's context (77 tokens, start
        and end included) is encoded in parts whose embeddings are averaged."""
        text = clean_prompt(prompt)
        if text not in self._texts:
            parts = self.split(text)
            # Out of inference mode, or the cached tensor could not take part in a later gradient.
            with torch.inference_mode(False), torch.no_grad():
                tokens = self.tokenizer(parts).to(self.model.logit_scale.device)
                encoded = self.model.encode_text(tokens)  # type: ignore[operator]
                mean = F.normalize(encoded.float(), dim=-1).mean(0)
                self._texts[text] = F.normalize(mean, dim=-1).to(self.device)
        return self._texts[text]

    def split(self, text: str) -> list[str]:
        """The parts of a text that are encoded one by one; what they hold beyond the context is cut off."""
        return split_prompt(text, self._token_counter(), self.context_length - 2)

    def _token_counter(self) -> Callable[[str], int]:
        if hasattr(self.tokenizer, "encode"):
            return lambda text: len(self.tokenizer.encode(text))
        return lambda text: len(self.tokenizer.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings [N, D] of images [N, 3, H, W] in [0, 1], differentiable with respect to the images."""
        pixels = self.resize(images.to(self.device, torch.float32))
        encoded = in_precision(self.model.encode_image, (pixels - self._mean) / self._std, self.dtype)  # type: ignore[arg-type]
        return F.normalize(encoded, dim=-1)


def load_clip(
    name: str,
    tag: str,
    *,
    models_dir: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """The open_clip model `name` with pretrained weights `tag` (or a checkpoint's path), downloaded into `models_dir`.

    Raises SgoolError for an unknown name or tag (naming close ones), and when the weights can be neither downloaded nor
    read.
    """
    known = known_weights(name, tag)
    if known or not Path(tag).is_file():
        weight = published(name, tag)
        path = ensure(weight, models_dir)
    else:
        weight, path = Weight(Path(tag).name, ""), Path(tag)
    # Newer versions say which weights were trained with QuickGELU; older ones build OpenAI's so unasked.
    quick = bool(known.get("quick_gelu") or tag.lower() == "openai")
    model, tokenizer = open_model(name, path, program=weight.pins(path), quick=quick)
    return Clip(model, tokenizer, device=device, dtype=dtype, mean=known.get("mean"), std=known.get("std"))


def load_clip_folder(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Clip:
    """A CLIP from a folder in open_clip's format: open_clip_config.json, open_clip_model.safetensors and bpe.txt.gz.

    The merges may lie one folder up, shared by several models. Half precision weights are cast to `dtype`.
    Raises SgoolError when a file is missing or they do not fit together.
    """
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from safetensors.torch import load_file

    folder = Path(folder)
    own, shared = folder / "bpe.txt.gz", folder.parent / "bpe.txt.gz"
    merges = shared if shared.is_file() and not own.is_file() else own
    config_path, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for path in (config_path, weights, merges):
        if not path.is_file():
            raise SgoolError(f"The CLIP folder {folder} is incomplete: {path.name} is missing.")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        with torch.inference_mode(False):
            model = open_clip.CLIP(**config["model_cfg"])
            model.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        tokenizer = BpeTokenizer(SimpleTokenizer(bpe_path=str(merges)), model.context_length)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise SgoolError(f"The CLIP in {folder} could not be loaded: {brief(error)}") from error
    if len(tokenizer.bpe.encoder) > model.vocab_size:
        raise SgoolError(
            f"The merges of {merges} make {len(tokenizer.bpe.encoder)} tokens, but the CLIP in {folder} knows only "
            f"{model.vocab_size}."
        )
    normalize = config.get("preprocess_cfg", {})
    return Clip(model, tokenizer, device=device, dtype=dtype, mean=normalize.get("mean"), std=normalize.get("std"))


def check_variant(variant: str) -> None:
    """Raises SgoolError unless the variant is empty or MODEL/WEIGHTS in plain names, which no path can be."""
    if variant and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", variant):
        raise SgoolError(
            f"A CLIP is named clip:MODEL/WEIGHTS (letters, digits and . _ - only), such as clip:ViT-L-14/openai, "
            f"not clip:{variant}."
        )


def weights(variant: str, role: Role) -> tuple[Weight, ...]:
    """See CriticKind. Weights must be among open_clip's own: a name it does not know would be taken for a file."""
    check_variant(variant)
    return (published(*(variant or VARIANTS[role]).split("/")),)


def network(variant: str, role: Role) -> str:
    """See CriticKind. open_clip takes a tag in any case, and has some models once more with the name of QuickGELU."""
    name, tag = (variant or VARIANTS[role]).split("/")
    return f"{name.removesuffix('-quickgelu')}/{tag.lower().replace('-', '_')}"


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Clip:
    """See CriticKind."""
    weights(variant, role)
    name, tag = (variant or VARIANTS[role]).split("/")
    return load_clip(name, tag, models_dir=models_dir, device=device)


KIND = CriticKind(
    "how well the image fits the prompt; any model of open_clip",
    load,
    check_variant,
    weights,
    network,
    licence="MIT",
    download=1.2,
    memory=0.3,
)
