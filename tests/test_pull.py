"""The method baseline: the guide pulls every prediction as full automatic differentiation says it should."""

from __future__ import annotations

import pytest
import torch
from test_optimize import asked
from toys import SD, Colors, brute, error, guided, latent

from sgool import cost
from sgool.errors import SgoolError
from sgool.generate import Request, generate, make_loss
from sgool.guidance.loss import SaliencyLoss, Whole
from sgool.needs import needs
from sgool.presets import resolve
from sgool.pull import Pull, Pulled
from sgool.samplers import get_sampler
from sgool.settings import SettingError, Settings

BASELINE = {"method": "baseline", "steps": 4, "cutouts": 1, "way_back": "full"}
SCHEDULE = get_sampler("ddim").schedule(SD, 4)


def decode(x):
    """A decoder that is no linear map."""
    return torch.sigmoid(torch.nn.functional.interpolate(x[:, :3] * x[:, 3:], scale_factor=2.0, mode="bilinear"))


def colored(scale, **options):
    loss = SaliencyLoss(Colors(), "red", whole=Whole(3), saliency_weight=0.0)
    return Pull(loss, decode, scale, **options)


def by_autograd(eps, x, node, pull):
    """eps + scale * sigma * dL/dx, the whole graph at once. eps: from (x, t) to the prediction."""
    leaf = x.clone().requires_grad_()
    t, a, sigma = SCHEDULE.timesteps[node], SCHEDULE.a[node], SCHEDULE.sigma[node]
    predicted = (leaf - sigma * eps(leaf, t)) / a
    generator = torch.Generator().manual_seed(pull.seed + node)
    (gradient,) = torch.autograd.grad(pull.loss(decode(predicted.float()).clamp(0, 1), (), generator), leaf)
    return (eps(x, t) + pull.scale * sigma * gradient).detach()


@pytest.mark.parametrize("node", range(4))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_pulled_prediction_is_that_of_full_autograd(node, prediction):
    network, pull = guided(4.0, torch.float64, prediction), colored(30.0, seed=7)
    pulled = Pulled(network, SCHEDULE, pull)
    x, t = latent(3), SCHEDULE.timesteps[node]
    expected = by_autograd(brute(network), x, node, pull)
    assert error(pulled(x, t), expected) < 1e-5
    assert error(network(x, t), expected) > 1e-3  # the pull is no small thing here
    assert (pulled.evals_forward, pulled.evals_backward) == (2, 2)


def test_each_image_of_a_batch_is_pulled_by_itself():
    pulled = Pulled(guided(4.0, torch.float64), SCHEDULE, colored(30.0))
    both, t = torch.cat([latent(3), latent(4)]), SCHEDULE.timesteps[1]
    torch.testing.assert_close(pulled(both, t), torch.cat([pulled(one, t) for one in both.split(1)]))


@pytest.mark.parametrize("way_back", ["full", "prompt"])
def test_the_embedded_models_prediction_is_that_of_full_autograd(backend, critics, way_back):
    """With "prompt" the guidance, the difference of both predictions, counts as a constant."""
    own = resolve({"method": "baseline", "cutouts": 2, "way_back": way_back}, model="tiny")
    prompt = "a small frog and a car"
    loss = make_loss(critics.guide, prompt, own)
    schedule = get_sampler("ddim").schedule(backend.alphas_cumprod, 4)
    network, alone = (backend.network(prompt, "", scale) for scale in (own.guidance_scale, 1.0))
    x, node = backend.noise(2), 2
    t, a, sigma = schedule.timesteps[node], schedule.a[node], schedule.sigma[node]
    leaf = x.clone().requires_grad_()
    if way_back == "full":
        eps = network.branches[0].function(leaf.float(), t).double()
    else:
        eps = alone.branches[0].function(leaf.float(), t).double()
        eps = eps + (network(x, t) - alone(x, t))
    image = backend.decode(((leaf - sigma * eps) / a).float())
    (gradient,) = torch.autograd.grad(loss(image.clamp(0, 1), (), torch.Generator().manual_seed(node)), leaf)
    expected = 50.0 * sigma * gradient
    found = Pulled(network, schedule, Pull(loss, backend.decode, 50.0, way_back))(x, t) - network(x, t)
    assert (found - expected).norm() < 1e-3 * expected.norm() and expected.norm() > 0.1


def test_a_baseline_image_costs_what_it_says_and_is_the_plain_one_without_a_pull(backend, critics):
    plain = generate(backend, critics, asked(5), resolve({"method": "none", "steps": 4}, model="tiny"))
    still, run = (
        generate(backend, critics, asked(5), resolve({**BASELINE, "guide_scale": scale}, model="tiny"))
        for scale in (0.0, 3.0)
    )
    assert torch.equal(still.first.latent, plain.first.latent)
    assert (run.first.latent - plain.first.latent).abs().mean() > 0.01
    assert run.best is run.first and run.sampler == "ddim"
    own = resolve(BASELINE, model="tiny")
    assert run.forward_equivalents == 4 * 2 * 3 and cost.images(own, 4) == 3
    cheaper = own.changed(way_back="prompt")
    assert cost.images(cheaper, 4) == 2
    assert generate(backend, critics, asked(5), cheaper).forward_equivalents == 4 * 2 * 2


def test_the_best_of_several_pulled_seeds_is_kept(backend, critics):
    own = resolve({**BASELINE, "candidates": 2}, model="tiny")
    assert generate(backend, critics, asked(5), own).forward_equivalents == 2 * 4 * 2 * 3 and cost.images(own, 4) == 6


def test_what_decodes_to_nothing_is_told(backend, critics):
    class Broken:
        def __getattr__(self, name):
            return getattr(backend, name)

        def decode(self, z):
            return backend.decode(z) * float("nan")

    with pytest.raises(SgoolError, match="decoder returned NaN"):
        generate(Broken(), critics, asked(5), resolve(BASELINE, model="tiny"))


def test_it_starts_from_a_seed_only(backend, critics):
    own = resolve({"method": "baseline", "start": "image"}, model="tiny")
    with pytest.raises(SettingError, match="baseline pulls while a seed is sampled, so it cannot start from an image"):
        generate(backend, critics, Request("a car", init_latent=backend.noise(1)), own)
    assert cost.images(own) == 0


def test_the_guide_is_loaded_where_images_are_scored_as_well():
    assert needs(Settings(method="baseline", iterations=0, best=True)).guide == "clip"
    assert needs(Settings(method="baseline")).detector == "spectral"
