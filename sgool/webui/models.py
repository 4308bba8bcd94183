"""The guides of the last run, kept for the next; off the GPU while nothing runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import devices, paths
from torch import nn

from sgool.errors import SgoolError
from sgool.generate import Guides, load_guides
from sgool.webui import progress

_KEYS = ("clip_model", "clip_tag", "selector_model", "selector_tag", "saliency", "method")
_last: tuple[tuple[Any, ...], Guides] | None = None


def models_dir() -> Path:
    return Path(paths.models_path) / "sgool"


@contextmanager
def guides(values: Mapping[str, Any]) -> Iterator[Guides]:
    """The CLIPs and the detector of these settings on the WebUI's device; weights that are missing are downloaded.

    Raises SgoolError where that fails.
    """
    global _last
    key = (*(values[name] for name in _KEYS), values["saliency_weight"] > 0)
    if _last is None or _last[0] != key:
        _last = None  # the old ones may go before the new ones come
        _check(values)
        progress.tell("SGOOL loads its networks; those that are missing are downloaded first")
        loaded = load_guides(values, models_dir(), devices.cpu)
        for clip in (loaded.clip, loaded.selector):
            _plain_gelus(clip.model)
        _last = key, loaded
    loaded = _last[1]
    try:
        yield loaded.to(devices.device)
    finally:
        loaded.to(devices.cpu)


def _check(values: Mapping[str, Any]) -> None:
    """A tag that open_clip does not know would be taken for the path of a file; no request may name one."""
    import open_clip

    for model, tag in (("clip_model", "clip_tag"), ("selector_model", "selector_tag")):
        name = values[model]
        if name == "embedded":
            continue
        if name not in open_clip.list_models():
            raise SgoolError(f"{model}: open_clip has no model {name!r}.")
        known = open_clip.list_pretrained_tags_by_model(name)
        if values[tag] not in known:
            raise SgoolError(f"{tag}: {name} has no weights {values[tag]!r}; some that it has: {', '.join(known[:5])}.")


def _plain_gelus(network: nn.Module) -> None:
    """With a GPU the WebUI gives every CLIP of open_clip its own GELU, for text encoders of Stable Diffusion 2: under
    --upcast-sampling it returns the UNet's half precision, which a CLIP in float32 cannot take."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.GELU(child.approximate))
