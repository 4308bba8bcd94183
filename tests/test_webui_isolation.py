"""Whatever happens in a run, the WebUI is restored afterwards, and the image is never lost."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import k_diffusion.sampling
import numpy as np
import pytest
import torch
from fastapi import HTTPException
from modules import devices, sd_samplers, sd_samplers_cfg_denoiser, sd_samplers_common, sd_unet, shared

from sgool.checkpointing import blocks
from sgool.errors import SgoolError
from sgool.settings import Settings
from sgool.webui import api, gallery, models, progress, unsupported
from sgool.webui.backend import WebuiBackend


def everything(model: torch.nn.Module) -> dict:
    """Everything in the WebUI that a run changes."""
    state = {name: getattr(shared.state, name) for name in ("job", "job_no", "job_count", "textinfo")}
    unet, decoder = model.model.diffusion_model, model.first_stage_model.decoder
    return {
        "state": state,
        "options": dict(shared.opts.data),
        "denoiser": sd_samplers_cfg_denoiser.shared,
        "free": [parameter.requires_grad for parameter in model.parameters()],
        "forwards": [vars(module).get("forward") for module in (*blocks(unet), *blocks(decoder))],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "k_diffusion": k_diffusion.sampling.torch,
        "store": sd_samplers_common.store_latent,
    }


class Watch(SimpleNamespace):
    """A script that records everything right before or right after SGOOL's turn."""

    def process(self, p, *args): ...

    def process_before_every_sampling(self, p, *args, **kwargs): ...

    def postprocess_image(self, p, pp, *args): ...

    def postprocess(self, p, processed, *args): ...

    def post_sample(self, p, ps, *args):
        self.seen.append(everything(shared.sd_model))


def watched(webui, values, **options):
    """(processing object, Processed, everything before SGOOL's turn, everything after it)."""
    first, last = Watch(seen=[]), Watch(seen=[])
    p, processed = webui.make(values, first=[first], last=[last], **options)
    return p, processed, first.seen[0], last.seen[0]


def break_(monkeypatch, how: str) -> None:
    """Make the run end in this way at its second image."""
    decode, count = WebuiBackend.decode, []

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

    monkeypatch.setattr(WebuiBackend, "decode", broken)


SENTENCES = {
    "interrupted": "best image so far",
    "skipped": "was skipped",
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
    if how != "success":
        assert SENTENCES[how] in processed.infotexts[0]["SGOOL note"]
        assert len(p.comments) == 1
    else:
        assert not p.comments
    assert bool(webui.errors.reported) == (how == "bug")


@pytest.mark.parametrize(("memory", "sequential"), [("fast", False), ("low", True)])
def test_only_the_denoiser_sees_the_runs_settings(webui, monkeypatch, memory, sequential):
    """A run takes minutes. Meanwhile the WebUI may save the user's settings, and the user may change them."""
    opts, forward, seen = shared.opts, sd_samplers_cfg_denoiser.CFGDenoiser.forward, []
    names = ("skip_early_cond", "s_min_uncond_all", "batch_cond_uncond")

    def watch(self, *args, **kwargs):
        theirs = sd_samplers_cfg_denoiser.shared.opts
        seen.append([tuple(getattr(each, name) for name in names) for each in (theirs, opts)])
        if len(seen) == p_steps + 1:
            opts.data["s_min_uncond_all"] = "as the user wants it"
            theirs.samples_format = "jpg"
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(sd_samplers_cfg_denoiser.CFGDenoiser, "forward", watch)
    opts.data.update(skip_early_cond=0.2, batch_cond_uncond=True)
    p_steps = 4
    _, processed = webui.make({"memory": memory, "way_back": "full"}, steps=p_steps)
    assert "SGOOL score after" in processed.infotexts[0]
    assert {theirs for theirs, _ in seen[:p_steps]} == {(0.2, False, True)}
    runs = {theirs for theirs, _ in seen[p_steps:]}
    assert (
        runs == {(0.0, True, False)}
        if sequential
        else runs <= {(0.0, False, True), (0.0, "as the user wants it", True)}
    )
    assert {saved[::2] for _, saved in seen} == {(0.2, True)}
    assert opts.s_min_uncond_all == "as the user wants it" and opts.samples_format == "jpg"


def test_random_generators_continue_as_without_a_run(webui):
    drawn = []
    for args in ((), ({},)):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        webui.make(*args)
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_out_of_memory_is_retried_once_with_less(webui, monkeypatch):
    break_(monkeypatch, "memory")
    p, processed = webui.make({})
    assert any("tries again with memory 'low'" in sentence for sentence in p.comments)
    assert "SGOOL note" not in processed.infotexts[0]
    assert processed.infotexts[0]["SGOOL iterations done"] == "1"


@pytest.mark.parametrize(("memory", "tries"), [("fast", 2), ("balanced", 2), ("low", 1)])
def test_repeated_out_of_memory_gives_the_original(webui, monkeypatch, memory, tries):
    def full(self, *args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(WebuiBackend, "network", full)
    p, processed = webui.make({"memory": memory})
    note = processed.infotexts[0]["SGOOL note"]
    assert len(p.comments) == tries and "the image without it" in note
    assert ("memory 'low'" in note) == (memory == "fast")  # otherwise "low" has just failed
    assert torch.equal(torch.cat(p.latents), torch.cat(webui.make()[0].latents))


def test_the_infotext_does_not_name_the_models_folder(webui, monkeypatch):
    """Users share pictures with others. The message to the user does name the folder."""
    folder = Path("/home/jane/webui/models/sgool")

    def fail(settings):
        raise SgoolError(f"Cannot write {folder / 'x.pth'}: [Errno 13] Permission denied: {str(folder)!r}.")

    monkeypatch.setattr(models, "models_dir", lambda: folder)
    monkeypatch.setattr(models, "critics", fail)
    p, processed = webui.make({})
    assert any("/home/jane" in sentence for sentence in p.comments)
    note = processed.infotexts[0]["SGOOL note"]
    assert "jane" not in note and "Cannot write models/sgool/x.pth" in note


def test_skip_applies_only_to_this_batch(webui, monkeypatch):
    break_(monkeypatch, "skipped")
    p, processed = webui.make({}, batch_size=2, n_iter=2)
    assert ["SGOOL score after" in text for text in processed.infotexts] == [False, False, True, True]
    assert ["was skipped" in text.get("SGOOL note", "") for text in processed.infotexts] == [True, True, False, False]
    assert p.saved == [True] * 4


def test_after_an_interrupt_this_batch_is_saved_and_no_other_begins(webui, monkeypatch):
    """The images are complete, but the WebUI saves no image while its state is "interrupted"."""
    shared.opts.data["sgool_save_before"] = True
    break_(monkeypatch, "interrupted")
    p, processed = webui.make({}, batch_size=2, n_iter=2)
    assert p.saved == [True] * 2
    assert [suffix for suffix, _, _ in webui.images.saved] == ["-sgool-before"]
    assert "best image so far" in processed.infotexts[0]["SGOOL note"]
    assert "was interrupted" in processed.infotexts[1]["SGOOL note"]


@pytest.mark.parametrize("selected", [0, 1])
def test_a_selected_script_sees_the_interrupt_after_saving(webui, monkeypatch, selected):
    """With only `stopping_generation` set, Loopback would use an image that was never made."""
    break_(monkeypatch, "interrupted")
    p, _ = webui.make({}, selected=selected)
    assert p.saved == [True]
    assert shared.state.stopping_generation and shared.state.interrupted == bool(selected)


def test_a_selected_script_sees_no_interrupt_if_there_was_none(webui):
    webui.make({}, selected=1)
    assert not shared.state.interrupted


def test_a_later_interrupt_costs_a_finished_image_no_picture(webui):
    class Stops(Watch):
        def process_before_every_sampling(self, p, *args, **kwargs):
            shared.state.interrupted = p.iteration == 1

        def post_sample(self, p, ps, *args): ...

    shared.opts.data["sgool_save_before"] = True
    p, _ = webui.make({}, n_iter=2, first=[Stops()])
    assert p.saved == [True, False]
    assert [suffix for suffix, _, _ in webui.images.saved] == ["-sgool-before"]


def test_skip_before_the_hires_pass_keeps_that_pass(webui, monkeypatch):
    plain, _ = webui.make(enable_hr=True)
    break_(monkeypatch, "skipped")
    p, processed = webui.make({}, enable_hr=True)
    assert torch.equal(p.first_pass, plain.first_pass)
    assert not shared.state.skipped and p.saved == [True]
    assert "was skipped" in processed.infotexts[0]["SGOOL note"]


def test_an_interrupt_before_the_hires_pass_cancels_that_pass(webui, monkeypatch):
    break_(monkeypatch, "interrupted")
    p, processed = webui.make({}, enable_hr=True)
    assert processed.images[0].shape[-1] == 64 and p.saved == [False]


def interrupt_at_step(monkeypatch, number: int) -> None:
    step, count = progress.ImageProgress.step, []

    def stop(self, done, total):
        count.append(1)
        shared.state.interrupted = len(count) >= number
        step(self, done, total)

    monkeypatch.setattr(progress.ImageProgress, "step", stop)


def test_an_interrupt_before_the_first_image_leaves_the_original(webui, monkeypatch):
    original, _ = webui.make()
    interrupt_at_step(monkeypatch, 1)
    p, processed = webui.make({})
    assert torch.equal(torch.cat(p.latents), torch.cat(original.latents))
    assert "SGOOL score after" not in processed.infotexts[0]
    (sentence,) = p.comments
    assert processed.infotexts[0]["SGOOL note"] == sentence == "SGOOL was interrupted, so this is the image without it."


def test_an_interrupt_while_candidates_are_tried(webui, monkeypatch):
    """No update was made, so there is no loss to draw. Everything else is as after any run."""
    shared.opts.data.update(sgool_return_loss=True, sgool_return_before=True)
    interrupt_at_step(monkeypatch, 4)
    p, processed = webui.make({"candidates": 3, "memory": "low"}, steps=2)
    assert len(processed.images) == 2
    assert p.extra_generation_params["SGOOL iterations done"] == [0]
    with pytest.raises(HTTPException, match="404"):
        api.picture(next(iter(gallery.runs)), 0, "loss")


def test_a_picture_that_cannot_be_saved_leaves_a_complete_infotext(webui, monkeypatch):
    def fail(*args, **options):
        raise OSError("No space left on device")

    shared.opts.data["sgool_save_before"] = True
    monkeypatch.setattr(webui.images, "save_image", fail)
    kept = []
    with pytest.raises(OSError, match="No space"):  # the real WebUI goes on here
        webui.make({}, first=[Watch(process=lambda p, *args: kept.append(p), seen=[])])
    assert isinstance(kept[0].extra_generation_params["SGOOL score after"], list)


def test_the_check_for_unsupported_cases_may_fail(webui, monkeypatch):
    """With hires fix nobody else would catch the error."""

    def fail(p):
        raise AttributeError("no such thing in this WebUI")

    monkeypatch.setattr(unsupported, "reason", fail)
    _, processed = webui.make({}, enable_hr=True)
    assert "AttributeError" in processed.infotexts[0]["SGOOL note"]


def test_an_original_image_of_nan_is_left_as_it_is(webui, monkeypatch):
    monkeypatch.setattr(WebuiBackend, "decode", lambda self, latent: torch.full((1, 3, 64, 64), float("nan")))
    _, processed = webui.make({})
    assert "NaN" in processed.infotexts[0]["SGOOL note"]
    assert not gallery.runs


def test_an_interrupted_first_pass_is_left_as_it_is(webui):
    shared.state.interrupted = True
    p = SimpleNamespace(iteration=0, batch_size=1, all_seeds=[1])
    from sgool.webui.batch import improve
    from sgool.webui.records import Run

    samples = torch.zeros(1, 4, 16, 16)
    assert improve(p, Run(Settings(iterations=3), lambda: p), samples) is samples


@pytest.mark.parametrize("values", [{"start": "image"}, {"sampler": "bdia", "start": "seed", "candidates": 3}])
def test_progress_is_shown_and_never_goes_back(webui, monkeypatch, values):
    """Progress covers all images of a batch and reaches the end of the bar."""
    seen = []
    step = progress.ImageProgress.step

    def watch(self, done, total):
        step(self, done, total)
        seen.append((shared.state.sampling_step, shared.state.sampling_steps, shared.state.textinfo))

    monkeypatch.setattr(progress.ImageProgress, "step", watch)
    p, _ = webui.make(values, batch_size=2)
    steps = [each[0] for each in seen]
    assert steps == sorted(set(steps)) and steps[0] > p.steps and steps[-1] == seen[-1][1]
    told = {each[2] for each in seen}
    for number in (1, 2):
        assert any(text.startswith(f"SGOOL image {number}/2, 0/1, your image 0.") for text in told)
    assert any("sampled again" in text for text in told) == (values["start"] == "seed")
    assert shared.state.current_image.size == (64, 64)
    assert shared.state.job_count == 1  # more jobs would make the first Interrupt wait


def test_progress_does_not_go_back_when_a_run_begins_again(webui, monkeypatch):
    seen = []
    step = progress.ImageProgress.step
    monkeypatch.setattr(
        progress.ImageProgress, "step", lambda *args: step(*args) or seen.append(shared.state.sampling_step)
    )
    break_(monkeypatch, "memory")
    webui.make({})
    assert seen == sorted(seen)


def test_progress_says_that_networks_are_loaded(webui, monkeypatch):
    told, load = [], models.load_critics
    monkeypatch.setattr(models, "_last", None)
    monkeypatch.setattr(models, "load_critics", lambda *args: told.append(shared.state.textinfo) or load(*args))
    webui.make({}, batch_size=2)
    assert told == ["SGOOL loads its networks"]


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ((devices, "device", torch.device("mps")), "64-bit"),
        (("p", "prompt", " "), "prompt"),
        ((shared, "cmd_opts", SimpleNamespace(lowvram=True)), "--lowvram"),
        ((sd_unet, "current_unet", object()), "TensorRT"),
        (("model", "is_sd3", True), "Stable Diffusion 3"),
        (("model", "cond_stage_key", "edit"), "instruct-pix2pix"),
        (("p", "refiner_checkpoint_info", object()), "refiner"),
    ],
)
def test_unsupported_cases_are_refused_in_one_sentence(webui, monkeypatch, what, word):
    """The refusal comes before any download."""
    owner, name, value = what
    own = {name: value} if owner == "p" else {}
    if not own:
        monkeypatch.setattr(shared.sd_model if owner == "model" else owner, name, value)
    monkeypatch.setattr(models, "critics", lambda settings: pytest.fail("loaded"))
    if word == "--lowvram":
        monkeypatch.setattr(devices, "device", torch.device("cuda"))
    p, processed = webui.make({}, **own)
    (sentence,) = p.comments
    assert word in sentence and processed.infotexts[0]["SGOOL note"] == sentence
    assert torch.equal(torch.cat(p.latents), torch.cat(webui.make(**own)[0].latents))


def test_inference_mode_is_refused(webui):
    with torch.inference_mode():
        assert "inference mode" in (unsupported.reason(SimpleNamespace(sd_model=shared.sd_model)) or "")


def test_random_tiles_are_fixed_during_a_run(webui, monkeypatch):
    tiles = SimpleNamespace(RNG_INSTANCE=random.Random(0))
    monkeypatch.setitem(sys.modules, "hypertile", tiles)
    kept, drawn = tiles.RNG_INSTANCE, set()
    decode = WebuiBackend.decode
    monkeypatch.setattr(
        WebuiBackend, "decode", lambda self, z: drawn.add(tiles.RNG_INSTANCE.randint(0, 99)) or decode(self, z)
    )
    webui.make({})
    assert drawn == {0} and tiles.RNG_INSTANCE is kept


def test_conditionings_from_inference_mode_work(webui, monkeypatch):
    encode = shared.sd_model.encode

    def inferred(text):
        with torch.inference_mode():
            return encode(text).clone()

    monkeypatch.setattr(shared.sd_model, "encode", inferred)
    _, processed = webui.make({})
    assert "SGOOL score after" in processed.infotexts[0]


def test_a_run_does_not_use_the_samplers_own_denoiser(webui):
    p, _ = webui.make({})
    assert isinstance(p.sampler, sd_samplers.DDIM) and p.sampler.model_wrap_cfg.step == p.steps
