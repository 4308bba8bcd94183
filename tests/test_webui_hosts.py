"""Which WebUI it is, and how gradients pass networks that were made for inference mode alone."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fake_webui.model import Checkpoint
from modules import sd_samplers_cfg_denoiser, shared
from torch import Tensor, nn

from sgool.checkpointing import checkpoint
from sgool.errors import SgoolError
from sgool.needs import needs
from sgool.settings import Settings
from sgool.webui import models
from sgool.webui.hosts import Automatic, host
from sgool.webui.hosts.forge import GRAPHS, Forge, LevelDenoiser, kept, normally, quantised
from sgool.webui.hosts.passable import NormalTensors, copying, undecorated
from sgool.webui.hosts.proof import prove
from sgool.webui.hosts.reforge import ReForge


@pytest.mark.parametrize(
    ("packages", "kind"),
    [([], Automatic), (["modules_forge", "backend"], Forge), (["modules_forge", "ldm_patched"], ReForge)],
)
def test_the_host_is_known_by_its_packages(tmp_path, monkeypatch, packages, kind):
    for package in packages:
        (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    host.cache_clear()
    try:
        assert type(host()) is kind
    finally:
        host.cache_clear()


class Block(nn.Module):
    """As the transformer blocks of Forge's UNet: what a norm has kept is changed in place."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.in_place = in_place

    def forward(self, x: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        x = x * 1.0
        for _ in range(2):
            n = torch.tanh(self.mix(self.norm(x)))
            if self.in_place:
                x += n
            else:
                x = x + n
        return x


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.mix(x))


def inferred(make: Any) -> nn.Module:
    with torch.inference_mode():
        torch.manual_seed(0)
        network = make()
        network.scale = torch.full((6,), 2.0)
        network.register_buffer("shift", torch.full((6,), 0.5))
        return network


def pulled(function: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    return gradient


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers(), network.scale]


def test_gradients_pass_a_network_from_inference_mode_and_it_is_as_before_afterwards() -> None:
    network = inferred(Block)
    before, places = tensors(network), [each.data_ptr() for each in tensors(network)]
    torch.manual_seed(0)
    expected = pulled(Block(in_place=False), X)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        pulled(network, X)
    normal = NormalTensors([network])
    normal.set()
    with copying(network):
        assert not any(each.is_inference() or each.requires_grad for each in tensors(network))
        assert [each.data_ptr() for each in tensors(network)] == places, "nothing is copied"
        torch.testing.assert_close(pulled(network, X), expected)
    normal.restore()
    normal.restore()  # a second time does nothing
    assert all(now is then for now, then in zip(tensors(network), before, strict=True))
    assert not network.norm._forward_pre_hooks


def test_what_the_webui_has_loaded_in_the_meantime_stays() -> None:
    network = inferred(Block)
    normal = NormalTensors([network])
    normal.set()
    other = nn.Parameter(torch.zeros(6, 6), requires_grad=False)
    network.mix.weight = other
    normal.restore()
    assert network.mix.weight is other and network.mix.bias.is_inference()


def test_norms_get_a_copy_of_what_is_changed_in_place() -> None:
    """Without it autograd complains, and a block that is recomputed gives a wrong gradient without a word."""
    torch.manual_seed(0)
    network, expected = Block(), None
    network.in_place = False
    expected = pulled(network, X)
    network.in_place = True
    with pytest.raises(RuntimeError, match="inplace"):
        pulled(network, X)
    undo = checkpoint([network])
    assert (pulled(network, X) - expected).abs().max() > 1e-3, "the trap is gone, and so may be the copies"
    with copying(network):
        torch.testing.assert_close(pulled(network, X), expected)
    undo()


def test_a_forward_in_inference_mode_is_uncovered_for_a_while() -> None:
    network = Decorated()
    with undecorated(network):
        torch.testing.assert_close(pulled(network, X), pulled(lambda x: torch.sin(network.mix(x)), X))
    assert "forward" not in vars(network)
    assert network(X).is_inference()


class Telling(nn.Module):
    """As Forge's UNet: its blocks hear in a dict which of them they are, and that is written over for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Told(), Told()

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, int] = {}
        for number, block in enumerate((self.first, self.second)):
            options["block"] = number
            x = block(x, options)
        return x


class Told(nn.Module):
    def forward(self, x: Tensor, options: dict[str, int]) -> Tensor:
        factor, options["block"] = 2.0 + options["block"], 7
        return torch.sin(factor * x)


def test_a_block_is_recomputed_with_what_it_was_told_at_first() -> None:
    network = Telling()
    expected = pulled(network, X)
    undo = checkpoint([network.first, network.second])
    torch.testing.assert_close(pulled(network, X), expected)
    undo()


class Skewed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.006 * gradient


def test_a_network_that_curves_is_proven_with_a_smaller_step() -> None:
    torch.manual_seed(0)
    network = nn.Linear(6, 6)
    prove("UNet", lambda x: torch.sin(40 * network(x)), X, [network], rough=False)


def test_the_step_is_in_units_of_the_spread() -> None:
    """A step of 0.002 would be rounding in a latent that is out of all proportion."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.SiLU())
    prove("VAE's decoder", network, 1e4 * X, [network], rough=False)


def test_a_wrong_gradient_is_found_out() -> None:
    """By as little as the trap of changes in place makes it wrong."""
    torch.manual_seed(0)
    network = Block(in_place=False).double()
    x = X.double()
    prove("UNet", network, x, [network], rough=False)
    with pytest.raises(SgoolError, match=r"gradient of the UNet is wrong by 0\.6%"):
        prove("UNet", lambda x: network(Skewed.apply(x)), x, [network], rough=False)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("where", ["values", "gradient"])
def test_nan_is_called_so(where) -> None:
    function = {"values": lambda x: x * torch.nan, "gradient": lambda x: x + 0 * (x * 0).sqrt()}[where]
    with pytest.raises(SgoolError, match="The UNet or its gradient gave NaN"):
        prove("UNet", function, X, [], rough=False)


def test_half_precision_is_proven_as_well() -> None:
    """Although much of a difference in bfloat16 is rounding."""
    torch.manual_seed(0)
    network = nn.Sequential(Block(in_place=False), Block(in_place=False)).bfloat16()
    function = lambda x: network(x.bfloat16())  # noqa: E731
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prove("UNet", function, x, [network], rough=True)
    with pytest.raises(SgoolError, match="wrong"):
        prove("UNet", lambda x: function(1.2 * x - 0.2 * x.detach()), x, [network], rough=True)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.detach())


def test_a_part_that_lets_no_gradient_through_is_named() -> None:
    attention = Attention()
    network = nn.Sequential(nn.Linear(6, 6), attention)
    with pytest.raises(SgoolError, match=r"No gradient passes the UNet \(Attention\)"):
        prove("UNet", lambda x: x + network(x), X, [network], rough=False)


class NoFormula(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_a_part_without_a_formula_for_its_gradient_is_no_bug() -> None:
    """Flash attention, where it is an operation of its own."""
    with pytest.raises(SgoolError, match=r"No gradient passes the UNet \(.*backward.*\); another attention"):
        prove("UNet", NoFormula.apply, X, [], rough=False)


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), torch.cuda.OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed."), SgoolError),
    ],
)
def test_an_error_of_the_network_is_told_as_what_it_is(error, told_as) -> None:
    def function(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise error
        return 2 * x

    with pytest.raises(told_as, match=str(error)[:20]):
        prove("UNet", function, X, [], rough=False)


def test_where_nothing_may_change_there_is_nothing_to_prove() -> None:
    """An inpainting mask that has no pixel of the latent."""
    prove("VAE's decoder", lambda x: 0 * x + 1, X, [], rough=False)


def test_weights_merged_in_inference_mode_pass_gradients() -> None:
    @torch.inference_mode()
    def merge(weight: Tensor) -> Tensor:
        return 2 * weight

    weight = torch.eye(6)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        pulled(lambda x: nn.functional.linear(x, merge(weight)), X)
    torch.testing.assert_close(pulled(lambda x: nn.functional.linear(x, normally(merge)(weight)), X), 8 * X)


class Levels(nn.Module):
    """A predictor, as all engines of Forge have one. flow: of a model that was trained for flow matching."""

    def __init__(self, flow: bool = False) -> None:
        super().__init__()
        self.sigmas = torch.tensor([0.03, 1.0, 14.0])
        self.flow = flow

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor) -> Tensor:
        sigma = sigma[:, None, None, None]
        return sigma * noise + ((1 - sigma) * image if self.flow else image)


def loaded(**objects: Any) -> SimpleNamespace:
    """A processing object in Forge, with small networks."""
    inner = inferred(Block)
    inner.predictor = Levels()
    inner.diffusion_model = nn.Module()
    vae = SimpleNamespace(first_stage_model=inferred(Block), patcher="vae")
    unet = SimpleNamespace(model=inner, controlnet_linked_list=None)
    model = SimpleNamespace(is_sd1=True, forge_objects=SimpleNamespace(unet=unet, vae=vae))
    p = SimpleNamespace(sd_model=model, rng=SimpleNamespace(shape=(4, 8, 8)))
    for name, value in objects.items():
        setattr({"is_sd1": model, "predictor": inner}.get(name, unet), name, value)
    return p


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of Forge that its host asks, as they are called; calls: what was asked."""
    calls: list[Any] = []

    def called(name: str) -> Any:
        def hear(*args: Any, **options: Any) -> float:
            calls.append((name, torch.is_inference_mode_enabled()))
            return 1.0

        return hear

    args = SimpleNamespace(fast_fp8=False)
    streams = SimpleNamespace(should_use_stream=lambda: False)
    memory = SimpleNamespace(load_models_gpu=called("load"), get_free_memory=called("free"))
    sampling = SimpleNamespace(sampling_prepare=called("prepare"), sampling_cleanup=called("cleanup"))
    sampling.memory_management = memory
    found = {
        "backend": ModuleType("backend"),
        "backend.args": SimpleNamespace(args=args),
        "backend.stream": streams,
        "backend.memory_management": memory,
        "backend.sampling.sampling_function": sampling,
        "backend.operations": SimpleNamespace(merge_lora_to_weight=called("merge")),
        "backend.patcher.base": SimpleNamespace(),
    }
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    return SimpleNamespace(calls=calls, modules=found, args=args, streams=streams, sampling=sampling)


def test_in_forge_everything_is_as_before_also_after_an_error(forge) -> None:
    p, made = loaded(), Forge()
    networks = [p.sd_model.forge_objects.unet.model, p.sd_model.forge_objects.vae.first_stage_model]
    before = [tensors(network) for network in networks]
    merge, free = forge.modules["backend.operations"].merge_lora_to_weight, forge.sampling.memory_management
    with pytest.raises(KeyError), made.gradients(p):
        assert forge.calls == [("prepare", True), ("load", True)]
        assert not any(each.is_inference() for network in networks for each in tensors(network))
        assert forge.sampling.memory_management.get_free_memory() == float("inf")
        p.sd_model.alphas_cumprod = "left by a sampler"
        with made.own_work(p):
            assert torch.is_inference_mode_enabled()
            assert [tensors(network) for network in networks] == before
        assert not any(each.is_inference() for network in networks for each in tensors(network))
        assert forge.calls[2:] == [("prepare", True), ("load", True)]
        raise KeyError("something")
    assert [list(map(id, tensors(network))) for network in networks] == [list(map(id, each)) for each in before]
    assert not any(module._forward_pre_hooks for network in networks for module in network.modules())
    assert forge.modules["backend.operations"].merge_lora_to_weight is merge
    assert forge.sampling.memory_management is free
    assert "alphas_cumprod" not in vars(p.sd_model) and made.tensors is None
    assert forge.calls[-1] == ("cleanup", True)


def test_a_run_has_the_noise_schedule_that_was_in_force_while_the_webui_sampled(forge) -> None:
    """Zero Terminal SNR is set just before, and taken back just afterwards."""
    p, made = loaded(), Forge()
    predictor, own, zero = p.sd_model.forge_objects.unet.model.predictor, *torch.tensor([[1.0, 14.0], [1.0, 4518.0]])
    predictor.sigmas = zero
    made.sampling(p)
    predictor.sigmas = own
    with made.gradients(p):
        assert made.alphas_cumprod(p.sd_model)[-1] == pytest.approx(1 / (1 + 4518.0**2))
    assert predictor.sigmas is own


def test_another_models_noise_schedule_stays_its_own(forge) -> None:
    p, made = loaded(), Forge()
    made.sampling(p)
    other = p.sd_model.forge_objects.unet.model.predictor = Levels()
    other.sigmas = torch.tensor([1.0, 80.0])
    with made.gradients(p):
        assert made.alphas_cumprod(p.sd_model)[-1] == pytest.approx(1 / (1 + 80.0**2))


@pytest.mark.parametrize(("images", "size"), [(1, 8), (3, 8), (2, 64)])
def test_room_is_made_for_all_images_that_are_improved_together(forge, monkeypatch, images, size) -> None:
    p, made, asked = loaded(), Forge(), []
    p.rng.shape = (4, size, size)
    memory = forge.modules["backend.memory_management"]
    monkeypatch.setattr(memory, "load_models_gpu", lambda models, memory_required: asked.append(memory_required))
    with made.gradients(p, images), made.own_work(p):
        pass
    assert asked == [images * GRAPHS * size**2 / 64**2] * 2  # at first, and after the WebUI's own work


def test_an_error_of_the_webuis_own_work_leaves_no_normal_tensors(forge, monkeypatch) -> None:
    p, made = loaded(), Forge()
    network = p.sd_model.forge_objects.unet.model
    before = tensors(network)

    def fail(*args: Any, **options: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with made.gradients(p):
        with pytest.raises(torch.cuda.OutOfMemoryError), made.own_work(p):
            monkeypatch.setattr(forge.modules["backend.memory_management"], "load_models_gpu", fail)
        assert not any(each.is_inference() for each in tensors(network)), "the next attempt needs gradients"
    assert list(map(id, tensors(network))) == list(map(id, before))
    with pytest.raises(torch.cuda.OutOfMemoryError), made.gradients(p):
        pytest.fail("It was not loaded.")
    assert forge.calls[-1] == ("cleanup", True)


@pytest.mark.parametrize(
    ("objects", "word"),
    [
        ({}, None),
        ({"is_sd1": False}, "does not know this kind of model"),
        ({"controlnet_linked_list": object()}, "ControlNet"),
        ({"quantised": True}, "quantised"),
        ({"predictor": Levels(flow=True)}, "flow matching"),
        ({"streams": True}, "--cuda-stream"),
        ({"fast": True}, "--fast-fp8"),
    ],
)
def test_forge_refuses_in_one_sentence(forge, objects, word) -> None:
    p = loaded(**{name: value for name, value in objects.items() if name not in ("quantised", "streams", "fast")})
    if objects.get("quantised"):
        p.sd_model.forge_objects.unet.model.packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    forge.streams.should_use_stream = lambda: bool(objects.get("streams"))
    forge.args.fast_fp8 = True  # harmless without weights of 8 bits
    if objects.get("fast"):
        weight = torch.zeros(3, dtype=torch.float8_e4m3fn)
        p.sd_model.forge_objects.unet.model.eighths = nn.Parameter(weight, requires_grad=False)
    told = Forge().refuses(p)
    assert told is None if word is None else (word in told and told.count(". ") == 0)


@pytest.mark.parametrize(
    ("given", "dtype", "word"),
    [
        ({}, torch.float8_e4m3fn, None),
        ({"cuda_stream": True}, torch.float32, None),  # reForge reads it nowhere
        ({"async_offload": True}, torch.float32, "--async-offload"),
        ({"fast": ["cublas_ops"]}, torch.float8_e4m3fn, None),
        ({"fast": ["fp8_matrix_mult"]}, torch.float32, None),
        ({"fast": ["fp8_matrix_mult"]}, torch.float8_e4m3fn, "--fast fp8_matrix_mult"),
    ],
)
def test_reforge_refuses_flags_of_its_own(monkeypatch, given, dtype, word) -> None:
    p = loaded()
    unet = p.sd_model.forge_objects.unet
    unet.model.eighths = nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
    unet.get_model_object = {"model_sampling": Levels()}.__getitem__
    args = SimpleNamespace(**given)
    args.fast = [SimpleNamespace(value=name) for name in given.get("fast", ())]
    monkeypatch.setitem(sys.modules, "ldm_patched.modules.args_parser", SimpleNamespace(args=args))
    told = ReForge().refuses(p)
    assert told is None if word is None else word in told
    unet.get_model_object = {"model_sampling": Levels(flow=True)}.__getitem__  # as an extension patches it
    assert "flow matching" in ReForge().refuses(p)


def test_weights_of_all_kinds_that_must_be_unpacked_are_known() -> None:
    network = nn.Linear(2, 2)
    assert not quantised(network)
    network.weight.gguf_cls = object()
    assert quantised(network)


@pytest.mark.parametrize("there", [True, False])
def test_an_attribute_is_kept(there) -> None:
    owner = SimpleNamespace(**({"a": 1} if there else {}))
    with kept(owner, "a"):
        owner.a = 2
    assert vars(owner) == ({"a": 1} if there else {})


def test_a_denoiser_that_takes_noise_levels_gives_the_noise(webui) -> None:
    """Also between two timesteps, where a sampling is followed."""
    p, _ = webui.make()
    alphas = shared.sd_model.alphas_cumprod.double()
    made = LevelDenoiser(p, None, alphas)
    eps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    asked, bar = [], vars(shared.state).copy()

    class Inner:
        def __call__(self, noisy: Tensor, level: Tensor) -> Tensor:
            asked.append(level)
            state = sd_samplers_cfg_denoiser.state
            assert (state.sampling_step, state.sampling_steps) == (1, p.steps), "extensions reckon with them"
            return noisy - level[:, None, None, None] * eps

    made.inner = Inner()
    x = alphas[300].sqrt() * image + (1 - alphas[300]).sqrt() * eps
    torch.testing.assert_close(made(x.float(), 300, 2), eps, atol=1e-5, rtol=0)
    assert made.inner.step == 2 and vars(shared.state) == bar
    torch.testing.assert_close(asked[0].double(), ((1 - alphas[300]) / alphas[300]).sqrt().expand(2))


def test_critics_can_guide_also_where_they_were_loaded_in_inference_mode(monkeypatch) -> None:
    """The best of a batch may load them first, and Forge runs that in inference mode."""
    monkeypatch.setattr(models, "_last", None)
    settings = Settings(guide="embedded", selector="embedded", saliency="spectral")
    with torch.inference_mode(), models.critics(settings) as critics:
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        networks = [each for each in vars(critics.guide).values() if isinstance(each, nn.Module)]
        assert networks and not any(each.is_inference() for network in networks for each in network.parameters())
    assert needs(settings) == models._last[0]


def test_in_inference_mode_the_best_of_a_batch_still_comes_first(webui) -> None:
    plain, _ = webui.make()
    with torch.inference_mode():
        _, processed = webui.make({"best": True}, batch_size=2)
    assert ["SGOOL rank: 1 of 2" in text for text in processed.infotexts] == [True, False]
    assert all("inference mode" in text for text in processed.infotexts)
    assert isinstance(shared.sd_model, Checkpoint) and plain
