"""Training the networks of the larger world, on the CPU in small batches."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

pytest.importorskip("diffusers")

from sgool.backends.diffusers import load_backend
from sgool.errors import SgoolError
from sgool.guidance.clip import load_clip_folder
from sgool.lab.larger import diffusion, networks
from sgool.lab.larger.__main__ import KINDS, main
from sgool.lab.larger.autoencoder import Autoencoder, Decoder, Features
from sgool.lab.larger.critics import Critic, phrases
from sgool.lab.larger.diffusion import Diffusion, FewStep, Latents, padded
from sgool.lab.larger.evaluate import assemble, figures
from sgool.lab.larger.scenes import WORDS
from sgool.lab.larger.source import Source
from sgool.lab.larger.trainer import Slice, Trainer
from sgool.tiny import few_step


@pytest.fixture(scope="module")
def work(larger_work, tmp_path_factory):
    """A folder in which every network is "trained": random weights, not the ones that training begins with."""
    folder = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(larger_work, folder)
    (folder / "scale.json").write_text("1.5")
    torch.manual_seed(0)
    source = Source(folder)
    for name in ("selector", "guide", "judge", "vae", "unet", "few-step"):
        kind = KINDS[name](source) if name not in ("unet", "few-step") else of_latents(name, source)
        with torch.no_grad():
            for weight in kind.networks.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        Trainer(kind, folder / name).save()
        (folder / name / "state.pt").unlink()
    return folder


def of_latents(name, source):
    kind = {"unet": Diffusion, "few-step": FewStep}[name]
    return kind(source, Latents(source, size=4, steps=3))


@pytest.fixture
def source(work, tmp_path):
    """A copy of the folder, in which a test may train."""
    shutil.copytree(work, tmp_path / "work")
    return Source(tmp_path / "work")


def made(name, source, batch):
    kind = of_latents(name, source) if name in ("unet", "few-step") else KINDS[name](source)
    kind.batch = batch
    return kind


def small(inputs):
    """A quarter of the pictures' and the latents' sides. The networks are convolutions, and this costs a sixteenth."""
    sides = {"image": 64, "weight": 64, "noise": 8} if "image" in inputs else {"latent": 16, "noise": 16}
    return {name: x[..., : sides[name], : sides[name]] if name in sides else x for name, x in inputs.items()}


@pytest.mark.parametrize("name", KINDS)
def test_steps_lower_the_loss_of_a_batch(name, source):
    for each in ("guide", "selector", "judge", "vae"):
        if each == name:
            shutil.rmtree(source.work / each)
    kind = made(name, source, 8 if name in networks.CRITICS else 4)
    torch.manual_seed(0)
    inputs = small(kind.inputs(0))
    kind.inputs = lambda step: inputs
    trainer = Trainer(kind, source.work / "new")
    losses = [trainer.once(kind.rate)["loss"].item() for _ in range(12)]
    assert losses[-1] < (0.97 if name in ("decoder", "few-step") else 0.8) * losses[0]
    averaged = [copy.deepcopy(kind.average).state_dict(), kind.networks.state_dict()]
    assert any(not torch.equal(averaged[0][key], averaged[1][key]) for key in averaged[0])


@pytest.mark.parametrize("name", ["selector", "unet"])
def test_going_on_gives_the_same_bit_for_bit(name, source):
    """Over the end of a pool of latents, and with the running statistics of a ResNet."""

    def trained(folder, *lengths):
        for steps in lengths:
            torch.manual_seed(99)  # where torch's random numbers stand must not matter
            kind = made(name, source, 4 if name == "selector" else 2)
            if not (source.work / folder).exists():
                same(kind)
            trainer = Trainer(kind, source.work / folder)
            trainer.run(Slice(steps=steps))
        return torch.load(source.work / folder / "state.pt", weights_only=True)

    def same(kind):
        begin = source.work / "begin.pt"
        if not begin.exists():
            torch.save(kind.networks.state_dict(), begin)
        kind.networks.load_state_dict(torch.load(begin, weights_only=True))

    whole, parts = trained("whole", 4), trained("parts", 2, 2)
    assert whole["step"] == parts["step"] == 4
    for part in ("networks", "average"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())
    moments = [each["optimizer"]["state"] for each in (whole, parts)]
    assert all(torch.equal(value["exp_avg_sq"], moments[1][key]["exp_avg_sq"]) for key, value in moments[0].items())
    curve = [json.loads(line) for line in (source.work / "parts" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [2, 4] and curve[1]["seconds"] >= curve[0]["seconds"]


def test_the_average_alone_is_enough_to_go_on(source):
    kind = made("guide", source, 4)
    trainer = Trainer(kind, source.work / "new")
    trainer.run(Slice(steps=3))
    (source.work / "new" / "state.pt").unlink()
    again = Trainer(made("guide", source, 4), source.work / "new")
    assert again.step == again.begun == 3 and not again.optimizer.state
    for ours, theirs in zip(again.kind.networks.parameters(), kind.average.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_a_loss_that_is_no_number_keeps_what_was_saved(source):
    kind = made("guide", source, 4)
    trainer = Trainer(kind, source.work / "new")
    trainer.run(Slice(steps=1))
    kept = (source.work / "new" / "state.pt").read_bytes()
    inputs = kind.inputs
    kind.inputs = lambda step: {**inputs(step), "images": torch.full((4, 3, 64, 64), torch.nan)}
    with pytest.raises(SgoolError, match="no number"):
        trainer.run(Slice(steps=2))
    assert (source.work / "new" / "state.pt").read_bytes() == kept


def test_a_last_slice_ends_at_a_low_rate(source):
    kind = made("guide", source, 4)
    trainer = Trainer(kind, source.work / "new")
    trainer.begun = -1000  # long after the warmup
    rates, once = [], trainer.once
    trainer.once = lambda rate: rates.append(rate / kind.rate) or once(rate)
    trainer.run(Slice(steps=4, last=True))
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25])
    trainer.run(Slice(steps=2))
    assert rates[4:] == [1, 1]


class Capturable(TorchDispatchMode):
    """Fails where a CUDA graph could not be captured: reads from the device, and tensors that come from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        assert not [each for each in given if each.device.type == "cpu" and each.ndim], f"{name} takes from the host"
        return function(*args, **(kwargs or {}))


def to_meta(kind):
    for name, value in vars(kind).items():
        if isinstance(value, (nn.Module, torch.Tensor)):
            setattr(kind, name, value.to("meta"))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4),
    reason="open_clip and transformers of that time read from the device; training goes on without a graph",
)
@pytest.mark.parametrize("name", KINDS)
def test_a_step_can_be_captured(name, source):
    """On the device without data nothing can be read back; there the loss and its gradient are computed."""
    kind = made(name, source, 4)
    inputs = kind.inputs(0)
    Trainer(kind, source.work / "new")
    to_meta(kind)
    kind.networks.train()
    inputs = {key: value.to("meta") for key, value in inputs.items()}
    with Capturable():
        kind.loss(inputs)["loss"].backward()


def test_the_check_for_capturing_can_fail():
    with Capturable(), pytest.raises(AssertionError, match="from the host"):
        torch.ones(2) + 1
    with Capturable(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(torch.ones((), device="meta") > 0)


def test_everything_shipped_takes_at_most_40_mib():
    parts = {"vae": networks.autoencoder(), "unet": networks.unet(), "text": networks.text_encoder(620)}
    parts |= {name: networks.critic(name, 620) for name in networks.CRITICS}
    count = {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}
    assert 8e6 <= count["unet"] <= 13e6
    tuned = {name: weight + 0.01 for name, weight in parts["unet"].state_dict().items()}
    from sgool.lab.training.few_step import difference

    sibling = difference(parts["unet"].state_dict(), tuned, networks.RANK)
    total = sum(count.values()) + sum(each.numel() for each in sibling.values())
    assert 2 * total < 38.5 * 2**20, "with room for tokenizers and pictures"
    assert len({json.dumps(some) for some in networks.CRITICS.values()}) == 3


def test_the_features_tell_pictures_apart_and_stay_as_they_are(source):
    image, _, _ = source.paint(source.scenes(4))
    x = 2 * image - 1
    blurred = nn.functional.avg_pool2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1).requires_grad_()
    features = Features(source)
    assert features.distance(x, x) == 0
    more = features.distance(x, (2 * blurred - x).detach())
    assert 0 < features.distance(x, blurred) < more
    features.distance(x, blurred).backward()
    assert blurred.grad.abs().sum() > 0
    assert all(each.grad is None for each in features.parameters()) and not features.visual.training


def test_a_decoder_goes_on_alone(source):
    kind = Decoder(source)
    kind.batch = 2
    before = copy.deepcopy(kind.networks).state_dict()
    trainer = Trainer(kind, source.work / "new")
    inputs = small(kind.inputs(0))
    assert inputs["noise"][0].abs().max() == 0 and inputs["noise"][1].abs().max() > 0
    kind.inputs = lambda step: inputs
    trainer.once(1e-3)
    changed = {key for key, value in kind.networks.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(".decoder." in key or ".post_quant_conv." in key for key in changed)


def test_an_autoencoder_needs_the_selector(larger_work):
    with pytest.raises(SgoolError, match="Train selector first"):
        Autoencoder(Source(larger_work))


def test_texts_belong_to_what_is_shown(source):
    """Crops show the subject that their text names, and whole pictures have their caption, with or without ground."""
    kind = Critic(source, "guide")
    torch.manual_seed(3)
    scenes = source.scenes(120)
    _, _, draws = source.paint(scenes)
    # In place of its colors each subject shows its number.
    shown = source.painter.pixels.clone()
    numbers = torch.arange(len(WORDS)).repeat_interleave(len(source.painter.starts) // len(WORDS))
    lengths = source.painter.starts.diff()
    source.painter.pixels[:-1, :3] = (numbers.repeat_interleave(lengths)[:, None] + 1) / 20
    source.painter.pixels[:-1, 3] = 1
    nothing = {name: torch.zeros_like(getattr(draws, name)) for name in ("base", "ramp", "pattern")}
    draws = draws._replace(**nothing)
    images, _ = source.painter.paint(draws)
    source.painter.pixels = shown
    seen, ids = kind.views(images, scenes, draws)
    decode = source.tokenizer.bpe.decode
    texts = [decode(row[row != 0][1:-1].tolist()).replace(" ,", ",").strip() for row in ids]
    captions = [decode(row[row != 0][1:-1].tolist()).replace(" ,", ",").strip() for row in scenes.ids]
    known, crops, bare = set(phrases()), 0, 0
    for row, (text, caption) in enumerate(zip(texts, captions, strict=True)):
        if text in (caption, caption.split(" on a ")[0]):
            bare += text != caption and " and " in text
            continue
        assert text in known and text.split(" on a ")[0] in caption
        assert " on a " not in text or text.split(" on a ")[1] == caption.split(" on a ")[1]
        crops += 1
        word = text.split(" on a ")[0].split()[-1]
        assert (seen[row, 0] - (WORDS.index(word) + 1) / 20).abs().lt(0.01).float().mean() > 0.1, "all of it"
    assert crops > 30 and bare > 2


def test_latents_are_scaled_to_one(source, monkeypatch):
    monkeypatch.setattr(diffusion, "SCALED", 8)
    (source.work / "scale.json").unlink()
    latent, _ = Latents(source, size=8, steps=3).take(0, 8)
    assert 0.8 < latent.std() < 1.3
    assert Latents(source, size=1, steps=3).scale == json.loads((source.work / "scale.json").read_text()) != 1.5


def test_captions_are_padded_as_stable_diffusion_pads_them(source):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(source.work / "tokenizer")
    scenes = source.scenes(5)
    texts = [source.tokenizer.bpe.decode(row[row != 0][1:-1].tolist()) for row in scenes.ids]
    theirs = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(padded(scenes.ids, source.vocabulary - 1), theirs)


def test_what_is_trained_runs_as_it_is_shipped(source):
    folder = assemble(source.work)
    backend = load_backend(str(folder / "model"))
    assert backend.size == (256, 256)
    kind = of_latents("unet", source)
    trainer = Trainer(kind, source.work / "unet")
    latent, ids = kind.latents.take(0, 2)
    text = kind.networks["text"](padded(ids, kind.end))[0]
    with torch.no_grad():
        ours = trainer.kind.networks["unet"].eval()(latent, torch.tensor([700, 700]), text).sample
        captions = [source.tokenizer.bpe.decode(row[row != 0][1:-1].tolist()).strip() for row in ids]
        theirs = backend.network(captions, "", 1.0)(latent.double(), 700)
        assert (ours - theirs).abs().max() < 0.01 * ours.abs().max()
        few_step.add(backend.unet, folder / "few-step.safetensors")
        assert not torch.equal(theirs, backend.network(captions, "", 1.0)(latent.double(), 700))
    found = figures(source.work, 2, "cpu")
    assert set(found["guide"]) == {"painted", "through the autoencoder", "generated", "in four steps"}
    assert {"all", "small", "large", "of 1", "word", "size", "color", "busy", "number"} <= set(
        found["judge"]["painted"]
    )
    assert "a crop of a small subject" in found["selector"]["painted"]
    assert load_clip_folder(folder / "clips" / "judge").image_size == (256, 256)


def test_a_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    for arguments, sentence in (
        (["train", "vae", "--work", str(tmp_path)], "prepare` first."),
        (["prepare", "--work", str(tmp_path), "--assets", str(tmp_path / "no")], "There is no folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["larger", *arguments])
        assert main() == 2
        assert sentence in capsys.readouterr().err


def test_commands_train_in_turn(source, monkeypatch, capsys):
    shutil.rmtree(source.work / "guide")
    arguments = ["train", "guide", "selector", "--minutes", "1", "--steps", "1", "--batch", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["larger", *arguments, "--work", str(source.work)])
    assert main() == 0
    assert "guide:" in capsys.readouterr().out
    for name in ("guide", "selector"):
        assert torch.load(source.work / name / "state.pt", weights_only=True)["step"] == 1
