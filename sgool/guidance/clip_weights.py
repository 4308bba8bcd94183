"""Where open_clip's weights are published. Nothing here asks the network."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sgool.errors import SgoolError
from sgool.weights import Weight

HUB_FILE = "open_clip_pytorch_model.bin"
HUB_SAFE_FILE = "open_clip_model.safetensors"
"""What a repository on the Hugging Face hub calls its weights where open_clip names the repository alone."""

SUMS = {
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", HUB_SAFE_FILE): (
        "ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6"
    ),
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", HUB_FILE): (
        "1bd3c7172de5b207ceac554f5ab5266166f3b9baccc9af5989bc801016d080ad"
    ),
}
"""SHA-256 sums that the hub's pages publish, by repository and file; of others its server tells them."""


def published(name: str, tag: str) -> Weight:
    """The weights `tag` of open_clip's model `name`: plain tensors where they are published so, else what there is.

    Raises SgoolError for an unknown name or tag, naming close ones.
    """
    known = known_weights(name, tag)
    if not known:
        from open_clip import list_pretrained_tags_by_model

        tags = list_pretrained_tags_by_model(name)
        raise SgoolError(f"The CLIP model {name} has no pretrained weights {tag!r}{_closest(tag, tags)}.")
    found: list[Weight] = []
    if known.get("hf_hub"):
        repository, file = posixpath.split(known["hf_hub"])
        for each in _hub_files(file or HUB_FILE):
            own = f"{name}_{tag.lower().replace('-', '_')}{posixpath.splitext(each)[1]}"
            url = f"{endpoint()}/{repository}/resolve/main/{each}"
            found.append(Weight(own, url, sha256=SUMS.get((repository, each), ""), hub=(repository, each)))
    if known.get("url"):
        found.append(Weight(posixpath.basename(known["url"]), known["url"], sha256=_sum_in(known["url"])))
    weight = found.pop()
    while found:
        weight = replace(found.pop(), instead=weight)
    return weight


def _hub_files(file: str) -> list[str]:
    """The file, and before it the one that newer versions of open_clip take instead."""
    if file == HUB_FILE:
        return [HUB_SAFE_FILE, file]
    stem, suffix = posixpath.splitext(file)
    return [f"{stem}.safetensors", file] if suffix in (".bin", ".pth") else [file]


def _sum_in(url: str) -> str:
    """The SHA-256 that OpenAI's addresses hold, or its first digits, which open_clip's own hold; else ""."""
    match = re.search(r"/([0-9a-f]{64})/[^/]+$", url) or re.search(r"/mlfoundations/.*-([0-9a-f]{8})\.[a-z]+$", url)
    return match[1] if match else ""


def known_weights(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a model's weights; {} for an unknown tag. Raises SgoolError for an unknown model."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if name not in open_clip.list_models():
        raise SgoolError(f"open_clip has no CLIP model named {name!r}{_closest(name, open_clip.list_models())}.")
    known: dict[str, Any] = get_pretrained_cfg(name, tag)
    return known


def endpoint() -> str:
    """The hub's address, or that of the mirror which HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def on_hub(repository: str, file: str, own: str, sha256: str = "") -> Weight:
    """A file on the Hugging Face hub, and its name in the models folder."""
    return Weight(own, f"{endpoint()}/{repository}/resolve/main/{file}", sha256=sha256, hub=(repository, file))


def _closest(word: str, choices: Sequence[str]) -> str:
    names = {choice.lower(): choice for choice in choices}
    close = [names[key] for key in difflib.get_close_matches(word.lower(), names, n=4, cutoff=0.4)]
    listed = close or list(choices)[:4]
    return f"; the closest known are {', '.join(listed)}" if listed else ""
