"""The exported checkpoint, read by diffusers' single-file code, is the same model as the folder."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from sgool.backends.diffusers import load_backend
from sgool.tiny import MODEL
from sgool.tiny.export import export


@pytest.fixture(scope="module", params=["tiny", "larger"])
def models(request, tmp_path_factory):
    """A model with the dimensions of the embedded one, or of the one to come, and random weights.

    Its folder, its checkpoint, and both loaded.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sgool.lab.larger import networks
    from sgool.lab.training import autoencoder, diffusion
    from sgool.lab.training.assemble import INDEX
    from sgool.lab.training.diffusion import SCHEDULE

    vae, unet, told = autoencoder.CONFIG, diffusion.UNET, diffusion.TEXT
    if request.param == "larger":
        vae, unet, told = networks.VAE, networks.UNET, networks.TEXT
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    vocabulary = json.loads((MODEL / "tokenizer" / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"]
    text = CLIPTextConfig(vocab_size=len(vocabulary), bos_token_id=end - 1, eos_token_id=end, pad_token_id=end, **told)
    parts = {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**vae, scaling_factor=0.7),
        "text_encoder": CLIPTextModel(text),
        "scheduler": DDIMScheduler(**SCHEDULE),
    }
    for name, part in parts.items():
        if name != "scheduler":
            with torch.no_grad():  # biases and normalizations are zeros and ones at first, which would hide mistakes
                for parameter in part.parameters():
                    parameter.add_(0.3 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter))
        part.save_pretrained(folder / name, safe_serialization=True)
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    checkpoint = export(tmp_path_factory.mktemp("export"), folder)
    return SimpleNamespace(
        folder=folder,
        checkpoint=checkpoint,
        original=load_backend(str(folder)),
        exported=load_backend(str(checkpoint)),
    )


def difference(ours, theirs):
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert ours.std() > 0.05, "too flat to tell anything"
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_exported_checkpoint_computes_the_same(models):
    prompts = ["a red ball on a table", ""]
    texts = [backend._encode_text(prompts) for backend in (models.original, models.exported)]
    assert difference(*texts) < 1e-5
    x = torch.randn(2, 4, 16, 16)
    a, b = (backend._predict(x, 321, texts[0]) for backend in (models.original, models.exported))
    assert difference(a, b) < 1e-5


@torch.no_grad()
def test_padded_autoencoder_computes_the_same(models):
    image, latent = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    assert models.exported.vae.config.norm_num_groups == 32
    assert difference(models.original.encode(image), models.exported.encode(image)) < 1e-5
    assert difference(models.original.decode(latent), models.exported.decode(latent)) < 1e-5


def test_exported_model_has_the_same_settings(models):
    for name in ("size", "latent_size", "prediction"):
        assert getattr(models.original, name) == getattr(models.exported, name)
    assert torch.equal(models.original.alphas_cumprod, models.exported.alphas_cumprod)


def test_configuration_describes_the_weights(models):
    """The model that LDM would build from the .yaml has the widths and the attention levels of the keys."""
    from safetensors.torch import load_file

    params = json.loads(models.checkpoint.with_suffix(".yaml").read_text())["model"]["params"]
    weights = load_file(models.checkpoint)
    assert torch.allclose(weights["alphas_cumprod"].double(), models.original.alphas_cumprod, atol=1e-6)
    assert params["scale_factor"] == 0.7

    unet = params["unet_config"]["params"]
    stem = "model.diffusion_model.input_blocks"
    widths, attended, block = [], [], 1
    for level, multiple in enumerate(unet["channel_mult"]):
        widths.append(weights[f"{stem}.{block}.0.out_layers.3.weight"].shape[0] / unet["model_channels"] == multiple)
        if any(key.startswith(f"{stem}.{block}.1.") for key in weights):
            attended.append(2**level)
        block += unet["num_res_blocks"] + 1
    assert all(widths)
    assert attended == unet["attention_resolutions"]
    assert f"{stem}.{block - 1}.0.op.weight" not in weights, "no resampling after the last level"

    autoencoder = params["first_stage_config"]["params"]["ddconfig"]
    for level, multiple in enumerate(autoencoder["ch_mult"]):
        for side, more in (("encoder.down", 0), ("decoder.up", 1)):
            for number in range(autoencoder["num_res_blocks"] + more):
                key = f"first_stage_model.{side}.{level}.block.{number}.norm2.weight"
                assert weights[key].numel() == multiple * autoencoder["ch"]
                assert weights[key].numel() % 32 == 0
    assert weights["first_stage_model.decoder.mid.attn_1.q.weight"].ndim == 4


def test_text_encoder_loads_from_the_folder_the_configuration_names(models):
    """As in LDM's FrozenCLIPEmbedder, tokenizer and configuration come from one folder."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    params = json.loads(models.checkpoint.with_suffix(".yaml").read_text())["model"]["params"]
    folder = Path(params["cond_stage_config"]["params"]["version"])
    assert folder.is_absolute()
    words = "a red ball"
    assert CLIPTokenizer.from_pretrained(folder)(words).input_ids == models.original.tokenizer(words).input_ids
    assert CLIPTextConfig.from_pretrained(folder).hidden_size == models.original.text_encoder.config.hidden_size


def test_unet_class_turns_fractions_into_widths(models, monkeypatch):
    """LDM multiplies in both orders, and torch does not accept a float as a width."""

    class Ldm:
        def __init__(self, model_channels, channel_mult, **options):
            self.widths = [size for m in channel_mult for size in (m * model_channels, model_channels * m)]
            self.options = options

    openaimodel = ModuleType("openaimodel")
    openaimodel.UNetModel = Ldm
    package = ModuleType("ldm.modules.diffusionmodules")
    package.openaimodel = openaimodel
    for name in ("ldm", "ldm.modules"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)

    config = json.loads(models.checkpoint.with_suffix(".yaml").read_text())["model"]["params"]["unet_config"]
    module, name = config["target"].rsplit(".", 1)
    unet = getattr(importlib.import_module(module), name)(**config["params"])
    del sys.modules[module]  # the module has imported the stand-in
    widths = [width for width in models.original.unet.config.block_out_channels for _ in range(2)]
    assert [torch.nn.Linear(width, 1).in_features for width in unet.widths] == widths
    assert unet.options["num_heads"] == 4
