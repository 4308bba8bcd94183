"""LeGrad (Bousselham et al. 2024, arXiv 2404.03214): what the attention of each layer does for the score of a text.

With A_l the attention [heads, queries, keys] of layer l, and s_l the score of the text for the pooled output of that
layer alone, taken through the last norm and projection as if it were the network's, the map over the patches is

    sum_l mean_heads,queries relu(d s_l / d A_l).

Of A_l only the layer's own use counts, so each layer is computed again by itself, and nothing goes back further.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgool.errors import SgoolError

LAYERS = 12
"""The last ones that count, at most."""


def blocks_of(visual: Any) -> list[Any]:
    """The blocks of an image encoder. Raises SgoolError for one that is no vision transformer of open_clip."""
    blocks = list(getattr(getattr(visual, "transformer", None), "resblocks", ()))
    plain = all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
    if not blocks or not plain or getattr(visual, "attn_pool", None) is not None or visual.proj is None:
        raise SgoolError("LeGrad needs a CLIP with a vision transformer of open_clip.")
    return blocks


def maps(clip: Any, parts: Sequence[Tensor], directions: Tensor) -> Tensor:
    """Maps [T, N, h, w] of N parts [1, 3, h, w] of an image for T directions [T, D] of a text."""
    visual = clip.model.visual
    blocks = blocks_of(visual)[-LAYERS:]
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach())) for block in blocks]
    try:
        with torch.no_grad():
            clip.encode(parts)
    finally:
        for hook in hooks:
            hook.remove()
    every = []
    for block, given in zip(blocks, inputs, strict=True):
        first = getattr(block.attn, "batch_first", False)
        x = given if first else given.transpose(0, 1)
        every.append(_layer(visual, _float(block), x.float(), directions))
    total = torch.stack(every).sum(0)
    return total.view(*total.shape[:2], *visual.grid_size)


def _float(block: Any) -> Any:
    """The block in float32, because half precision would lose the gradient."""
    return block if next(block.parameters()).dtype == torch.float32 else copy.deepcopy(block).float()


def _layer(visual: Any, block: Any, x: Tensor, directions: Tensor) -> Tensor:
    """The layer's map [T, N, patches]. x: its input [N, tokens, width]."""
    attn = block.attn
    count, tokens, width = x.shape
    with torch.enable_grad():
        joined = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        split = joined.detach().view(count, tokens, 3, attn.num_heads, width // attn.num_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * (width // attn.num_heads) ** -0.5).softmax(-1).requires_grad_()
        mixed = (weights @ value).transpose(1, 2).reshape(count, tokens, width)
        y = x + block.ls_1(attn.out_proj(mixed))
        y = y + block.ls_2(block.mlp(block.ln_2(y)))
        scores = F.normalize(_pooled(visual, y) @ visual.proj.float(), dim=-1) @ directions.T
        every = []
        for number in range(len(directions)):
            last = number == len(directions) - 1
            (gradient,) = torch.autograd.grad(scores[:, number].sum(), weights, retain_graph=not last)
            every.append(gradient.clamp_min(0).mean((1, 2))[:, 1:])
    return torch.stack(every)


def _pooled(visual: Any, y: Tensor) -> Any:
    """The pooled output [N, width] of a layer: of the class token, or the mean where the network takes that."""
    norm = _float(visual.ln_post)
    if getattr(visual, "global_average_pool", False):  # open_clip 2.20
        return norm(y.mean(1))
    if getattr(visual, "pool_type", "tok") == "avg":
        after = getattr(visual, "final_ln_after_pool", False)
        return norm(y[:, 1:].mean(1)) if after else norm(y)[:, 1:].mean(1)
    return norm(y[:, 0])
