"""open_clip's models, their weights read by `sgool.weights`: no code of a file is run, and safetensors are known.

Works with open_clip 2.20 to 3.3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgool.download import unreachable
from sgool.errors import SgoolError, brief
from sgool.guidance.clip_weights import endpoint
from sgool.weights import load_state_dict

State = dict[str, Tensor]
"""Weights by their names."""


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


def open_model(
    name: str,
    path: Path,
    *,
    program: bool = False,
    quick: bool = False,
    rename: Callable[[State], State] = dict,
) -> tuple[nn.Module, Any]:
    """open_clip's model `name` with the weights of a file, and its tokenizer.

    program: see `load_state_dict`. quick: whether it was trained with QuickGELU. rename: gives the file's weights
    open_clip's names. Raises SgoolError for a file that does not fit, and a tokenizer that cannot be had.
    """
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    _check_hub(name)
    options = {"force_quick_gelu": True} if quick else {}
    try:
        with torch.inference_mode(False), _own_reading(program, rename):
            model = open_clip.create_model(name, pretrained=str(path), pretrained_hf=False, **options)
            tokenizer = open_clip.get_tokenizer(name)
    except SgoolError:
        raise
    except Exception as error:  # of a shape that does not fit, or of the hub's libraries
        raise SgoolError(f"The CLIP {name} cannot be loaded from {path}: {brief(error)}") from error
    if not hasattr(tokenizer, "encode") and not hasattr(tokenizer, "tokenizer"):
        tokenizer = BpeTokenizer(SimpleTokenizer())  # open_clip 2.20 gives a bare function
    return model, tokenizer


_reading = threading.Lock()


@contextmanager
def _own_reading(program: bool, rename: Callable[[State], State]) -> Iterator[None]:
    """Meanwhile open_clip reads files with `sgool.weights`.

    Before 2.28 it runs what a file holds besides tensors, and knows no safetensors. What it then does with the tensors
    differs between its versions, and is left to it.
    """
    from open_clip import factory

    def read(path: str, *_: Any, **__: Any) -> State:
        state = rename(load_state_dict(path, program=program))
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
