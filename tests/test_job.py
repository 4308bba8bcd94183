"""What the command line does around a run: the models it asks for, and the pictures and figures of what came of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from sgool import cli, job, pictures, tiny
from sgool.backends.diffusers import load_backend
from sgool.errors import SgoolError
from sgool.generate import load_critics
from sgool.job import Job, draw, machine, peak_memory_mb, run, write
from sgool.presets import ZOOMS, resolve
from sgool.region import Region
from sgool.result import Ending, Result, Snapshot
from sgool.settings import ABOUT, SettingError
from sgool.signals import Guard

PROMPT = "a small frog and a car on a yellow background"
FEW = {"steps": 2, "iterations": 2, "cutouts": 0, "patience": 0}
REGION = Region(0, 0, 64, 64, 1.0)
CPU = torch.device("cpu")


def shade(path_or_picture):
    """The gray of the middle of a picture."""
    picture = path_or_picture if isinstance(path_or_picture, np.ndarray) else cv2.imread(str(path_or_picture))
    height, width = picture.shape[:2]
    return round(float(picture[height // 3 : height // 2, width // 3 : width // 2].mean()))


def snapshot(iteration, gray, score):
    """A gray image whose left half is salient."""
    saliency = torch.zeros(128, 128)
    saliency[:, :64] = 1
    return Snapshot(iteration, torch.full((1, 3, 128, 128), gray / 255), torch.zeros(1), score, saliency, (REGION,))


def improved(before=0.2, after=0.6):
    """A result whose second image is the best."""
    return Result(snapshot(0, 40, before), snapshot(1, 150, after), [0.9, 0.5, 0.7], [before, after, 0.3])


def comparisons_row(picture):
    """The grays of the three pictures of a comparison, from left to right."""
    third = picture.shape[1] // 3
    return [shade(np.ascontiguousarray(picture[:, i * third : (i + 1) * third])) for i in range(3)]


def test_before_is_the_first_image_and_after_is_the_best(tmp_path):
    drawn = draw(Job(PROMPT, tmp_path), improved())
    assert shade(drawn["before"]) == 40 and shade(drawn["after"]) == 150
    assert drawn["before"].shape == drawn["after"].shape == (128, 128, 3)


def test_the_comparison_shows_before_on_the_left_and_after_on_the_right(tmp_path):
    drawn = draw(Job(PROMPT, tmp_path), improved())
    left, _, right = comparisons_row(drawn["comparison"])
    assert left == 40 and right == 150
    expected = pictures.comparison(drawn["before"], drawn["saliency"], drawn["after"], 0.2, 0.6, PROMPT)
    assert np.array_equal(drawn["comparison"], expected)


def test_the_saliency_is_drawn_over_the_first_image_with_its_own_regions(tmp_path):
    result = improved()
    result.best = replace(result.best, saliency=torch.ones(128, 128), regions=())
    drawn = draw(Job(PROMPT, tmp_path), result)
    expected = pictures.overlay(drawn["before"], result.first.saliency, (REGION,))
    assert np.array_equal(drawn["saliency"], expected)


def test_the_curve_marks_the_best_update_and_is_left_out_without_losses(tmp_path):
    result = improved()
    expected = pictures.loss_curve([0.9, 0.5, 0.7], [0.2, 0.6, 0.3], 1)
    assert np.array_equal(draw(Job(PROMPT, tmp_path), result)["loss"], expected)
    result.losses = []
    assert "loss" not in draw(Job(PROMPT, tmp_path), result)


def test_the_pictures_are_written_under_their_names(tmp_path):
    one = Job(PROMPT, tmp_path)
    write(one, resolve({}, model="tiny"), improved(), CPU)
    for name, picture in draw(one, improved()).items():
        assert np.array_equal(cv2.imread(str(tmp_path / f"{name}.png"))[..., ::-1], picture)
    assert len(list(tmp_path.iterdir())) == 6


def test_the_figures_tell_what_was_asked_for_and_what_came_of_it(tmp_path):
    result = improved()
    result.sampler, result.seconds, result.ending = "ddim", 1.23456, Ending.PATIENCE
    result.unet_evals, result.unet_gradients = 12, 5
    settings = resolve({"iterations": 7, "sampler": "auto"}, model="tiny")
    figures = write(Job(PROMPT, tmp_path, "a dog", 3, "tiny"), settings, result, CPU)
    assert figures == json.loads((tmp_path / "result.json").read_text())
    peak = figures.pop("peak_memory_mb")
    assert 1 < peak == round(peak, 1) <= round(peak_memory_mb(CPU), 1)
    assert figures == {
        **{
            name: value
            for name, value in settings.as_dict().items()
            if ABOUT[name].cli and name not in (*ZOOMS, "guide_scale")
        },
        "prompt": PROMPT,
        "negative_prompt": "a dog",
        "seed": 3,
        "model": "tiny",
        "sampler": "ddim",  # the one that ran
        "iterations_done": 2,
        "best_iteration": 1,
        "scored_by": "embedded",
        "score_before": 0.2,
        "score_start": 0.2,
        "score_after": 0.6,
        "scores": [0.2, 0.6, 0.3],
        "losses": [0.9, 0.5, 0.7],
        "regions": [{"top": 0, "left": 0, "height": 64, "width": 64, "mass": 1.0, "text": ""}],
        "unet_evals": 12,
        "forward_equivalents": 17,
        "cost_images": 0.85,
        "seconds": 1.235,
        "ending": "patience",
        "ended": "Stopped early: no better image in 1 iteration.",
    }


@pytest.fixture
def loaded(monkeypatch):
    """The backends that a job loads, and the batches that go through their UNets: [(backend, sizes)]."""
    made = []

    def load(*args, **options):
        backend = load_backend(*args, **options)
        sizes = []
        backend.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        made.append((backend, sizes))
        return backend

    monkeypatch.setattr(job, "load_backend", load)
    return made


FLAGS = ["demo", "--method", "none", "--steps", "2"]


def test_memory_low_predicts_one_prompt_at_a_time(tmp_path, loaded):
    assert cli.main([*FLAGS, "--memory", "fast", "--out", str(tmp_path)]) == 0
    assert cli.main([*FLAGS, "--memory", "low", "--out", str(tmp_path)]) == 0
    assert [sizes for _, sizes in loaded] == [[2, 2], [1, 1, 1, 1]]


@pytest.mark.parametrize(("flag", "dtype"), [([], torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)])
def test_the_unet_has_the_precision_that_was_asked_for(tmp_path, loaded, flag, dtype):
    assert cli.main([*FLAGS, *flag, "--device", "cpu", "--out", str(tmp_path)]) == 0
    ((backend, _),) = loaded
    assert backend.unet.dtype == backend.dtype == dtype and backend.vae.dtype == torch.float32


def test_device_and_precision_by_default_and_as_named():
    usual = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    place, dtype = machine(None, None)
    assert (place.type, dtype) == usual
    assert machine("cpu", None) == (CPU, torch.float32) and machine("cpu", "float16") == (CPU, torch.float16)
    assert machine("meta", None, meta=True) == (torch.device("meta"), torch.float32)
    with pytest.raises(SgoolError, match="'meta' holds no data"):
        machine("meta", None)
    with pytest.raises(SgoolError, match=r"The device 'abacus' cannot be used here: \w"):
        machine("abacus", None)


class Prefers:
    """A selector that likes the n-th image best."""

    def __init__(self, critic, number):
        self.critic, self.number, self.seen = critic, number, []

    def __getattr__(self, name):
        return getattr(self.critic, name)

    def judge(self, image, text):
        self.seen.append((image, text))
        return 0.9 if len(self.seen) - 1 == self.number else 0.5


def test_a_job_writes_the_best_image_of_its_run(tmp_path, monkeypatch):
    selectors = []

    def load(*args):
        critics = load_critics(*args)
        selectors.append(Prefers(critics.selector, 1))
        return replace(critics, selector=selectors[0])

    monkeypatch.setattr(job, "load_critics", load)
    figures, result = run(Job(PROMPT, tmp_path, seed=5, values=FEW))
    images = [pictures.to_uint8(image) for image, _ in selectors[0].seen]
    assert {text for _, text in selectors[0].seen} == {PROMPT} and len(images) == 3
    before, after = (cv2.imread(str(tmp_path / f"{name}.png"))[..., ::-1] for name in ("before", "after"))
    assert np.array_equal(before, images[0]) and np.array_equal(after, images[1])
    assert not np.array_equal(before, after) and result.best_update == figures["best_iteration"] == 1
    assert (figures["score_before"], figures["score_after"]) == (0.5, 0.9)


def test_a_jobs_negative_prompt_and_seed_reach_the_run(tmp_path):
    """A negative prompt that is the prompt takes the guidance away."""
    plain = {"method": "none", "steps": 2}
    runs = {}
    for name, own in {
        "against": Job(PROMPT, tmp_path, negative_prompt=PROMPT, seed=3, values=plain),
        "unguided": Job(PROMPT, tmp_path, seed=3, values={**plain, "guidance_scale": 1.0}),
        "guided": Job(PROMPT, tmp_path, seed=3, values=plain),
        "other": Job(PROMPT, tmp_path, seed=4, values=plain),
    }.items():
        runs[name] = run(own)[1].first.latent
    assert torch.allclose(runs["against"], runs["unguided"], atol=1e-4)
    assert not torch.allclose(runs["guided"], runs["unguided"], atol=0.1)
    assert not torch.allclose(runs["guided"], runs["other"], atol=0.1)


def test_an_initial_image_is_a_start_from_it(tmp_path):
    picture = np.full((128, 128, 3), 90, np.uint8)
    picture[40:90, 40:90] = (30, 60, 220)
    (tmp_path / "in.png").write_bytes(pictures.png(picture))
    own = Job(PROMPT, tmp_path / "out", init_image=tmp_path / "in.png", values=FEW)
    figures, result = run(own)
    assert figures["start"] == "image" and figures["sampler"] == "o-belm"
    backend = load_backend("tiny")
    latent = backend.encode(pictures.to_tensor(picture))
    assert (result.first.latent - latent).abs().max() < 1e-5


def test_the_bar_has_room_for_every_image_and_is_full_at_the_end(tmp_path, capsys):
    run(Job(PROMPT, tmp_path, values=FEW))
    told = capsys.readouterr().err
    assert "Loading the models ...\n" in told and "SGOOL" in told and "| 3/3 [" in told
    run(Job(PROMPT, tmp_path, values={"method": "none", "steps": 2}))
    assert "| 1/1 [" in capsys.readouterr().err


def test_what_a_run_costs_is_told_before_it_and_counted_after_it(tmp_path, capsys):
    """One image, and two updates of two images each; in seconds once the first image is there."""
    figures, _ = run(Job(PROMPT, tmp_path, values={**FEW, "strength": 1.0}))
    told = capsys.readouterr().err
    words = "sgool: This takes about 5 times an image's time.\n"
    assert 0 < told.index(words) < told.index("SGOOL:")
    assert re.search(r"sgool: about \d+ s\n", told)
    assert figures["cost_images"] == 5
    plain, _ = run(Job(PROMPT, tmp_path, values={"method": "none", "steps": 2, "guidance_scale": 1.0}))
    told = capsys.readouterr().err
    assert plain["cost_images"] == 1 and "This takes" not in told and "sgool: about" not in told


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": -1}, "seed must lie"),
        ({"prompt": " "}, "prompt is empty"),
        ({"values": {"nonsense": 1}}, "'nonsense' is no setting"),
        ({"values": {"start": "image"}}, "go together"),
        ({"init_image": "in.png", "values": {"start": "seed"}}, "go together"),
        ({"init_image": "in.png"}, "in.png cannot be read"),
        ({"device": "meta"}, "'meta' holds no data"),
    ],
    ids=str,
)
def test_a_job_that_cannot_be_done_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, changes, sentence):
    def load(*args, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(job, "fetch", load)
    monkeypatch.setattr(job, "load_backend", load)
    if "init_image" in changes:
        changes = {**changes, "init_image": tmp_path / changes["init_image"]}
    with pytest.raises(SgoolError, match=sentence):
        run(replace(Job(PROMPT, tmp_path / "out"), **changes))


def test_the_output_folder_is_made_and_left_without_a_trace_of_the_check(tmp_path):
    with pytest.raises(SgoolError, match="meta"):
        run(Job(PROMPT, tmp_path / "new" / "folder", device="meta"))
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SgoolError, match=r"The output folder .*file is a file\."):
        run(Job(PROMPT, tmp_path / "file", device="meta"))


def test_weights_are_looked_for_in_the_folder_of_the_job(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(job, "fetch", lambda wanted, folder: asked.append((wanted, folder)))
    monkeypatch.setattr(job, "default_models_dir", lambda: tmp_path / "usual")
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = {"method": "none", "steps": 2}
    run(Job(PROMPT, tmp_path, values=plain))
    run(Job(PROMPT, tmp_path, models_dir=tmp_path / "own", values=plain))
    run(Job(PROMPT, tmp_path, models_dir=job.Path("~/mine"), values=plain))
    assert [folder for _, folder in asked] == [tmp_path / name for name in ("usual", "own", "mine")]
    assert {(each.guide, each.selector, each.detector) for each, _ in asked} == {("embedded", "embedded", "spectral")}


def test_the_embedded_model_runs_on_one_thread_and_other_models_as_they_like(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    plain = {"steps": 2, "guide": "embedded", "selector": "embedded"}
    run(Job(PROMPT, tmp_path, model=str(tiny.MODEL), values={**plain, "method": "none"}))
    assert set_to == []
    run(Job(PROMPT, tmp_path, values={**plain, "method": "none"}))
    assert set_to == [1]


def test_the_curve_of_an_earlier_run_is_removed(tmp_path):
    (tmp_path / "loss.png").write_bytes(b"of an earlier run")
    result = improved()
    result.losses, result.scores = [], []
    for _ in range(2):
        write(Job(PROMPT, tmp_path), resolve({}, model="tiny"), result, CPU)
        assert not (tmp_path / "loss.png").exists()


def box(picture, region, margin=0):
    """Where a region of result.json is in a picture [H, W, 3]."""
    mask = np.zeros(picture.shape[:2], bool)
    top, left = region["top"], region["left"]
    mask[top : top + region["height"], left : left + region["width"]] = True
    return mask


def test_zoom_shows_each_place_before_and_after(tmp_path, capsys):
    """Small subjects: without a judge both places are painted again."""
    prompt = "a small frog and a small car on a busy red background"
    values = {"method": "none", "zoom": True, "zoom_judge": False, "zoom_largest": 1.0}
    figures, result = run(Job(prompt, tmp_path, seed=2, values=values))
    assert [each["verdict"] for each in figures["places"]] == ["kept", "kept"]
    assert {each["text"] for each in figures["places"]} <= {
        f"a {it} on a busy red background" for it in ("frog", "car")
    }
    before, after = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("before", "after"))
    assert np.array_equal(before[..., ::-1], pictures.to_uint8(result.first.image))
    places = [box(before, each["region"]) for each in figures["places"]]
    assert all((before != after)[place].any() for place in places)
    outside = ~(places[0] | places[1])
    assert np.array_equal(before[outside], after[outside])
    # Ten steps of the image, four of each place, and both halves of the guidance.
    assert figures["forward_equivalents"] == 2 * (10 + 2 * 4)
    rows = cv2.imread(str(tmp_path / "zoom.png"))
    assert rows.shape[1] == 2 * 256 + 3 * 16
    told = capsys.readouterr().err
    assert "SGOOL zoom: 100%" in told and "a frog: kept" in told
    assert figures["score_after"] != figures["score_before"] == result.best.score


def test_an_image_of_ones_own_keeps_its_size_and_changes_in_the_mask_only(tmp_path):
    picture = np.random.default_rng(1).integers(0, 256, (300, 200, 3), np.uint8)
    mask = np.zeros((300, 200, 3), np.uint8)
    mask[100:160, 50:110] = 255
    for name, image in (("in", picture), ("mask", mask)):
        (tmp_path / f"{name}.png").write_bytes(pictures.png(image))
    values = {"iterations": 0, "zoom_judge": False, "zoom_padding": 0.0}
    own = Job(PROMPT, tmp_path / "out", init_image=tmp_path / "in.png", mask=tmp_path / "mask.png", values=values)
    figures, _ = run(own)
    (zoomed,) = figures["places"]
    assert figures["zoom_by"] == "mask" and zoomed["verdict"] == "kept"
    after = cv2.imread(str(tmp_path / "out" / "after.png"))[..., ::-1]
    assert after.shape == picture.shape
    assert np.array_equal((after != picture).any(-1) & (mask[..., 0] == 0), np.zeros((300, 200), bool))
    assert (after != picture)[mask > 0].mean() > 0.9
    small = Job(PROMPT, tmp_path / "out", init_image=tmp_path / "in.png", mask=tmp_path / "in.png", values=values)
    (tmp_path / "in.png").write_bytes(pictures.png(picture[:150]))
    run(small)
    with pytest.raises(SgoolError, match="The mask has 200x300 pixels, but the image 200x150"):
        run(own)


@pytest.mark.parametrize(
    "values", [{"zoom": True, "zoom_by": "mask"}, {"zoom_by": "mask", "zoom": True, "method": "none"}]
)
def test_zoom_by_mask_without_one_is_refused_before_anything_loads(tmp_path, values, monkeypatch):
    monkeypatch.setattr(job, "load_backend", None)
    with pytest.raises(SettingError, match="mask and a mask go together"):
        run(Job(PROMPT, tmp_path, values=values))


def test_ctrl_c_while_zooming_keeps_what_is_done(tmp_path, monkeypatch):
    """The second place is not reached."""
    guard = Guard()
    monkeypatch.setattr(job.Closer, "end", lambda self, repaint, image: setattr(guard, "number", 2))
    values = {"method": "none", "zoom": True, "zoom_judge": False, "zoom_largest": 1.0}
    prompt = "a small frog and a small car on a busy red background"
    figures, _ = run(Job(prompt, tmp_path, seed=2, values=values), guard)
    assert [each["verdict"] for each in figures["places"]] == ["kept", "stopped"]
    assert "Zoom ended early" in figures["ended"] and (tmp_path / "zoom.png").exists()


@pytest.mark.parametrize("error", [SgoolError("The map is broken."), RuntimeError("CUDA out of memory")])
def test_a_zoom_that_cannot_begin_leaves_the_image(tmp_path, monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr("sgool.zoom.find_places", fails)
    figures, result = run(Job(PROMPT, tmp_path, values={"method": "none", "steps": 2, "zoom": True}))
    assert figures["ended"] == f"Zoom left the image as it was. {error}" and figures["places"] == []
    assert figures["score_after"] == result.best.score
