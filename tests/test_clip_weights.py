"""Named CLIPs: where their weights come from, and that they are those open_clip makes of the same weights."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import weakref
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from file_server import Server
from huggingface_hub import constants
from open_clip import factory, pretrained
from safetensors.torch import save

from sgool.download import DownloadError
from sgool.errors import SgoolError
from sgool.guidance import clip as clip_module
from sgool.guidance import critic as critic_module
from sgool.guidance.clip import OPENAI_MEAN, OPENAI_STD, VARIANTS, Clip, load_clip, weights
from sgool.guidance.clip_weights import SUMS, published
from sgool.weights import Weight

NAME = "sgool-small"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"width": 64, "heads": 1, "layers": 1},
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SAFE = "owner/small/resolve/main/open_clip_model.safetensors"
PLAIN = "owner/small/resolve/main/open_clip_pytorch_model.bin"


class Small:
    """A small model of open_clip's, with random weights, in the forms that they are published in."""

    def __init__(self, server: Server, folder: Path) -> None:
        (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
        open_clip.add_model_config(folder / f"{NAME}.json")
        torch.manual_seed(0)
        self.model = open_clip.create_model(NAME).eval()
        self.state = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.server = server
        self.root = server.url.partition("download")[0]

    def model_with(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        """The model, its preprocessing noted in it as open_clip does."""
        visual: Any = self.model.visual
        visual.image_mean, visual.image_std = mean, std
        return self.model

    def safetensors(self) -> bytes:
        return save({key: value.contiguous() for key, value in self.state.items()})

    def plain(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.state, buffer)
        return buffer.getvalue()

    def archive(self) -> bytes:
        """As OpenAI publishes them: a program, with three numbers among its weights."""
        model = open_clip.create_model(NAME, force_quick_gelu=True)
        model.load_state_dict(self.state)
        for key in ("input_resolution", "context_length", "vocab_size"):
            if key in vars(model):
                delattr(model, key)
            model.register_buffer(key, torch.tensor(1))
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace_module(Parts(model), {"forward": (torch.rand(1, 3, 32, 32),)}), buffer)
        return buffer.getvalue()


class Parts(torch.nn.Module):
    """A model under its own names, with something to trace."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        for name, child in [*model.named_children(), *model.named_parameters(recurse=False)]:
            setattr(self, name, child)
        for name, buffer in model.named_buffers(recurse=False):
            if name in model.state_dict():
                self.register_buffer(name, buffer)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images)


@pytest.fixture
def small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    known = {"hf_hub": "owner/small/", "url": "", "mean": MEAN, "std": STD}
    monkeypatch.setitem(pretrained._PRETRAINED, NAME, {"fine": known})
    made = Small(server, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", made.root.rstrip("/"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return made


def load(folder: Path, tag: str = "fine") -> Clip:
    return load_clip(NAME, tag, models_dir=folder)


def cache(folder: Path, files: dict[str, bytes]) -> None:
    """What huggingface_hub leaves of a download."""
    repository = folder / "models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    for name, body in files.items():
        (repository / "snapshots" / "abc" / name).write_bytes(body)


def same(clip: Clip, model: Any) -> None:
    """The Clip is that model, with the preprocessing that open_clip has noted in it."""
    assert clip.model.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(clip.model.state_dict()[key], value) for key, value in model.state_dict().items())
    images, text = torch.rand(2, 3, 32, 32), "a photo of a red car"
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval().encode_image((images - mean) / std), dim=-1)
        words = torch.nn.functional.normalize(model.encode_text(open_clip.tokenize([text])), dim=-1)[0]
    torch.testing.assert_close(clip.encode_image(images), expected)
    torch.testing.assert_close(clip.encode_text(text), words)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_of_the_hub_make_what_open_clip_makes_of_them(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    small.server.files = {SAFE: small.safetensors()} if kind == "safetensors" else {PLAIN: small.plain()}
    clip = load(tmp_path / "models")
    asked = [path.lstrip("/") for path, *_ in small.server.requests]
    assert asked == ([SAFE] if kind == "safetensors" else [SAFE, PLAIN])
    file = tmp_path / "models" / f"{NAME}_fine.{kind}"
    assert file.read_bytes() == small.server.files[asked[-1]]
    same(load(tmp_path / "models"), small.model_with(MEAN, STD))  # from the file now
    assert len(small.server.requests) == len(asked)
    assert clip._mean.flatten().tolist() == pytest.approx(MEAN)
    own = {Path(asked[-1]).name: file.read_bytes()}
    if not hasattr(pretrained, "_get_safe_alternatives"):  # before 2.28
        own = {Path(PLAIN).name: small.plain()}
    cache(tmp_path / "theirs", own)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(clip, open_clip.create_model(NAME, pretrained="fine", cache_dir=str(tmp_path / "theirs")))


@pytest.mark.parametrize("where", ["models", "hub"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_copy_that_open_clip_has_downloaded_is_used(small: Small, tmp_path: Path, where: str, kind: str) -> None:
    body = small.safetensors() if kind == "safetensors" else small.plain()
    cache(tmp_path / where, {Path(SAFE if kind == "safetensors" else PLAIN).name: body})
    same(load(tmp_path / "models"), small.model_with(MEAN, STD))
    assert small.server.requests == [] and not (tmp_path / "models" / f"{NAME}_fine.{kind}").exists()


def test_file_put_there_by_hand_is_used(small: Small, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}_fine.safetensors").write_bytes(small.safetensors())
    same(load(tmp_path), small.model_with(MEAN, STD))
    assert small.server.requests == []


def test_openais_archives_are_pinned_and_get_their_activation(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = small.archive()
    digest = hashlib.sha256(body).hexdigest()
    known = {"hf_hub": "", "url": f"{small.root}clip/models/{digest}/Small.pt", "mean": None, "std": None}
    monkeypatch.setitem(pretrained._PRETRAINED, NAME, {"openai": known})
    small.server.files = {"Small.pt": body}
    clip = load(tmp_path, "openai")
    assert (tmp_path / "Small.pt").read_bytes() == body
    assert clip._mean.flatten().tolist() == pytest.approx(OPENAI_MEAN)
    quick = open_clip.create_model(NAME, force_quick_gelu=True)
    quick.load_state_dict(small.state)
    same(clip, quick)
    (tmp_path / "Small.pt").write_bytes(body + b"x")
    with pytest.raises(SgoolError, match="not the published file"):
        load(tmp_path, "openai")
    monkeypatch.setitem(known, "url", f"{small.root}Small.pt")  # a program from anywhere is not run
    with pytest.raises(DownloadError, match="it holds a program"):
        load(tmp_path / "other", "openai")


def test_dangerous_and_broken_and_unfit_weights_are_told_apart(small: Small, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "evil",))

    torch.save({**small.state, "evil": Evil()}, tmp_path / f"{NAME}_fine.bin")
    with pytest.raises(SgoolError) as dangerous:
        load(tmp_path)
    assert "holds more than plain tensors" in str(dangerous.value) and not (tmp_path / "evil").exists()
    (tmp_path / f"{NAME}_fine.bin").unlink()
    (tmp_path / f"{NAME}_fine.safetensors").write_bytes(small.safetensors()[:-100])
    with pytest.raises(SgoolError) as broken:
        load(tmp_path)
    assert "broken or incomplete" in str(broken.value)
    (tmp_path / f"{NAME}_fine.safetensors").write_bytes(save({"visual.proj": torch.zeros(3)}))
    with pytest.raises(SgoolError, match=f"The CLIP {NAME} cannot be loaded from {tmp_path}") as unfit:
        load(tmp_path)
    for told in map(str, (dangerous.value, broken.value, unfit.value)):
        assert "weights_only" not in told and "download" not in told and f"{NAME}_fine" in told and "\n" not in told
        assert len(told) < 600
    assert small.server.requests == []


def test_open_clips_own_reading_is_left_as_it_was(small: Small, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}_fine.safetensors").write_bytes(small.safetensors()[:-100])
    with pytest.raises(SgoolError):
        load(tmp_path)
    assert factory.load_state_dict.__module__ == "open_clip.factory"


def test_named_models_load_from_a_checkpoint_and_none_stays_in_memory(small: Small, tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{key}": value for key, value in small.state.items()}}, tmp_path / "weights.pt")
    clip = load(tmp_path, str(tmp_path / "weights.pt"))
    assert clip.image_size == (32, 32) and clip.context_length == 77
    assert clip._mean.flatten().tolist() == pytest.approx(OPENAI_MEAN)
    assert clip._std.flatten().tolist() == pytest.approx(OPENAI_STD)
    tokens = torch.as_tensor(open_clip.tokenize(["a photo of a red car"]))
    expected = clip.model.encode_text(tokens)[0]  # type: ignore[operator]
    torch.testing.assert_close(clip.encode_text("a photo of a (red:1.2) car"), expected / expected.norm())
    halves = [clip.encode_text("word " * n) for n in (75, 25)]
    torch.testing.assert_close(clip.encode_text("word " * 100), torch.stack(halves).mean(0) / sum(halves).div(2).norm())
    for module in (clip_module, critic_module):
        assert not [name for name, value in vars(module).items() if hasattr(value, "cache_clear")]
    kept = weakref.ref(clip.model)
    del clip
    gc.collect()
    assert kept() is None


def test_tokenizer_of_the_hub_is_asked_for_within_seconds(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{NAME}_fine.safetensors").write_bytes(small.safetensors())
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "owner/words"}}  # type: ignore[dict-item]
    monkeypatch.setitem(factory._MODEL_CONFIGS, NAME, config)
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    with pytest.raises(SgoolError, match=r"tokenizer of owner/words .*nowhere\.invalid cannot be reached"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ("ViT-B32/openai", "open_clip has no CLIP model named 'ViT-B32'; the closest known are ViT-B-32"),
        (
            "ViT-B-32/laion2b",
            "The CLIP model ViT-B-32 has no pretrained weights 'laion2b'; the closest known are laion2b",
        ),
        ("ViT-B-32/x.pt", "has no pretrained weights 'x.pt'"),
    ],
)
def test_unknown_names_are_told_with_close_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    for role in ("guide", "selector"):
        with pytest.raises(SgoolError) as caught:
            weights(variant, role)  # type: ignore[arg-type]
        assert told in str(caught.value)


def chain(weight: Weight | None) -> list[Weight]:
    return [] if weight is None else [weight, *chain(weight.instead)]


def test_where_the_default_weights_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    for role, variant in VARIANTS.items():
        (weight,) = weights("", role)
        safe, plain = chain(weight)
        own = variant.replace("/", "_")
        assert (safe.file, plain.file) == (f"{own}.safetensors", f"{own}.bin")
        assert safe.hub is not None and safe.hub[1] == "open_clip_model.safetensors"
        assert safe.url == f"https://huggingface.co/{safe.hub[0]}/resolve/main/{safe.hub[1]}"
        assert safe.hub[0].startswith("laion/CLIP-ViT-B-")
    assert all(len(each.sha256) == 64 for each in chain(weights("", "guide")[0]))
    assert {each.hub for each in chain(weights("", "guide")[0])} == set(SUMS)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert weights("", "guide")[0].url.startswith("https://mirror.example/laion/")


def test_every_name_of_open_clip_leads_to_files() -> None:
    made = set(open_clip.list_models())  # some versions have weights of models that they cannot make
    for name, tag in [pair for pair in open_clip.list_pretrained() if pair[0] in made]:
        files = chain(published(name, tag))
        assert files and all(each.url.startswith("https://") and each.file for each in files)
        for each in files:
            assert each.hub is None or each.file.startswith(f"{name}_{tag}")
            if "openaipublic" in each.url:
                assert each.pinned and each.sha256 in each.url
            if "mlfoundations" in each.url and "github" in each.url:
                assert len(each.sha256) == 8 and each.sha256 in each.file
