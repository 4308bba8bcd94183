"""A frozen CLIP whose image encoder can be differentiated (Radford et al. 2021, arXiv 2103.00020; open_clip's models).

Works with open_clip 2.20 to 3.3. It says where the weights of a name and a tag are published; they are downloaded and
read here.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgool.download import unreachable
from sgool.errors import SgoolError, brief
from sgool.guidance.clip_weights import endpoint, known_weights, published
from sgool.guidance.critic import CriticKind, EmbeddingCritic, Role
from sgool.guidance.prompt import clean_prompt, split_prompt
from sgool.weights import Weight, ensure, load_state_dict

VARIANTS: dict[Role, str] = {"guide": "ViT-B-32/laion2b_s34b_b79k", "selector": "ViT-B-16/laion2b_s34b_b88k"}
"""The model and the weights that suit each role: two architectures, so their errors differ."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class BpeTokenizer:
    """CLIP's byte pair encoding for any context length: `texts -> int64 [N, context]`, padded with zeros.

    open_clip 2.20 offers its own merges at 77 tokens only, so the call is written out here.
    """

    def __init__(self, bpe: Any, context_length: int = 77) -> None:
        self.bpe = bpe
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        """The token numbers of `text`, without start and end."""
        tokens: list[int] = self.bpe.encode(text)
        return tokens

    def __call__(self, texts: Sequence[str]) -> Tensor:
        start, end = self.bpe.encoder["<start_of_text>"], self.bpe.encoder["<end_of_text>"]
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            ids = [start, *self.encode(text)[: self.context_length - 2], end]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


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

    def to(self, device: torch.device | str) -> Clip:
        """This CLIP, its image encoder moved to another device."""
        self.device = torch.device(device)
        self.model.visual.to(self.device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self._texts.clear()  # they would only ever become more, and are quickly made again
        return self

    def encode_text(self, prompt: str) -> Tensor:
        """The prompt's embedding [D]. WebUI syntax is removed first; text beyond the model's context (77 tokens, start
        and end included) is encoded in parts whose embeddings are averaged."""
        text = clean_prompt(prompt)
        if text not in self._texts:
            parts = split_prompt(text, self._token_counter(), self.context_length - 2)
            # Out of inference mode, or the cached tensor could not take part in a later gradient.
            with torch.inference_mode(False), torch.no_grad():
                tokens = self.tokenizer(parts).to(self.model.logit_scale.device)
                encoded = self.model.encode_text(tokens)  # type: ignore[operator]
                mean = F.normalize(encoded.float(), dim=-1).mean(0)
                self._texts[text] = F.normalize(mean, dim=-1).to(self.device)
        return self._texts[text]

    def _token_counter(self) -> Callable[[str], int]:
        if hasattr(self.tokenizer, "encode"):
            return lambda text: len(self.tokenizer.encode(text))
        return lambda text: len(self.tokenizer.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings [N, D] of images [N, 3, H, W] in [0, 1], differentiable with respect to the images."""
        pixels = self.resize(images.to(self.device, torch.float32))
        pixels = ((pixels - self._mean) / self._std).to(self.dtype)
        return F.normalize(self.model.encode_image(pixels).float(), dim=-1)  # type: ignore[operator]


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
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    known = known_weights(name, tag)
    if known or not Path(tag).is_file():
        weight = published(name, tag)
        path = ensure(weight, models_dir)
    else:
        weight, path = Weight(Path(tag).name, ""), Path(tag)
    _check_hub(name)
    # Newer versions say which weights were trained with QuickGELU; older ones build OpenAI's so unasked.
    quick = {"force_quick_gelu": True} if known.get("quick_gelu") or tag.lower() == "openai" else {}
    try:
        with torch.inference_mode(False), _own_reading(weight):
            model = open_clip.create_model(name, pretrained=str(path), pretrained_hf=False, **quick)
            tokenizer = open_clip.get_tokenizer(name)
    except SgoolError:
        raise
    except Exception as error:  # of a shape that does not fit, or of the hub's libraries
        raise SgoolError(f"The CLIP {name} cannot be loaded from {path}: {brief(error)}") from error
    if not hasattr(tokenizer, "encode") and not hasattr(tokenizer, "tokenizer"):
        tokenizer = BpeTokenizer(SimpleTokenizer())  # open_clip 2.20 gives a bare function
    return Clip(model, tokenizer, device=device, dtype=dtype, mean=known.get("mean"), std=known.get("std"))


_reading = threading.Lock()


@contextmanager
def _own_reading(weight: Weight) -> Iterator[None]:
    """Meanwhile open_clip reads files with `sgool.weights`.

    Before 2.28 it runs what a file holds besides tensors, and knows no safetensors. What it then does with the tensors
    differs between its versions, and is left to it.
    """
    from open_clip import factory

    def read(path: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        state = load_state_dict(path, program=weight.pins(Path(path)))
        for key in ("input_resolution", "context_length", "vocab_size"):  # in OpenAI's archives, and no weights
            state.pop(key, None)
        return {key.removeprefix("module."): value for key, value in state.items()}

    with _reading:
        theirs = factory.load_state_dict
        factory.load_state_dict = read
        try:
            yield
        finally:
            factory.load_state_dict = theirs


def _check_hub(name: str) -> None:
    """Some models have a tokenizer from the hub, which the hub's own library downloads.

    That takes a minute to find that there is no network. This raises SgoolError within seconds.
    """
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    text = open_clip.get_model_config(name)["text_cfg"]
    for repository in {text[key] for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key)}:
        files = ("tokenizer_config.json", "tokenizer.json", "config.json")
        if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
            continue
        for reason in unreachable([endpoint()]).values():
            raise SgoolError(
                f"The CLIP {name} has the tokenizer of {repository} on the Hugging Face hub, which is not here "
                f"({reason}): connect to the network and try again, or choose another CLIP."
            )


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


def load(variant: str, role: Role, models_dir: Path, device: torch.device) -> Clip:
    """See CriticKind."""
    weights(variant, role)
    name, tag = (variant or VARIANTS[role]).split("/")
    return load_clip(name, tag, models_dir=models_dir, device=device)


KIND = CriticKind("CLIP, how well the image fits the prompt; any model of open_clip", load, check_variant, weights)
