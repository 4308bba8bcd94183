"""The fake WebUI of the other tests (tests/fake_webui) has the names, signatures and order of hooks of the real one."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import sys
from pathlib import Path

import pytest
from hosts import FORGE, HOST, NEO
from payloads import BASE, HIRES, IMG2IMG, make

PROBE = Path(__file__).parent / "probe"
FAKE = Path(__file__).parents[1] / "fake_webui" / "modules"
OURS = Path(__file__).parents[2] / "sgool" / "webui"

PLACES = {
    "shared.State": "shared.state",
    "shared.Options": "shared.opts",
    "shared.TotalTQDM": "shared_total_tqdm.TotalTQDM",
    "sd_samplers_cfg_denoiser.CFGDenoiser": "denoiser",
    "sd_samplers.DDIM": "sd_samplers_timesteps.CompVisSampler",
    "sd_samplers.EulerAncestral": "sd_samplers_kdiffusion.KDiffusionSampler",
}
"""Where the fake has a class, and where the real one has it or an object of it."""

if HOST in (FORGE, NEO):
    PLACES["ui_components.InputAccordion.extra"] = "ui_components.InputAccordionImpl.extra"

LACKING = {
    "Forge": ("sd_hijack.StableDiffusionModelHijack.circular_enabled",),
    "Forge Neo": ("sd_hijack",),
}
"""What a program does not have, in which the extension does without."""

OWN = {
    "errors.reported",
    # A sampler of the WebUI gets its function when it is made, and k-diffusion knows the levels.
    *(f"sd_samplers.{name}.{own}" for name in ("DDIM", "EulerAncestral") for own in ("func", "levels")),
    *(f"sd_samplers.Levels{own}" for own in ("", ".t_to_sigma", ".sigma_to_t")),
    "images.saved",
    "processing.Infotext",
    "processing.Infotext.get",
    "processing.prompts",
    "processing.schedule",
    # The WebUI sets these on the object, where they apply.
    "processing.StableDiffusionProcessing.mask",
    "processing.StableDiffusionProcessing.nmask",
    "processing.StableDiffusionProcessing.refiner_checkpoint_info",
    # Only those of img2img have these, and only once they paint over something.
    "processing.StableDiffusionProcessing.mask_for_overlay",
    "processing.StableDiffusionProcessing.init_images",
    "processing.StableDiffusionProcessing.image_mask",
    "processing.StableDiffusionProcessing.resize_mode",
    "processing.finish",
    "processing.params_txt",
    "extra_networks.loaded",
    "script_callbacks.registered",
    "scripts.ScriptRunner.called",
}
"""What only the fake has, for the tests to look at or to build itself from."""

MADE_BY_THE_HOST = {
    "processing.Processed",
    "processing.StableDiffusionProcessing",
    "processing.StableDiffusionProcessingImg2Img",
    "processing.StableDiffusionProcessingTxt2Img",
    "scripts.PostprocessImageArgs",
    "scripts.ScriptRunner",
}
"""Classes that the extension never makes an object of: their constructors may differ in what they need."""


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(PROBE))
    yield importlib.import_module("sgool_describe"), importlib.import_module("sgool_recorder")
    sys.path.remove(str(PROBE))


def fake_names():
    """Dotted names of all functions, classes, methods and attributes that the fake defines."""
    names = []
    for path in sorted(FAKE.glob("[a-z]*.py")):
        module = importlib.import_module(f"modules.{path.stem}")
        assert Path(module.__file__) == path, "the fake is not what is imported"
        for name, value in vars(module).items():
            if name.startswith("_") or inspect.ismodule(value):
                continue
            if getattr(value, "__module__", module.__name__) != module.__name__:
                continue
            names.append(f"{path.stem}.{name}")
            if inspect.isclass(value) and not issubclass(value, tuple):
                members = [key for key in vars(value) if not key.startswith("_")]
                names += [f"{path.stem}.{name}.{key}" for key in members]
    lacking = LACKING.get(HOST.name, ())
    return [name for name in names if name not in OWN and not name.startswith(lacking)]


HOSTS = {"AUTOMATIC1111": ("automatic",), "reForge": ("forge", "reforge")}
"""By host, what of the package `hosts` is for it; of all others that is Forge's."""


def used_names(*hosts):
    """Dotted names of the WebUI's `modules` that the extension's code speaks of, and attributes of p: both sorted.

    hosts: which of the package `hosts` are looked at as well.
    """
    names, attributes = set(), set()
    for path in [*OURS.glob("*.py"), *(OURS / "hosts" / f"{host}.py" for host in hosts)]:
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name: "" if node.module == "modules" else node.module.removeprefix("modules.") + "."
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "modules"
            for alias in node.names
        }
        for name, prefix in imported.items():
            names.add(prefix + name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                dotted = ast.unparse(node)
                first = dotted.split(".")[0]
                if first in imported and dotted.replace(".", "").replace("_", "").isalnum():
                    names.add(imported[first] + dotted)
                if isinstance(node.ctx, ast.Load) and ast.unparse(node.value) in ("p", "self.p"):
                    attributes.add(node.attr)
    return sorted(names), sorted(attributes)


def place(name):
    for fake, real in PLACES.items():
        if name == fake or name.startswith(fake + "."):
            return real + name.removeprefix(fake)
    return name


def test_the_fake_has_nothing_that_the_real_one_lacks(server, tools):
    describe, _ = tools
    names = fake_names()
    assert len(names) > 80
    real = server.post("/sgool-probe/describe", {"names": [place(name) for name in names]})
    wrong = []
    for name in names:
        there, fake = real[place(name)], describe.describe(name, {})
        if there is None:
            wrong.append(f"{name} is not in the WebUI")
        elif "names" in fake and "names" in there and name not in MADE_BY_THE_HOST:
            extra = [each for each in fake["names"] if each not in there["names"]]
            if extra and not there["more"]:
                wrong.append(f"{name} takes {extra}, which the WebUI's does not: {there['names']}")
            common = [each for each in fake["names"] if each in there["names"]]
            if common != [each for each in there["names"] if each in common]:
                wrong.append(f"{name} has another order of arguments: {common}, {there['names']}")
            if name not in PLACES and not fake["more"]:
                lacking = [each for each in there["required"] if each not in fake["names"]]
                if lacking:
                    wrong.append(f"{name} does without {lacking}, which the WebUI's requires")
            if ("Exception" in fake["bases"]) != ("Exception" in there["bases"]):
                wrong.append(f"{name} is another kind of exception: {there['bases']}")
    assert not wrong, "\n".join(wrong)


def test_what_the_extension_uses_is_in_both(server, tools):
    describe, _ = tools
    names, attributes = used_names(*HOSTS.get(HOST.name, ("forge",)))
    assert len(names) > 30
    assert len(attributes) > 8
    real = server.post("/sgool-probe/describe", {"names": names})
    assert [name for name in names if real[name] is None] == []
    fakes = [name for name in used_names("automatic")[0] if name.split(".")[0] not in ("k_diffusion",)]
    assert [name for name in fakes if describe.describe(name, {}) is None] == []
    there = set()
    for payload in (BASE, IMG2IMG):
        make(server, payload)
        there |= set(server.get("/sgool-probe/hooks")["attributes"])
    assert [name for name in attributes if name not in there] == []


CASES = {
    "txt2img": ("Txt2Img", BASE, {}),
    "batches": ("Txt2Img", {**BASE, "batch_size": 2, "n_iter": 2}, {"batch_size": 2, "n_iter": 2}),
    "hires": ("Txt2Img", HIRES, {"enable_hr": True}),
    "img2img": ("Img2Img", IMG2IMG, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_hooks_come_in_the_same_order_with_the_same(server, webui, tools, case):
    _, recorder = tools
    kind, payload, options = CASES[case]
    make(server, {**payload, "width": 64, "height": 64})  # as small as the fake one's
    real = server.get("/sgool-probe/hooks")["events"]
    Seen = type("Seen", (recorder.Recorder, webui.scripts.Script), {})
    if kind == "Img2Img":
        import torch

        options = {**options, "init_latent": torch.zeros(1, 4, 8, 8)}
    webui.make(kind=kind, first=[Seen()], **options)
    if HOST is FORGE:  # it calls this hook twice before the second pass of hires fix
        real = [event for event, _ in itertools.groupby(real)]
    assert [event[:3] for event in recorder.events] == [event[:3] for event in real]
    assert [len(event) for event in recorder.events] == [len(event) for event in real]
    for fake, true in zip(recorder.events, real, strict=True):
        if fake[0] == "post_sample" or (fake[0] == "process_before_every_sampling" and not fake[2][1]):
            assert fake[3] == true[3]
