"""An extension for tests in a running WebUI. It reports the state that SGOOL must restore, and makes faults on demand.

Only the tests link it.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import sgool_recorder
import torch
from modules import extensions, processing, script_callbacks, scripts, sd_models, sd_samplers, shared
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sgool_describe import describe
from sgool_gradient import measured
from sgool_networks import left, networks, unet


def state() -> dict[str, Any]:
    """The state that must be the same before and after a run with SGOOL."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return {
        **left(networks()),
        "graphs": sum(tensor.grad_fn is not None for tensor in tensors),
        "rng": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "grad_enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "attention": _attention(),
        "state": [shared.state.job, shared.state.job_count, shared.state.textinfo],
    }


def _attention() -> str:
    """Of AUTOMATIC1111, which can be told which one to use; the others choose by themselves."""
    hijack = sys.modules.get("modules.sd_hijack")
    return str(getattr(getattr(hijack, "model_hijack", None), "optimization_method", ""))


class Fault:
    """A fault in the network while gradients are recorded. It happens after `after` calls, `times` times."""

    def __init__(self, kind: str = "", after: int = 0, times: int = 0) -> None:
        self.kind, self.after, self.times, self.calls = kind, after, times, 0


fault = Fault()


def arm(body: dict[str, Any]) -> dict[str, Any]:
    """Request a fault. {} cancels it."""
    global fault
    fault = Fault(**body)
    network = unet()
    if not hasattr(network, "sgool_probe"):
        network.sgool_probe = network.register_forward_hook(_fail)
    return {}


def _fail(network: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
    if not fault.kind or not torch.is_grad_enabled():
        return None
    fault.calls += 1
    if fault.calls <= fault.after or fault.times <= 0:
        return None
    fault.times -= 1
    if fault.kind == "memory":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (a test)")
    if fault.kind == "full":
        torch.empty(2**50, dtype=torch.uint8, device=output.device)  # no GPU has as much, so this raises the real error
    if fault.kind == "error":
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (a test)")
    return output * float("nan")


calls: list[int] = []
"""How many images each call of the UNet had, since the last request."""


def counted() -> list[int]:
    network = unet()
    if not hasattr(network, "sgool_counts"):
        network.sgool_counts = network.register_forward_pre_hook(lambda network, given: calls.append(len(given[0])))
    told = calls.copy()
    calls.clear()
    return told


steps: list[list[Any]] = []
"""What each call of the denoiser told extensions, since the last request: the timestep or noise level, the number of
the step, and how many steps there are."""


def told() -> list[list[Any]]:
    heard = steps.copy()
    steps.clear()
    return heard


def _hear(params: Any) -> None:
    steps.append([params.sigma[0].item(), params.sampling_step, params.total_sampling_steps])


renders: list[float] = []
"""Of runs whose prompt ends with "rendered": the same distance of what the user's sampler makes of the seed's noise."""

gradients: list[dict[str, Any]] = []
"""Of runs whose prompt ends with "gradient" or "gradients of eps and image", see sgool_gradient."""

firsts: list[float] = []
"""For every run so far, the distance of its first latent from the WebUI's latent, relative to the WebUI's latent."""


def _watch() -> None:
    from sgool.webui import batch, render

    generate = batch.generate

    def watched(host: Any, *args: Any, **kwargs: Any) -> Any:
        words = host.p.prompt.split("<")[0].strip()
        if words.endswith(("gradient", "gradients of eps and image")):
            gradients.append(measured(host, decoder=words.endswith("image")))
        result = generate(host, *args, **kwargs)
        firsts.append(((result.first.latent - host.original).norm() / host.original.norm()).item())
        if host.p.prompt.endswith("rendered"):  # what the user's sampler makes of the seed's own noise
            made = render.sampled(host, host.seed_noise, lambda step: None).double()
            renders.append(((made - host.original).norm() / host.original.norm()).item())
        return result

    batch.generate = watched


def last() -> list[dict[str, Any]]:
    """For each image of the last run in txt2img, what the infotext does not say."""
    from sgool.webui import gallery

    entries = gallery.runs[next(reversed(gallery.runs))]
    outcomes = [entry.outcome for entry in entries if entry.outcome]
    kept = [
        {"before": each.score_before, "scores": each.result.scores, "losses": each.result.losses} for each in outcomes
    ]
    return [{**each, "first": first} for each, first in zip(kept, firsts[-len(kept) :], strict=True)]


outer: list[Any] = []
"""The processing object of the user's generation."""

passes: list[dict[str, Any]] = []
"""Of After Detailer's passes in a generation with the argument "compare", beside SGOOL's own over the same: the largest
difference of a channel, how many pixels were painted, and the seconds of both."""


def _compare(p2: Any) -> Any:
    """In place of the WebUI's process_images within After Detailer: its pass, and ours with what it was given."""
    from sgool.webui.inpaint import Area, Inpainter

    p, image = outer[-1], p2.init_images[0].copy()
    number = p.iteration * p.batch_size + p.batch_index
    area = Area(p2.image_mask.copy(), p2.mask_blur, p2.inpaint_full_res_padding)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(3):
        theirs = copy.copy(p2)
        theirs.init_images = [image.copy()]
        theirs.cached_c, theirs.cached_uc = [None, None], [None, None]
        torch.manual_seed(p2.seed)  # the VAE's encoder draws from torch's numbers; ours are always the same
        begun = time.perf_counter()
        processed = processing.process_images(theirs)
        seconds["theirs"].append(time.perf_counter() - begun)
        painter = Inpainter(p, number, p2.denoising_strength, lambda step: None)
        begun = time.perf_counter()
        ours = painter.paint(image, area, p2.prompt, p2.seed - p.all_seeds[number])
        seconds["ours"].append(time.perf_counter() - begun)
    arrays = [np.asarray(each, np.int16) for each in (image, processed.images[0], ours)]
    passes.append(
        {
            "difference": int(np.abs(arrays[1] - arrays[2]).max()),
            "painted": int((arrays[0] != arrays[1]).any(-1).sum()),
            **seconds,
        }
    )
    return processed


def compared() -> list[dict[str, Any]]:
    return passes


def reload() -> dict[str, Any]:
    """Load the model from its file again."""
    sd_models.load_model()
    return {}


def random_model(body: dict[str, Any]) -> dict[str, Any]:
    """Write the checkpoint body["path"] with random weights, for the configuration beside it."""
    from modules import sd_disable_initialization

    path = Path(body["path"])
    config = OmegaConf.load(path.with_suffix(".yaml"))
    with sd_disable_initialization.DisableInitialization():
        model = sd_models.instantiate_from_config(config.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                # Not zero: the WebUI divides by the mean of a text's encoding.
                parameter.normal_(std=0.1, generator=generator)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return {}


def starting() -> dict[str, float]:
    """Processor time in seconds to load the extension and to draw both tabs. Wall time would depend on other load."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("sgool.")}
    begun = time.process_time()
    try:
        script = importlib.import_module("sgool.webui.script")
        for name in ("api", "options", "xyz"):
            importlib.import_module(f"sgool.webui.{name}")
        loaded = time.process_time()
        with gr.Blocks():
            for is_img2img in (False, True):
                script.SgoolScript().ui(is_img2img)
        return {"load": loaded - begun, "draw": time.process_time() - loaded}
    finally:
        for name in [name for name in sys.modules if name.startswith("sgool.")]:
            del sys.modules[name]
        sys.modules.update(ours)


def describe_all(body: dict[str, Any]) -> dict[str, Any]:
    """See sgool_describe. `denoiser` and `p` are the objects that a run works with."""
    roots = {
        "denoiser": sd_samplers.create_sampler("DDIM", shared.sd_model).model_wrap_cfg,
        "p": processing.StableDiffusionProcessingTxt2Img(),
    }
    return {name: describe(name, roots) for name in body["names"]}


def extension_metadata() -> dict[str, Any]:
    """By extension folder: the canonical name, and the content of metadata.ini with section names in lower case."""
    return {
        each.name: [
            each.canonical_name,
            {section.lower(): dict(each.metadata.config.items(section)) for section in each.metadata.config.sections()},
        ]
        for each in extensions.extensions
    }


def order(hook: str, tab: str) -> list[str]:
    """The files of the scripts that have a hook, in the order in which the WebUI calls them in a tab."""
    runner = getattr(scripts, f"scripts_{tab}")
    return [Path(each.callback.filename).name for each in runner.ordered_callbacks(hook)]


def gpu_memory() -> dict[str, int]:
    """The bytes of all tensors on the GPU."""
    gc.collect()
    return {"allocated": torch.cuda.memory_allocated()}


def hooks() -> dict[str, Any]:
    return {"events": sgool_recorder.events, "attributes": sorted(sgool_recorder.attributes)}


def _add(_demo: Any, app: Any) -> None:
    _watch()
    app.add_api_route("/sgool-probe/state", state, methods=["GET"])
    app.add_api_route("/sgool-probe/last", last, methods=["GET"])
    app.add_api_route("/sgool-probe/renders", lambda: renders, methods=["GET"])
    app.add_api_route("/sgool-probe/gradients", lambda: gradients, methods=["GET"])
    app.add_api_route("/sgool-probe/calls", counted, methods=["GET"])
    app.add_api_route("/sgool-probe/steps", told, methods=["GET"])
    app.add_api_route("/sgool-probe/hooks", hooks, methods=["GET"])
    app.add_api_route("/sgool-probe/extensions", extension_metadata, methods=["GET"])
    app.add_api_route("/sgool-probe/compared", compared, methods=["GET"])
    app.add_api_route("/sgool-probe/order/{tab}/{hook}", order, methods=["GET"])
    app.add_api_route("/sgool-probe/arm", arm, methods=["POST"])
    app.add_api_route("/sgool-probe/starting", starting, methods=["GET"])
    app.add_api_route("/sgool-probe/reload", reload, methods=["POST"])
    app.add_api_route("/sgool-probe/random-model", random_model, methods=["POST"])
    app.add_api_route("/sgool-probe/gpu-memory", gpu_memory, methods=["GET"])
    app.add_api_route("/sgool-probe/describe", describe_all, methods=["POST"])


script_callbacks.on_app_started(_add)
script_callbacks.on_cfg_denoiser(_hear)

for route in (arm, random_model, describe_all):
    route.__annotations__ = {"body": dict}  # FastAPI reads annotations, but cannot resolve postponed ones here


class Probe(sgool_recorder.Recorder, scripts.Script):
    """With the argument "inner", this script paints the image again in a run of its own, like After Detailer; with
    "compare", After Detailer's own passes are compared with SGOOL's.
    """

    def title(self) -> str:
        return "SGOOL probe"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return [gr.Textbox(value="", label="SGOOL probe", visible=False)]

    def process(self, p: Any, *args: Any) -> None:
        super().process(p, *args)
        if getattr(p, "_ad_inner", False) or hasattr(p, "sgool_probe"):  # After Detailer calls it with a copy of p, too
            return
        p.sgool_probe = True
        outer[:], passes[:] = [p], []
        for data in scripts.scripts_data:
            if data.module.__name__.startswith("!adetailer"):
                data.module.process_images = _compare if args[:1] == ("compare",) else processing.process_images

    def postprocess_image(self, p: Any, pp: Any, what: str) -> None:
        if what != "inner" or getattr(p, "_ad_inner", False):
            return
        inner = processing.StableDiffusionProcessingImg2Img(
            sd_model=p.sd_model,
            outpath_samples=p.outpath_samples,
            init_images=[pp.image],
            denoising_strength=0.3,
            prompt=p.prompt,
            negative_prompt=p.negative_prompt,
            seed=p.seed,
            steps=p.steps,
            cfg_scale=p.cfg_scale,
            width=p.width,
            height=p.height,
            sampler_name=p.sampler_name,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        inner._ad_inner = True
        inner.scripts = p.scripts
        inner.script_args = p.script_args
        pp.image = processing.process_images(inner).images[0]
