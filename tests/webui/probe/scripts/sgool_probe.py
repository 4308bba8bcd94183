"""A test's window into a running WebUI: what SGOOL must leave as it found it. Linked only by the tests."""

from __future__ import annotations

import gc
import hashlib

import torch
from modules import script_callbacks, scripts, sd_hijack, shared


def _digest(state: torch.Tensor) -> str:
    return hashlib.sha256(state.numpy().tobytes()).hexdigest()[:16]


def state() -> dict[str, object]:
    model = shared.sd_model
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    modules = list(model.modules())
    return {
        "trainable": sum(parameter.requires_grad for parameter in model.parameters()),
        "graphs": sum(tensor.grad_fn is not None for tensor in tensors),
        "gradients": sum(parameter.grad is not None for parameter in model.parameters()),
        # A method that is patched on an object lies in its __dict__.
        "patched": sorted(
            f"{type(module).__name__}.{name}"
            for module in modules
            for name, value in vars(module).items()
            if callable(value) and not isinstance(value, (type, torch.nn.Module, torch.nn.Parameter))
        ),
        "training_mode": sum(module.training for module in modules),
        "rng": _digest(torch.get_rng_state()),
        "grad_enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "optimizer": str(sd_hijack.model_hijack.optimization_method),
        "job": [shared.state.job, shared.state.job_count, shared.state.sampling_steps, shared.state.textinfo],
        "flags": [shared.state.interrupted, shared.state.skipped, shared.state.stopping_generation],
        "preview_graph": getattr(shared.state.current_latent, "grad_fn", None) is not None,
        "tensors": len(tensors),
    }


def signatures() -> dict[str, str]:
    """Filled by tests of the fake `modules` package; see test_fake.py."""
    return {}


def _add(_demo: object, app: object) -> None:
    app.add_api_route("/sgool-probe/state", state, methods=["GET"])  # type: ignore[attr-defined]


script_callbacks.on_app_started(_add)


class Probe(scripts.Script):
    """Damages the run when a test asks for it, by name, in the first argument."""

    def title(self) -> str:
        return "SGOOL probe"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible
