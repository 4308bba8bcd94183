"""A small Stable Diffusion 1.5 with random weights, for hosts that recognize a checkpoint by the shapes of its tensors.

Forge and reForge build only networks of 320 channels that read 768 numbers a token, with the full text encoder and
autoencoder. So the UNet has two levels of one block each, 44 million parameters, and the file has 480 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NAME = "sgool-random.safetensors"
CONTROLNET = "sgool-controlnet.safetensors"
CHANNELS, CONTEXT, TIME = 320, 768, 1280
VAE_CHANNELS = (128, 256, 512, 512)
TEXT_LAYERS, TEXT_TOKENS, TEXT_LENGTH = 12, 49408, 77

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write(folder: Path) -> Path:
    """The checkpoint in float16, and where it is."""
    path = folder / NAME
    generator = torch.Generator().manual_seed(0)
    parts = {
        "model.diffusion_model": _unet(),
        "first_stage_model": _autoencoder(),
        "cond_stage_model.transformer.text_model": _text_encoder(),
    }
    save_file({name: tensor for part, all_ in parts.items() for name, tensor in _made(part, all_, generator)}, path)
    return path


def write_controlnet(folder: Path) -> Path:
    """A ControlNet for it in float16, and where it is: the first half of a UNet, and what it takes in and gives."""
    path = folder / CONTROLNET
    c, generator = CHANNELS, torch.Generator().manual_seed(3)
    seen = (3, 16, 16, 32, 32, 96, 96, 256, c)
    parts = [(name, shape) for name, shape in _unet() if not name.startswith(("output_blocks", "out."))]
    for number, (inner, outer) in enumerate(itertools.pairwise(seen)):
        parts += _layer(f"input_hint_block.{2 * number}", outer, inner, 3, 3)
    for name in (*(f"zero_convs.{number}.0" for number in range(4)), "middle_block_out.0"):
        parts += _layer(name, c, c, 1, 1)
    save_file(dict(_made("control_model", iter(parts), generator)), path)
    return path


def vary(path: Path, name: str, seed: int, channels: int = 4) -> Path:
    """Another checkpoint beside this one, with another UNet. channels: that it sees; 9 are those of inpainting."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path) | dict(_made("model.diffusion_model", _unet(channels), generator))
    save_file(tensors, path.with_name(name))
    return path.with_name(name)


def _made(part: str, shapes: Shapes, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in shapes:
        yield f"{part}.{name}", _random(name, shape, generator)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Weights that keep the scale of what they multiply, biases that are small, norms that only normalize.

    As in a trained autoencoder the encoder is sure of its latent: of 8 channels, 4 are the logarithm of its variance.
    """
    if name == "quant_conv.weight":
        return torch.cat([_normal((4, *shape[1:]), 0.3, generator), torch.zeros(4, *shape[1:]).half()])
    if name == "quant_conv.bias":
        return torch.tensor(4 * [0.0] + 4 * [-20.0]).half()
    if len(shape) == 1:
        return torch.ones(shape).half() if name.endswith("weight") else _normal(shape, 0.02, generator)
    if "embedding" in name:
        return _normal(shape, 0.3, generator)
    return _normal(shape, prod(shape[1:]) ** -0.5, generator)


def _normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(shape, generator=generator) * scale).half()


def _layer(name: str, *shape: int) -> Shapes:
    """A linear layer [out, in], a convolution [out, in, height, width], or a norm [channels], with a bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _unet(channels: int = 4) -> Shapes:
    c = CHANNELS
    yield from _layer("time_embed.0", TIME, c)
    yield from _layer("time_embed.2", TIME, TIME)
    yield from _layer("input_blocks.0.0", c, channels, 3, 3)
    for number, block in enumerate(("rt", "d", "rt"), 1):
        yield from _block(f"input_blocks.{number}", block, c)
    yield from _block("middle_block", "rtr", c)
    for number, block in enumerate(("rt", "rtu", "rt", "rt")):
        yield from _block(f"output_blocks.{number}", block, 2 * c)
    yield from _layer("out.0", c)
    yield from _layer("out.2", 4, c, 3, 3)


def _block(name: str, parts: str, inner: int) -> Shapes:
    """parts: r is a residual block, t a transformer, d halves the size, u doubles it."""
    for number, part in enumerate(parts):
        at = f"{name}.{number}"
        if part == "r":
            yield from _residual(at, inner)
        elif part == "t":
            yield from _transformer(at)
        else:
            yield from _layer(f"{at}.{'op' if part == 'd' else 'conv'}", CHANNELS, CHANNELS, 3, 3)


def _residual(name: str, inner: int) -> Shapes:
    c = CHANNELS
    yield from _layer(f"{name}.in_layers.0", inner)
    yield from _layer(f"{name}.in_layers.2", c, inner, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", c, TIME)
    yield from _layer(f"{name}.out_layers.0", c)
    yield from _layer(f"{name}.out_layers.3", c, c, 3, 3)
    if inner != c:
        yield from _layer(f"{name}.skip_connection", c, inner, 1, 1)


def _transformer(name: str) -> Shapes:
    c = CHANNELS
    yield from _layer(f"{name}.norm", c)
    yield from _layer(f"{name}.proj_in", c, c, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, seen in (("attn1", c), ("attn2", CONTEXT)):
        yield f"{block}.{attention}.to_q.weight", (c, c)
        yield f"{block}.{attention}.to_k.weight", (c, seen)
        yield f"{block}.{attention}.to_v.weight", (c, seen)
        yield from _layer(f"{block}.{attention}.to_out.0", c, c)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * c, c)
    yield from _layer(f"{block}.ff.net.2", c, 4 * c)
    for number in (1, 2, 3):
        yield from _layer(f"{block}.norm{number}", c)
    yield from _layer(f"{name}.proj_out", c, c, 1, 1)


def _autoencoder() -> Shapes:
    top = VAE_CHANNELS[-1]
    yield from _layer("encoder.conv_in", VAE_CHANNELS[0], 3, 3, 3)
    inner = VAE_CHANNELS[0]
    for level, outer in enumerate(VAE_CHANNELS):
        for number in range(2):
            yield from _vae_residual(f"encoder.down.{level}.block.{number}", inner, outer)
            inner = outer
        if level < len(VAE_CHANNELS) - 1:
            yield from _layer(f"encoder.down.{level}.downsample.conv", outer, outer, 3, 3)
    yield from _vae_middle("encoder.mid", top)
    yield from _layer("encoder.norm_out", top)
    yield from _layer("encoder.conv_out", 8, top, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    yield from _layer("decoder.conv_in", top, 4, 3, 3)
    yield from _vae_middle("decoder.mid", top)
    inner = top
    for level, outer in reversed(list(enumerate(VAE_CHANNELS))):
        for number in range(3):
            yield from _vae_residual(f"decoder.up.{level}.block.{number}", inner, outer)
            inner = outer
        if level > 0:
            yield from _layer(f"decoder.up.{level}.upsample.conv", outer, outer, 3, 3)
    yield from _layer("decoder.norm_out", inner)
    yield from _layer("decoder.conv_out", 3, inner, 3, 3)


def _vae_residual(name: str, inner: int, outer: int) -> Shapes:
    yield from _layer(f"{name}.norm1", inner)
    yield from _layer(f"{name}.conv1", outer, inner, 3, 3)
    yield from _layer(f"{name}.norm2", outer)
    yield from _layer(f"{name}.conv2", outer, outer, 3, 3)
    if inner != outer:
        yield from _layer(f"{name}.nin_shortcut", outer, inner, 1, 1)


def _vae_middle(name: str, channels: int) -> Shapes:
    yield from _vae_residual(f"{name}.block_1", channels, channels)
    yield from _layer(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.attn_1.{part}", channels, channels, 1, 1)
    yield from _vae_residual(f"{name}.block_2", channels, channels)


def _text_encoder() -> Shapes:
    c = CONTEXT
    yield "embeddings.token_embedding.weight", (TEXT_TOKENS, c)
    yield "embeddings.position_embedding.weight", (TEXT_LENGTH, c)
    for number in range(TEXT_LAYERS):
        layer = f"encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{part}", c, c)
        yield from _layer(f"{layer}.layer_norm1", c)
        yield from _layer(f"{layer}.mlp.fc1", 4 * c, c)
        yield from _layer(f"{layer}.mlp.fc2", c, 4 * c)
        yield from _layer(f"{layer}.layer_norm2", c)
    yield from _layer("final_layer_norm", c)
