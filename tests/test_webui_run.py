"""SGOOL's Script in the fake WebUI, on the embedded model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from modules import processing, scripts

from sgool.checkpointing import MEMORY
from sgool.errors import SgoolError
from sgool.generate import Critics
from sgool.guidance.clip import Clip
from sgool.presets import MODELS
from sgool.saliency import LoadedDetector
from sgool.webui import backend as webui_backend
from sgool.webui import gallery, models
from sgool.webui.script import SgoolScript

SCORES = ("SGOOL score before", "SGOOL score after")


def latents(p) -> torch.Tensor:
    return torch.cat(p.latents)


def scores(text) -> tuple[float, ...]:
    return tuple(float(text[key]) for key in SCORES)


@pytest.mark.parametrize("args", [(False,), ({"enabled": False},), ({"iterations": 0},), ({"method": "none"},)])
def test_off_or_with_nothing_to_do_the_image_is_the_webuis_own(webui, args):
    plain, _ = webui.make()
    p, processed = webui.make(*args)
    assert torch.equal(latents(p), latents(plain))
    assert "sgool_run" not in vars(p)
    off = args[0] is False or args[0].get("enabled") is False
    assert [("nothing to do" in sentence) for sentence in p.comments] == ([] if off else [True])
    if off:
        assert p.extra_generation_params == plain.extra_generation_params
        assert processed.infotexts == webui.make()[1].infotexts


def test_images_get_better_by_the_score_that_is_written_down(webui, critics):
    """Two steps of the WebUI's sampler make poor images, which five of SGOOL's own, improved, will beat."""
    prompt = "a red car"
    batch = {"prompt": prompt, "batch_size": 3, "steps": 2}
    plain, originals = webui.make(**batch)
    p, processed = webui.make({"start": "seed", "steps": 5}, **batch)
    better = 0
    for i, text in enumerate(processed.infotexts):
        before, after = scores(text)
        for image, score in ((originals.images[i], before), (processed.images[i], after)):
            pixels = (image / 2 + 0.5).clamp(0, 1)[None]
            assert critics.selector.judge(pixels, prompt) == pytest.approx(score, abs=1e-3)
        assert after == pytest.approx(max(before, _outcomes()[i].result.best_score), abs=1e-4)
        assert (after > before) == (not torch.equal(latents(p)[i], latents(plain)[i]))
        better += after > before
    assert better


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a red car", ""), ("a red car AND a small frog", "snow"), ("[a red car:a blue frog:0.5]", "")],
)
def test_from_the_seeds_noise_the_first_image_is_that_of_the_first_pass(webui, prompt, negative):
    """The same sampler, DDIM, at the same steps: prompt schedules, AND and negative prompt act as they did there."""
    values = {"sampler": "ddim", "steps": 4, "learning_rate": 0.0, "start": "seed"}
    _, processed = webui.make(values, prompt=prompt, negative_prompt=negative)
    (run,) = _outcomes()
    assert run.result.scores[0] == pytest.approx(run.score_before, abs=1e-4)
    assert processed.infotexts


def test_what_an_image_gains_is_counted_from_the_webuis_own(webui, monkeypatch):
    """0.83 keeps most of what 0.9 gains over the run's first image, but not over the original."""
    told = iter([0.7, 0.5, 0.9, 0.83, 0.6])
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(told))
    webui.make({"sampler": "bdia", "start": "seed", "steps": 4, "iterations": 3})
    (run,) = _outcomes()
    assert (run.score_before, run.score_resampled, run.score_after, run.best_iteration) == (0.7, 0.5, 0.9, 1)


def test_from_the_image_the_first_image_is_the_image(webui):
    p, processed = webui.make({"start": "image", "learning_rate": 0.0})
    plain, _ = webui.make()
    (run,) = _outcomes()
    assert run.result.scores == pytest.approx([run.score_before] * 2, abs=1e-4)
    assert run.score_resampled is None
    if scores(processed.infotexts[0])[0] == scores(processed.infotexts[0])[1]:
        assert torch.allclose(latents(p), latents(plain), atol=1e-4)


def test_every_image_of_a_batch_is_what_it_is_alone(webui):
    together, processed = webui.make({}, batch_size=2, n_iter=2, seed=5)
    texts = processed.infotexts
    assert len({text[SCORES[0]] for text in texts}) == 4
    alone, one = webui.make({}, seed=7)
    assert torch.allclose(latents(together)[2:3], latents(alone), atol=1e-3)
    assert scores(texts[2]) == pytest.approx(scores(one.infotexts[0]), abs=1e-3)
    # At the end the API shows lists over the whole job.
    assert [processed.infotext(together, i)[SCORES[1]] for i in range(4)] == [text[SCORES[1]] for text in texts]
    assert together.extra_generation_params[SCORES[0]] == [text[SCORES[0]] for text in texts]


def test_hires_fix_goes_on_from_the_improved_first_pass(webui):
    batch = {"batch_size": 3, "steps": 2}
    plain, _ = webui.make(**batch)
    alone, _ = webui.make({"start": "seed"}, **batch)
    p, processed = webui.make({"start": "seed"}, enable_hr=True, **batch)
    assert torch.equal(p.first_pass, latents(alone)) and not torch.equal(p.first_pass, latents(plain))
    assert processed.images[0].shape[-1] == 128
    assert all(SCORES[1] in text for text in processed.infotexts)


def inpainting(backend) -> dict:
    nmask = torch.zeros(4, 8, 8)
    nmask[:, 2:6, 2:6] = 1
    latent = backend.noise(3)[..., :8, :8].float() * 0.5
    return {"init_latent": latent, "mask": 1 - nmask, "nmask": nmask, "denoising_strength": 0.8}


def test_outside_an_inpainting_mask_nothing_moves(webui, backend):
    own = inpainting(backend)
    plain, _ = webui.make(kind="Img2Img", **own)
    p, processed = webui.make({"learning_rate": 0.05}, kind="Img2Img", **own)
    before, after = scores(processed.infotexts[0])
    outside = own["mask"].bool()[None]
    assert torch.equal(latents(p)[outside], own["init_latent"][outside])
    assert torch.equal(latents(p)[outside], latents(plain)[outside])
    assert (after > before) == (not torch.equal(latents(p), latents(plain)))
    assert processed.infotexts[0]["SGOOL Start from"] == "image"


def test_img2img_begins_with_what_img2img_made(webui, backend):
    own = {"init_latent": backend.noise(3)[..., :8, :8].float() * 0.5, "denoising_strength": 0.5}
    webui.make({"learning_rate": 0.0, "start": "seed"}, kind="Img2Img", **own)
    (run,) = _outcomes()
    assert run.result.scores[0] == pytest.approx(run.score_before, abs=1e-4)


@pytest.mark.parametrize("prompt", ["a red car", "a red car AND a small frog"])
def test_low_memory_makes_the_same_image(webui, prompt):
    fast, low = (webui.make({"memory": memory}, prompt=prompt)[0] for memory in ("fast", "low"))
    assert torch.allclose(latents(fast), latents(low), atol=1e-3)


def test_after_detailers_inner_pass_is_left_alone(webui):
    p, _ = webui.make({}, _ad_inner=True)
    assert not p.comments and torch.equal(latents(p), latents(webui.make()[0]))


class _CallsTheHooks(scripts.Script):
    """As After Detailer does for every batch: with a copy, before the images are written down."""

    def post_sample(self, p, ps, *args):
        copied = copy.copy(p)
        for script in p.scripts.scripts:
            if script is not self:
                script.postprocess(copied, SimpleNamespace(images=[], infotexts=[]), *args)
                script.process(copied, *args)


def test_hooks_called_with_a_copy_change_nothing(webui):
    _, alone = webui.make({}, n_iter=2)
    p, processed = webui.make({}, n_iter=2, last=[_CallsTheHooks()])
    assert processed.infotexts == alone.infotexts
    assert all(SCORES[1] in text for text in processed.infotexts)
    assert len(p.extra_generation_params[SCORES[1]]) == 2
    assert len(_outcomes()) == 2


def test_the_images_of_a_plot_do_not_write_into_each_others_infotext(webui):
    """It generates with shallow copies of one object."""
    shared_by_all = {"Of another": "script"}
    webui.make({"iterations": 2}, extra_generation_params=shared_by_all)
    _, off = webui.make(False, extra_generation_params=shared_by_all)
    assert shared_by_all == {"Of another": "script"}
    assert not [key for key in off.infotexts[0] if key.startswith("SGOOL")]


def test_a_plot_sets_its_value_for_one_image(webui):
    _, processed = webui.make({}, sgool_overrides={"iterations": 2})
    assert processed.infotexts[0]["SGOOL Iterations"] == processed.infotexts[0]["SGOOL iterations done"] == "2"


def test_the_exported_embedded_model_brings_its_own_defaults(webui):
    webui.shared.sd_model.sd_checkpoint_info = SimpleNamespace(name_for_extra="sgool-tiny")
    _, processed = webui.make({"threshold": 0.3})
    text = processed.infotexts[0]
    assert text["SGOOL Smallest region"] == str(MODELS["tiny"]["min_size"]) and text["SGOOL Region threshold"] == "0.3"


def test_the_baseline_pulls_the_first_pass_sampled_again(webui):
    """Without a pull it is that image. From an image there is nothing to pull, which is said."""
    values = {"method": "baseline", "sampler": "ddim", "steps": 4, "cutouts": 0, "start": "seed"}
    _, processed = webui.make({**values, "guide_scale": 0.0})
    (still,) = _outcomes()
    assert still.result.scores[0] == pytest.approx(still.score_before, abs=1e-4)
    _, processed = webui.make({**values, "guide_scale": 3.0})
    (pulled,) = _outcomes()
    assert pulled.result.scores[0] != pytest.approx(still.score_before, abs=1e-4)
    assert processed.infotexts[0]["SGOOL Method"] == "baseline" and processed.infotexts[0]["SGOOL Guide scale"] == "3.0"
    plain, _ = webui.make()
    p, _ = webui.make({**values, "start": "image"})
    assert torch.equal(latents(p), latents(plain)) and "nothing to do with a start from the image" in next(
        iter(p.comments)
    )


def test_settings_that_a_method_makes_no_use_of_are_named_and_left_out(webui):
    doodl = {"method": "doodl", "steps": 2, "iterations": 1, "sampler": "edict"}
    p, processed = webui.make({**doodl, "cutouts": 3, "rule": "adam"})
    assert list(p.comments) == ["SGOOL: with method doodl these do nothing: Saliency detector, Cutouts, Update rule."]
    text = processed.infotexts[0]
    assert text["SGOOL Method"] == "doodl" and not {"SGOOL Cutouts", "SGOOL Update rule"} & set(text)
    for quiet in ({**doodl, "cutouts": 8, "saliency": "transalnet-res"}, {}):
        assert not webui.make(quiet)[0].comments
    p, _ = webui.make({"candidates": 4, "start": "image"})
    assert list(p.comments) == [
        "SGOOL: with method sgool and a start from the image these do nothing: Candidate seeds."
    ]


def test_bad_arguments_are_said_and_the_image_comes(webui):
    p, processed = webui.make({"threshold": 7.0})
    (sentence,) = p.comments
    assert sentence.startswith("SGOOL is not used: Region threshold (threshold) must be at most 0.99")
    assert processed.infotexts[0]["SGOOL note"] == sentence
    assert torch.equal(latents(p), latents(webui.make()[0]))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_regions": 0}, "SGOOL is not used: Regions (max_regions) must be at least 1, not 0."),
        ({"steps": 1}, "SGOOL is not used: Steps must be at least 2 with the sampler auto, not 1."),
        ({"guide": "nobody"}, "SGOOL is not used: Guide is not valid: there is no critic 'nobody'; the critics are"),
        ({"guide": "clip:ViT-Z-99/openai"}, "SGOOL is not used: Guide is not valid: open_clip has no CLIP model"),
        ({"no_such": 1}, "SGOOL is not used: 'no_such' is no field;"),
    ],
)
def test_a_wrong_setting_goes_by_its_label(webui, wrong, told):
    p, _ = webui.make(wrong)
    (sentence,) = p.comments
    assert sentence.startswith(told)


def test_a_cfg_scale_that_sgool_cannot_take_goes_by_its_name_on_the_page(webui):
    p, _ = webui.make({}, cfg_scale=0.5)
    (sentence,) = p.comments
    assert sentence == "SGOOL left the image as it was: CFG Scale (guidance_scale) must be at least 1, not 0.5."


def test_other_candidates_come_from_the_webuis_own_random_numbers(webui, backend):
    p, _ = webui.make(seed=9)
    own = webui_backend.WebuiBackend(p, 0, latents(p), backend.noise(1), MEMORY["fast"])
    assert torch.equal(own.noise(9), backend.noise(1))
    made = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(77))
    assert torch.equal(own.noise(77).float(), made)


def test_an_inpainting_model_sees_the_tensor_that_the_first_pass_gave_it(webui, monkeypatch):
    """To have it made again would draw other random numbers."""
    made, make = [], processing.StableDiffusionProcessing.txt2img_image_conditioning
    monkeypatch.setattr(
        processing.StableDiffusionProcessing,
        "txt2img_image_conditioning",
        lambda self, x: made.append(len(x)) or make(self, x),
    )
    webui.make({}, batch_size=2)
    assert len(_outcomes()) == 2 and made == [2]


def test_critics_are_kept_for_the_next_run(webui):
    """But not all the prompts that they have seen."""
    webui.make({})
    kept = models._last
    webui.make({"learning_rate": 0.3})
    assert models._last is kept
    assert not kept[1].guide._texts and not kept[1].selector._texts


class HalfGelu(torch.nn.GELU):
    """As the WebUI's own is on a GPU with --upcast-sampling."""

    def forward(self, x):
        return super().forward(x.float()).half()


def test_the_webuis_own_gelu_in_half_precision_is_none_of_ours(webui, monkeypatch):
    block = open_clip.transformer.ResidualAttentionBlock
    init = block.__init__
    monkeypatch.setattr(block, "__init__", lambda *args, **kwargs: init(*args, **{**kwargs, "act_layer": HalfGelu}))
    monkeypatch.setattr(models, "_last", None)
    p, processed = webui.make({"start": "seed"})
    assert not p.comments
    assert scores(processed.infotexts[0])


def test_critics_move_once_for_a_batch(webui, monkeypatch):
    webui.make({})
    moved, to = [], Critics.to
    monkeypatch.setattr(Critics, "to", lambda self, *where, **how: moved.append(where) or to(self, *where, **how))
    for shown, moves in ((False, 2), (True, 4)):  # the phrases are measured once all images are saved
        moved.clear()
        webui.make({"show_phrases": shown}, batch_size=3)
        assert len(moved) == moves


def test_the_map_that_is_shown_is_of_the_image_after(webui, monkeypatch):
    """The run itself looks again only every `refresh` images."""
    monkeypatch.setattr(LoadedDetector, "__call__", lambda self, image: image.mean((0, 1)))
    webui.make({"start": "seed", "steps": 5, "iterations": 2, "refresh": 100}, batch_size=3, steps=2)
    improved = [each for each in _outcomes() if each.score_after > each.score_before]
    assert improved
    for each in improved:
        assert each.saliency.numpy() == pytest.approx(each.after.mean(-1) / 255, abs=0.01)
        assert each.after.dtype == each.before.dtype == np.uint8 and each.saliency.dtype == torch.float16


def test_a_selected_script_gets_no_pictures_that_it_would_take_for_its_own(webui):
    webui.shared.opts.data["sgool_return_before"] = True
    for selected, count in ((0, 2), (1, 1)):
        assert len(webui.make({}, selected=selected)[1].images) == count


def test_an_image_that_is_only_upscaled_is_left_as_it_is(webui, capsys):
    p, processed = webui.make({}, firstpass_image=object())
    (sentence,) = p.comments
    assert "only upscaled" in sentence and sentence in capsys.readouterr().err
    assert processed.infotexts[0]["SGOOL note"] == sentence
    assert torch.equal(latents(p), latents(webui.make()[0]))


@pytest.mark.parametrize(
    ("args", "own"),
    [
        (({"threshold": 7.0},), {}),
        (({},), {"firstpass_image": object()}),
        (({},), {"prompt": " "}),
        ((False,), {}),
        (({},), {"_ad_inner": True}),
    ],
    ids=["wrong", "only upscaled", "no prompt", "unticked", "After Detailer's own"],
)
def test_a_generation_without_a_run_hands_no_run_to_its_page(webui, args, own):
    """Even where it goes on with the object of an earlier generation."""
    first, _ = webui.make({})
    p, _ = webui.make(*args, extra_generation_params=dict(first.extra_generation_params), **own)
    assert "SGOOL run" in first.extra_generation_params and "SGOOL run" not in p.extra_generation_params
    assert len(gallery.runs) == 1


@pytest.mark.parametrize("own", [{"iterations": 0}, {"method": "none"}])
def test_several_candidates_are_tried_also_without_updates(webui, critics, own):
    """Best-of-N: of the plain images the one that both critics like best, where it beats the WebUI's own."""
    batch = {"batch_size": 2, "steps": 2}
    p, _ = webui.make({**own, "candidates": 3, "steps": 5, "start": "seed"}, **batch)
    plain, _ = webui.make(**batch)
    assert all("these do nothing" in sentence for sentence in p.comments)
    for i, outcome in enumerate(_outcomes()):
        assert outcome.result.iterations == 0 and outcome.best_iteration in (0, -1, None)
        assert outcome.improved == (not torch.equal(latents(p)[i], latents(plain)[i]))
        image = torch.from_numpy(outcome.after).permute(2, 0, 1)[None] / 255
        assert critics.selector.judge(image, "a red car") == pytest.approx(outcome.score_after, abs=5e-3)
    assert any(outcome.improved for outcome in _outcomes())


def test_what_is_told_of_one_image_of_a_batch_says_which(webui, monkeypatch):
    monkeypatch.setattr("sgool.webui.batch.generate", lambda *args: (_ for _ in ()).throw(SgoolError("No such luck.")))
    p, processed = webui.make({}, batch_size=2)
    assert list(p.comments) == [f"Image {i} of 2: SGOOL left the image as it was: No such luck." for i in (1, 2)]
    assert {text["SGOOL note"] for text in processed.infotexts} == {"SGOOL left the image as it was: No such luck."}
    alone, _ = webui.make({})
    assert list(alone.comments) == ["SGOOL left the image as it was: No such luck."]


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([0.7, 0.8, 0.9, 0.6], "your image 0.700, sampled again 0.800, after iteration 1 0.900"),
        ([0.7, 0.8, 0.75, 0.6], "your image 0.700, sampled again 0.800, no better one in 2 iterations"),
        ([0.7, 0.6, 0.65, 0.5], "your image 0.700, sampled again 0.600, no better image in 2 iterations"),
    ],
)
def test_what_sampling_again_gains_is_not_credited_to_the_updates(webui, monkeypatch, capsys, scores, told):
    given = iter(scores)
    monkeypatch.setattr(Clip, "judge", lambda self, image, prompt: next(given))
    _, processed = webui.make({"sampler": "bdia", "start": "seed", "steps": 4, "iterations": 2})
    assert f"SGOOL: {told} (embedded; sampled with its own bdia, 4 steps)\n" in capsys.readouterr().out
    text = processed.infotexts[0]
    best = max(range(4), key=scores.__getitem__)
    assert text["SGOOL score resampled"] == f"{scores[1]:.4f}"
    assert text.get("SGOOL best iteration") == (None if best == 0 else str(best - 1))


def test_the_script_is_always_there():
    script = SgoolScript()
    assert script.title() == "SGOOL" and script.show(False) is script.show(True) is scripts.AlwaysVisible


def _outcomes():
    """Of the last run."""
    return [entry.outcome for entry in gallery.runs[next(reversed(gallery.runs))]]


@pytest.fixture
def rows(backend, monkeypatch):
    """How many latents the UNet was given, call by call."""
    seen, forward = [], backend.unet.forward
    monkeypatch.setattr(backend.unet, "forward", lambda x, *args: seen.append(len(x)) or forward(x, *args))
    return seen


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(
    ("prompt", "scale", "each"),
    [("a red car", 1.0, 1), ("a red car AND a small frog", 1.0, 3), ("a red car", 4.0, 2)],
)
def test_at_cfg_scale_1_a_run_leaves_the_negative_prompt_out(webui, rows, memory, prompt, scale, each):
    """The WebUI's own sampler does not. Prompts whose weights do not add up to 1 leave a part to the negative one."""
    values = {"sampler": "ddim", "steps": 4, "learning_rate": 0.0, "start": "seed", "memory": memory, "strength": 1.0}
    values["way_back"] = "full"
    webui.make(values, prompt=prompt, negative_prompt="snow", cfg_scale=scale, steps=4)
    (run,) = _outcomes()
    assert sum(rows) == 4 * max(2, each) + 3 * 4 * each  # the first pass; an image, the way back, an image
    assert run.result.scores[0] == pytest.approx(run.score_before, abs=1e-4)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(("prompt", "prompts"), [("a red car", 1), ("a red car AND a small frog", 2)])
def test_the_way_back_can_leave_the_negative_prompt_out(webui, rows, memory, prompt, prompts):
    values = {"sampler": "ddim", "steps": 4, "start": "seed", "memory": memory, "strength": 1.0, "way_back": "prompt"}
    webui.make(values, prompt=prompt, negative_prompt="snow", steps=4)
    (run,) = _outcomes()
    assert sum(rows) == 4 * 3 * (prompts + 1) + 4 * prompts
    assert len(run.result.scores) == 2 and run.result.scores[0] != run.result.scores[1]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("prompt", ["a red car", "a red car AND a small frog :0.5", "[a red car:a blue frog:0.5]"])
def test_candidates_of_any_prompt_are_predicted_together_as_each_alone(webui, backend, prompt, scale):
    p, _ = webui.make(prompt=prompt, negative_prompt="snow", steps=4)
    own = webui_backend.WebuiBackend(p, 0, latents(p), None, MEMORY["fast"])
    network = own.network(prompt, "", scale)
    noises = [backend.noise(seed)[..., :8, :8] for seed in range(3)]
    for t in (100, 900):
        alone = torch.cat([network(noise, t) for noise in noises])
        assert torch.allclose(network(torch.cat(noises), t), alone, atol=1e-4)
        assert not torch.allclose(alone[0], alone[1], atol=0.1)
