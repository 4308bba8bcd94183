"""Candidates made together are what each is alone, on the real embedded model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sgool.errors import SgoolError
from sgool.generate import CANDIDATE_STRIDE, Request, generate, together
from sgool.presets import resolve
from sgool.samplers import SAMPLERS, Branch, Network

PROMPT = "a small penguin and a pizza on a green background"
SEED = 3


def small(**changes):
    few = {"steps": 4, "strength": 1.0, "iterations": 1, "cutouts": 0, "patience": 0, "candidates": 4}
    return resolve({**few, **changes}, model="tiny")


class Heard:
    """A critic that remembers the scores of the images that it judged together."""

    def __init__(self, critic):
        self.critic = critic
        self.groups: list[list[float]] = []

    def __getattr__(self, name):
        return getattr(self.critic, name)

    def fresh(self):
        return self

    @property
    def scores(self):
        return [score for group in self.groups for score in group]

    def judge_all(self, images, text):
        self.groups.append(self.critic.judge_all(images, text))
        return self.groups[-1]

    def judge_parts(self, images, text):
        return torch.tensor(self.judge_all(images, text))[:, None]


class Backend:
    """A backend whose guided predictions are changed by a function of (starting latents, predictions)."""

    def __init__(self, backend, change):
        self.backend, self.change = backend, change

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def network(self, *args):
        whole = self.backend.network(*args)
        (branch,) = whole.branches
        changed = Branch(1.0, lambda x, t: self.change(x, branch.function(x, t)), branch.evals)
        return Network([changed], self.backend.alphas_cumprod)


def candidate(number, seed=SEED):
    return Request(PROMPT, seed=seed + CANDIDATE_STRIDE * number)


def both(critics):
    return replace(critics, guide=Heard(critics.guide), selector=Heard(critics.selector))


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("sampler", "strength"), [(name, 1.0) for name in SAMPLERS] + [("bdia", 0.5), ("lcm", 0.5)])
def test_each_candidate_is_what_it_is_alone_and_so_is_its_update(backend, critics, sampler, strength, scale):
    """A candidate is another seed's image, also with its own noises between the steps."""
    own = small(sampler=sampler, strength=strength, guidance_scale=scale)
    heard = both(critics)
    result = generate(backend, heard, candidate(0), own)
    alone = [generate(backend, critics, candidate(i), own.changed(candidates=1)) for i in range(4)]
    (scores,), (guides,) = heard.selector.groups, heard.guide.groups
    assert scores == pytest.approx([each.scores[0] for each in alone], abs=1e-4)
    assert len({round(score, 5) for score in scores}) == 4
    for guide, each in zip(guides, alone, strict=True):
        assert guide == pytest.approx(critics.guide.judge(each.first.image, PROMPT), abs=1e-4)
    chosen = max(range(4), key=lambda i: scores[i] + guides[i])
    assert result.scores == pytest.approx(alone[chosen].scores, abs=1e-3)
    assert result.losses == pytest.approx(alone[chosen].losses, abs=1e-3)
    assert torch.allclose(result.first.latent, alone[0].first.latent, atol=1e-4)
    plain = 4 * SAMPLERS[sampler].evals_per_step * (1 if scale == 1 else 2)
    assert result.unet_evals == alone[0].unet_evals + 3 * plain
    assert result.first.saliency is not None and torch.equal(
        result.first.saliency, critics.detector(result.first.image)
    )


@pytest.mark.parametrize(("memory", "groups"), [("fast", [5]), ("balanced", [5]), ("low", [1] * 5)])
def test_the_memory_setting_says_how_many_are_made_together(backend, critics, memory, groups):
    heard = both(critics)
    generate(backend, heard, candidate(0), small(candidates=5, memory=memory, method="none", sampler="ddim"))
    assert [len(group) for group in heard.selector.groups] == groups


@pytest.mark.parametrize(
    ("memory", "size", "count"),
    [
        ("fast", (512, 512), 8),
        ("fast", (1024, 1024), 2),
        ("fast", (128, 128), 8),
        ("balanced", (512, 512), 2),
        ("balanced", (512, 768), 1),
        ("balanced", (256, 256), 8),
        ("low", (64, 64), 1),
        ("fast", (4096, 4096), 1),
    ],
)
def test_the_larger_the_images_the_fewer_are_made_together(memory, size, count):
    assert together(SimpleNamespace(size=size), resolve({"memory": memory})) == count


@pytest.mark.parametrize("at", ["network", "decoder"])
def test_out_of_memory_halves_the_number_and_goes_on(backend, critics, at):
    """As a GPU says it, in the network or in the decoder."""

    def full(x, result):
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return result

    narrow = Backend(backend, full if at == "network" else lambda x, eps: eps)
    if at == "decoder":
        narrow.decode = lambda latent: full(latent, backend.decode(latent))
    heard, wide = both(critics), both(critics)
    own = small(candidates=8, sampler="ddim", way_back="full")
    result, expected = generate(narrow, heard, candidate(0), own), generate(backend, wide, candidate(0), own)
    assert [len(group) for group in heard.selector.groups] == [2, 2, 2, 2] and not result.ended
    assert heard.selector.scores == pytest.approx(wide.selector.scores, abs=1e-4)
    assert result.scores == pytest.approx(expected.scores, abs=1e-3)


def spoiled(backend, *numbers):
    """NaN for candidates of these numbers."""
    noises = [backend.noise(SEED + CANDIDATE_STRIDE * number).float() for number in numbers]

    def spoil(x, eps):
        rows = [any(torch.equal(row[None], noise) for noise in noises) for row in x]
        return torch.where(torch.tensor(rows)[:, None, None, None], torch.nan, eps)

    return Backend(backend, spoil)


def test_a_candidate_of_nan_does_not_spoil_the_others(backend, critics):
    heard, whole = both(critics), both(critics)
    own = small(iterations=0)
    result = generate(spoiled(backend, 1, 3), heard, candidate(0), own)
    expected = generate(backend, whole, candidate(0), own)
    assert heard.selector.scores == pytest.approx(whole.selector.scores[::2], abs=1e-4)
    assert torch.allclose(result.first.latent, expected.first.latent, atol=1e-4)
    assert not result.failed and len(result.left_out) == 2
    assert result.ended.startswith("2 of the candidate seeds gave no image. The network returned NaN")


def test_where_the_seed_itself_gives_no_image_there_is_none_to_compare_with(backend, critics):
    with pytest.raises(SgoolError, match="NaN"):
        generate(spoiled(backend, 0), critics, candidate(0), small())
