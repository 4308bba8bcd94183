"""Whatever happens in a run, the WebUI is afterwards as it was, and the image is never lost."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import k_diffusion.sampling
import numpy as np
import pytest
import torch
from modules import sd_samplers, sd_samplers_common, sd_unet, shared

from sgool.checkpointing import blocks
from sgool.errors import SgoolError
from sgool.webui import progress
from sgool.webui.host import Host


def everything(model: torch.nn.Module) -> dict:
    """All that a run touches in the WebUI."""
    state = {name: getattr(shared.state, name) for name in ("job", "job_no", "textinfo", "sampling_steps")}
    unet, decoder = model.model.diffusion_model, model.first_stage_model.decoder
    return {
        "state": state,
        "options": dict(shared.opts.data),
        "free": [parameter.requires_grad for parameter in model.parameters()],
        "forwards": [vars(module).get("forward") for module in (*blocks(unet), *blocks(decoder))],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "k_diffusion": k_diffusion.sampling.torch,
        "store": sd_samplers_common.store_latent,
    }


class Watch(SimpleNamespace):
    """A script that looks at everything right before and after SGOOL's turn."""

    def process(self, p, *args): ...

    def process_before_every_sampling(self, p, *args, **kwargs): ...

    def postprocess(self, p, processed, *args): ...

    def post_sample(self, p, ps, *args):
        self.seen.append(everything(shared.sd_model))


def watched(webui, values, **options):
    """(processing object, Processed, everything before SGOOL's turn, everything after it)."""
    first, last = Watch(seen=[]), Watch(seen=[])
    p, processed = webui.make(values, first=[first], last=[last], **options)
    return p, processed, first.seen[0], last.seen[0]


def break_(monkeypatch, how: str) -> None:
    """Make the run end in this way at its second decoding."""
    decode, count = Host.decode, []

    def broken(self, latent):
        count.append(1)
        if len(count) == 3:
            if how == "interrupted":
                shared.state.interrupted = True
            elif how == "skipped":
                shared.state.skipped = True
            elif how == "nan":
                return decode(self, latent) * float("nan")
            elif how == "memory":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            elif how == "bug":
                raise KeyError("something")
            elif how == "weights":
                raise SgoolError("The model file x is broken or incomplete; delete it to fetch it again.")
        return decode(self, latent)

    monkeypatch.setattr(Host, "decode", broken)


SENTENCES = {
    "interrupted": "best image so far",
    "nan": "NaN",
    "bug": "KeyError",
    "weights": "broken or incomplete",
}


@pytest.mark.parametrize("how", ["success", "interrupted", "skipped", "nan", "bug", "weights"])
def test_afterwards_everything_is_as_before(webui, monkeypatch, how):
    for parameter in list(shared.sd_model.parameters())[:3]:
        parameter.requires_grad_(True)
    original, _ = webui.make(seed=4)
    break_(monkeypatch, how)
    p, processed, before, after = watched(webui, {"memory": "low"}, seed=4)
    shared.sd_model.requires_grad_(False)
    assert not all(before["free"]) and any(before["free"])
    for key in before:
        assert after[key] == before[key], key
    if how in ("nan", "bug", "weights", "skipped"):
        assert torch.equal(torch.cat(p.latents), torch.cat(original.latents))
    if how in SENTENCES:
        assert SENTENCES[how] in processed.infotexts[0]["SGOOL note"]
        assert len(p.comments) == 1
    else:
        assert not p.comments
    assert bool(webui.errors.reported) == (how == "bug")


def test_the_generators_go_on_as_if_there_had_been_no_run(webui):
    drawn = []
    for args in ((), ({},)):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        webui.make(*args)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_out_of_memory_is_tried_once_more_with_less(webui, monkeypatch):
    break_(monkeypatch, "memory")
    p, processed = webui.make({})
    assert any("tries again with memory 'low'" in sentence for sentence in p.comments)
    assert processed.infotexts[0]["SGOOL iterations done"] == "1"


def test_out_of_memory_twice_gives_the_original(webui, monkeypatch):
    def full(self, *args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Host, "network", full)
    p, processed = webui.make({"memory": "fast"})
    assert len(p.comments) == 2 and "the image without it" in processed.infotexts[0]["SGOOL note"]
    assert torch.equal(torch.cat(p.latents), torch.cat(webui.make()[0].latents))


def test_skip_is_for_this_batch_alone(webui, monkeypatch):
    break_(monkeypatch, "skipped")
    _, processed = webui.make({}, n_iter=2)
    assert ["SGOOL score after" in text for text in processed.infotexts] == [False, True]


def test_an_interrupt_before_the_first_image_leaves_the_original(webui, monkeypatch):
    def stop(self, done, total):
        shared.state.interrupted = True
        progress.check()

    original, _ = webui.make()
    monkeypatch.setattr(progress.Progress, "step", stop)
    p, processed = webui.make({})
    assert torch.equal(torch.cat(p.latents), torch.cat(original.latents))
    assert "SGOOL score after" not in processed.infotexts[0]


def test_an_interrupted_first_pass_is_left_alone(webui):
    shared.state.interrupted = True
    p = SimpleNamespace(iteration=0, batch_size=1, all_seeds=[1])
    from sgool.webui.run import Run, improve

    samples = torch.zeros(1, 4, 16, 16)
    assert improve(p, Run({"method": "sgool", "iterations": 3}, lambda: p), samples) is samples


def test_progress_is_told_and_never_goes_back(webui, monkeypatch):
    seen = []
    step = progress.Progress.step

    def watch(self, done, total):
        step(self, done, total)
        seen.append((shared.state.sampling_step, shared.state.sampling_steps, shared.state.textinfo))

    monkeypatch.setattr(progress.Progress, "step", watch)
    webui.make({"start": "image"})
    steps = [each[0] for each in seen]
    assert steps == sorted(steps) and steps[-1] == seen[-1][1]
    assert seen[-1][2].startswith("SGOOL 0/1, score ") and "->" in seen[-1][2]
    assert shared.state.current_image.size == (64, 64)
    assert shared.state.job_count == 1  # more jobs would make the first Interrupt wait


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ((shared, "cmd_opts", SimpleNamespace(lowvram=True)), "--lowvram"),
        ((sd_unet, "current_unet", object()), "TensorRT"),
        (("model", "is_sd3", True), "Stable Diffusion 3"),
        (("model", "cond_stage_key", "edit"), "instruct-pix2pix"),
        (("p", "refiner_checkpoint_info", object()), "refiner"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(webui, monkeypatch, what, word):
    from modules import devices, processing

    owner, name, value = what
    owner = {"model": shared.sd_model, "p": processing.StableDiffusionProcessing}.get(owner, owner)
    monkeypatch.setattr(owner, name, value)
    if word == "--lowvram":
        monkeypatch.setattr(devices, "device", torch.device("cuda"))
    p, _ = webui.make({})
    (sentence,) = p.comments
    assert word in sentence
    assert torch.equal(torch.cat(p.latents), torch.cat(webui.make()[0].latents))


def test_inference_mode_is_refused(webui):
    from sgool.webui import refuse

    with torch.inference_mode():
        assert "inference mode" in (refuse.reason(SimpleNamespace(sd_model=shared.sd_model)) or "")


def test_random_tiles_stand_still_during_a_run(webui, monkeypatch):
    tiles = SimpleNamespace(RNG_INSTANCE=random.Random(0))
    monkeypatch.setitem(sys.modules, "hypertile", tiles)
    kept, drawn = tiles.RNG_INSTANCE, set()
    decode = Host.decode
    monkeypatch.setattr(Host, "decode", lambda self, z: drawn.add(tiles.RNG_INSTANCE.randint(0, 99)) or decode(self, z))
    webui.make({})
    assert drawn == {0} and tiles.RNG_INSTANCE is kept


def test_conditionings_of_inference_mode_pass(webui, monkeypatch):
    encode = shared.sd_model.encode

    def inferred(text):
        with torch.inference_mode():
            return encode(text).clone()

    monkeypatch.setattr(shared.sd_model, "encode", inferred)
    _, processed = webui.make({})
    assert "SGOOL score after" in processed.infotexts[0]


def test_the_samplers_own_denoiser_is_not_the_runs(webui):
    p, _ = webui.make({})
    assert isinstance(p.sampler, sd_samplers.DDIM) and p.sampler.model_wrap_cfg.step == p.steps
