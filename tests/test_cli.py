"""The command line as people call it, on the real embedded model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sgool import tiny
from sgool.__main__ import main
from sgool.cli import main as product
from sgool.errors import SgoolError
from sgool.flags import flag
from sgool.job import Bar, Job
from sgool.result import TRIED, Result, Snapshot
from sgool.settings import ABOUT, DEFAULTS, Settings
from sgool.signals import Guard

FILES = {"before.png", "after.png", "saliency.png", "loss.png", "comparison.png", "phrases.png", "result.json"}
NO_FILES = ["--guide", "embedded", "--selector", "embedded", "--saliency", "spectral"]
FAST = ["--steps", "3", "--iterations", "1", "--cutouts", "1"]


def pixels(path):
    """A PNG as an image [1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)[None] / 255


def test_demo_writes_everything_and_prints_only_json(tmp_path, capsys, critics):
    out = tmp_path / "new" / "folder"
    assert main(["demo", *FAST, "--json", "--out", str(out)]) == 0
    printed, told = capsys.readouterr()
    figures = json.loads(printed)
    assert {path.name for path in out.iterdir()} == FILES
    assert figures == json.loads((out / "result.json").read_text())
    wanted = {"prompt", "seed", "method", "sampler", "steps", "iterations", "seconds"}
    assert wanted <= figures.keys() and figures["steps"] == 3 and figures["peak_memory_mb"] > 0
    # Three steps of both halves of the guidance, the last two of them back through the prompt's half, and on again.
    assert (figures["unet_evals"], figures["forward_equivalents"]) == (2 * 3 + 2 + 2 * 2, 2 * 3 + 2 * 2 + 2 * 2)
    assert len(figures["losses"]) == len(figures["scores"]) == 2 and figures["ending"] == "done"
    assert figures["score_before"] == figures["score_start"] == figures["scores"][0]
    assert figures["score_after"] == figures["scores"][figures["best_iteration"]] == max(figures["scores"])
    for name in ("before", "after"):  # the scores are those of the pictures, whose pixels have 8 bits
        score = critics.selector.judge(pixels(out / f"{name}.png"), figures["prompt"])
        assert score == pytest.approx(figures[f"score_{name}"], abs=2e-3)
    assert "SGOOL" in told  # the progress bar


def snapshot(iteration, score, shade=0.5):
    image = torch.full((1, 3, 64, 64), shade)
    return Snapshot(iteration, image, torch.zeros(1, 4, 8, 8), score, torch.zeros(64, 64))


@pytest.mark.parametrize("candidates", [1, 4])
def test_the_bar_shows_the_scores_of_the_first_image_of_the_start_and_of_the_best(candidates):
    class Seen:
        text, images, total, written = "", 0, 8, ()

        def write(self, text, file):
            self.written += (text,)

        def set_postfix_str(self, text):
            self.text = text

        def update(self):
            self.images += 1

    bar = Bar(Seen(), Guard(), Settings(iterations=5, steps=20, strength=0.8))
    for number, seconds in enumerate((100, 10, 10), 1):  # the networks warm up in the first step
        bar.times[:] = [each - seconds for each in bar.times]
        for _ in range(candidates):
            bar.step(number, 3)
    result = Result(snapshot(TRIED, 0.5), snapshot(2, 0.75), scores=[0.625, 0.6, 0.75])
    bar.image(result, result.best)
    bar.step(3, 8)
    assert bar.bar.text == "clip score before 0.500, start 0.625, best 0.750 at 2, step 3/8"
    bar.image(Result(snapshot(TRIED, 0.5), snapshot(TRIED, 0.9), scores=[0.625]), result.best)
    bar.step(4, 8)
    assert "best 0.900, step 4/8" in bar.bar.text and bar.bar.images == 2
    assert re.fullmatch(r"sgool: about 27\d s", *bar.bar.written), "30 s for an image, and 5 updates of 1.6 each"


def test_with_candidates_the_score_at_the_start_is_that_of_the_one_chosen(tmp_path):
    assert main(["demo", *FAST, "--candidates", "3", "--seed", "5", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["score_start"] == figures["scores"][0] != figures["score_before"]


def test_without_json_it_prints_where_the_pictures_are(tmp_path, capsys):
    out = tmp_path / "pictures"
    assert main(["generate", "--prompt", "a car on a red background", "--method", "none", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    before, after = (cv2.imread(str(out / f"{name}.png")) for name in ("before", "after"))
    assert before.shape == (128, 128, 3) and np.array_equal(before, after)


def test_start_from_a_picture_of_another_shape(tmp_path):
    picture = np.full((150, 300, 3), 90, np.uint8)
    picture[40:110, 60:130] = (30, 60, 220)
    cv2.imwrite(str(tmp_path / "in.png"), picture)
    arguments = ["--init-image", str(tmp_path / "in.png"), "--strength", "0.7", "--out", str(tmp_path / "out")]
    assert main(["demo", *FAST, "--steps", "5", *arguments]) == 0
    before = cv2.imread(str(tmp_path / "out" / "before.png"))
    assert before.shape == (128, 256, 3)
    assert np.abs(before.astype(int)[:, 200:] - 90).mean() < 40  # the picture itself, as the autoencoder sees it


def test_every_flag_reaches_the_job(monkeypatch):
    seen = []

    def stop(job, guard):
        seen.append(job)
        raise SgoolError("Stopped by the test.")

    own = {
        "prompt": "a car",
        "negative_prompt": "a frog",
        "seed": 7,
        "model": "some/model",
        "init_image": Path("in.png"),
        "mask": Path("mask.png"),
        "out": Path("out"),
        "device": "cpu",
        "dtype": "bfloat16",
        "models_dir": Path("models"),
    }
    flags = {name: about for name, about in ABOUT.items() if about.cli}
    values = {name: about.choices[-1] if about.choices else DEFAULTS[name] for name, about in flags.items()}
    monkeypatch.setattr("sgool.job.run", stop)
    switches = [flag(name if value else f"no_{name}") for name, value in values.items() if isinstance(value, bool)]
    given = {name: value for name, value in {**own, **values}.items() if not isinstance(value, bool)}
    assert main(["generate", *switches, *(f"{flag(name)}={value}" for name, value in given.items())]) == 2
    assert main(["generate", "--prompt", "a car"]) == 2
    assert seen == [Job(**own, values=values), Job("a car", Path("sgool-output"))]


@pytest.fixture
def before_loading(tmp_path, capsys, monkeypatch):
    """Runs a command up to where it would load the models; returns what it has told, line by line."""

    def stop(*args, **options):
        raise SgoolError("Stopped by the test.")

    def begin(*arguments):
        assert main([*arguments, "--out", str(tmp_path / "begun")]) == 2
        printed, told = capsys.readouterr()
        assert not printed
        *lines, last = told.splitlines()
        assert last == "sgool: Stopped by the test." and lines.pop() == "Loading the models ..."
        return lines

    monkeypatch.setattr("sgool.job.load_backend", stop)
    return begin


def test_the_embedded_model_says_which_words_it_knows(before_loading):
    (line,) = before_loading("generate", "--prompt", "a cat reading a newspaper on a (red:1.2) background")
    assert "does not know cat, reading, newspaper." in line
    assert all(word in line for word in ("panda", "sunflower", "purple", "busy", "background"))
    assert not before_loading("generate", "--prompt", "a small panda on a busy red background")
    assert not before_loading("generate", "--prompt", "a panda on a red background", "--negative-prompt", "ugly")
    networks = ("--guide", "embedded", "--selector", "embedded", "--saliency", "spectral")
    assert not before_loading("generate", "--prompt", "a cat", "--model", "some/model", *networks)
    (line,) = before_loading(
        "generate", "--prompt", "a lot of " + "different words each unlike any other known".upper()
    )
    assert line.count(",") < 40 and " ..." in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "doodl", "--cutouts", "4", "--learning-rate", "0.1", "--rule", "adam", "--steps", "4"],
         ["With --method doodl these do nothing: --cutouts, --rule, --learning-rate."]),
        (["--method", "none", "--iterations", "3", "--candidates", "2"],
         ["With --method none these do nothing: --iterations."]),
        (["--cutouts", "4", "--learning-rate", "0.1"], []),
        (["--candidates", "2", "--init-image", "in.png"],
         ["With --method sgool and --start image these do nothing: --candidates."]),
    ],
)  # fmt: skip
def test_flags_that_do_nothing_are_named(arguments, told, before_loading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("in.png", np.zeros((4, 4, 3), np.uint8))
    assert before_loading("demo", *arguments) == [f"sgool: {line}" for line in told]


def test_what_does_nothing_does_not_stand_in_the_result(tmp_path):
    arguments = ["--method", "none", "--steps", "2", "--rule", "adam", "--out", str(tmp_path)]
    assert main(["demo", *arguments]) == 0
    figures = json.loads((tmp_path / "result.json").read_text())
    assert not {"rule", "learning_rate", "cutouts", "saliency_weight", "iterations", "patience"} & figures.keys()
    assert {"method", "steps", "strength", "candidates", "max_regions", "guide", "memory"} <= figures.keys()


BAD = [
    (["demo", "--sampler", "heun"], "sgool: --sampler must be one of bdia"),
    (["demo", "--saliency", "eyes"], "sgool: --saliency must be one of"),
    (["demo", "--method", "magic"], "sgool: --method must be one of"),
    (["demo", "--prompt", "  "], "prompt is empty"),
    (["demo", "--prompt", "<lora:x:1>, ,"], "prompt is empty"),
    (["demo", "--prompt", "a caf\udce9"], "not text (UTF-8)"),
    (["demo", "--seed", "-1"], "seed must lie between 0 and"),
    (["demo", "--seed", str(2**63)], "seed must lie between 0 and"),
    (["generate"], "required: --prompt"),
    (["demo", "--steps", "1"], "sgool: --steps must be at least 2 with the sampler auto"),
    (["demo", "--steps", "251"], "sgool: --steps must be at most 250"),
    (["demo", "--steps", "many"], "invalid int value"),
    (["demo", "--iterations", "-1"], "sgool: --iterations must be at least 0"),
    (["demo", "--strength", "0"], "sgool: --strength must be above 0"),
    (["demo", "--strength", "1.5"], "sgool: --strength must be at most 1"),
    (["demo", "--learning-rate", "nan"], "sgool: --learning-rate must be at least 0"),
    (["demo", "--model", "no-such-model"], "There is no model 'no-such-model'"),
    (["demo", "--init-image", "no-such.png"], "no-such.png cannot be read"),
    (["demo", "--start", "image"], "sgool: --start image and an initial image go together"),
    (["demo", "--start", "seed", "--init-image", "x.png"], "sgool: --start image and an initial image go together"),
    (["demo", "--guidance-scale", "0.5"], "sgool: --guidance-scale must be at least 1, not 0.5."),
    (["demo", "--region-prompt", "a caf\udce9"], "sgool: --region-prompt holds bytes that are not text"),
    (["demo", "--out", ""], "--out: an empty path"),
    (["demo", "--init-image", ""], "--init-image: an empty path"),
    (["demo", "--start", "noise"], "sgool: --start must be one of seed, image"),
    (["demo", "--device", "abacus"], "device 'abacus'"),
    (["demo", "--device", "meta"], "device 'meta'"),
    (["bench", "--device", "meta"], "device 'meta'"),
    (["demo", "--guide", "clip:ViT-Z-99/openai"], "no CLIP model named"),
    (["demo", "--guide", "clip:ViT-B-32/weights"], "no pretrained weights 'weights'"),
    (["demo", "--guide", "clip:../../x"], "sgool: --guide is not valid: a CLIP is named clip:MODEL/WEIGHTS"),
    (["demo", "--selector", "nobody"], "sgool: --selector is not valid: there is no critic 'nobody'"),
    (["compare", "--captions", "no-such.csv"], "no-such.csv cannot be read"),
    (["compare", "--limit", "0"], "--limit"),
    (["compare", "--jobs", "-1"], "--jobs"),
    (["--nonsense"], "required: command"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_line_and_code_2(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    printed, told = capsys.readouterr()
    lines = [line for line in told.splitlines() if line and not line.startswith("Loading")]
    assert code == 2 and not printed and "Traceback" not in told
    assert len(lines) == 1 and sentence in lines[0]


def test_what_is_installed_has_no_laboratory(capsys):
    with pytest.raises(SystemExit):
        product(["bench"])
    assert "invalid choice: 'bench'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        product(["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("demo", "generate", "export-webui")) and "compare" not in told


@pytest.mark.parametrize(
    "change", [{"in_channels": 9}, {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}]
)
def test_models_for_inpainting_and_sdxl_are_refused(change, tmp_path, capsys):
    from diffusers import UNet2DConditionModel

    shutil.copytree(tiny.MODEL, tmp_path / "model")
    config = dict(UNet2DConditionModel.load_config(tiny.MODEL, subfolder="unet"))
    more = {"projection_class_embeddings_input_dim": 48} if "addition_embed_type" in change else {}
    UNet2DConditionModel.from_config({**config, **change, **more}).save_pretrained(tmp_path / "model" / "unet")
    assert main(["demo", *NO_FILES, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "is not a Stable Diffusion 1.x or 2.x model" in capsys.readouterr().err


def test_a_model_without_its_tokenizer_is_refused(tmp_path, capsys):
    """transformers makes an empty one, and with that no prompt can be read."""
    shutil.copytree(tiny.MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
    assert main(["demo", *FAST, *NO_FILES, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sgool: The model ") and last.endswith("its folder tokenizer is missing or not whole.")


def test_no_memory_before_the_first_image(tmp_path, capsys, monkeypatch):
    def full(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("sgool.backends.diffusers.DiffusersBackend.decode", full)
    assert main(["demo", *FAST, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sgool: There is not enough memory")


def test_truncated_weights(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert (
        main(["demo", *NO_FILES, "--model", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out")]) == 2
    )
    assert "could not be loaded" in capsys.readouterr().err


def _at_the_second_start(self, done, total):
    if (done, total) == (1, 3):
        self.starts = getattr(self, "starts", 0) + 1
        if self.starts == 2:
            raise KeyboardInterrupt


def test_stopped_between_the_starting_noises_it_writes_the_best_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("sgool.job.Bar.step", _at_the_second_start)
    assert main(["demo", *FAST, "--candidates", "3", "--memory", "low", "--out", str(tmp_path)]) == 130
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"loss.png"}
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["iterations_done"] == 0 and figures["score_start"] is None
