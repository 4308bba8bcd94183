"""Runs in lockstep come to what each of them comes to alone, and one that fails leaves the others alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import SD, Toy, begun, error, latent

from sgool.errors import SgoolError
from sgool.lockstep import in_lockstep
from sgool.result import Stop
from sgool.samplers import Branch, Network, get_sampler

STEPS = 5
TEXTS = (0.3, 0.5, -0.2)


def network(*texts: float, asked: list[int] | None = None) -> Network:
    """Guidance over a toy for each text, which predicts for its share of the batch."""

    def of(toys: list[Toy]):
        def predict(x: Tensor, t: float) -> Tensor:
            if asked is not None:
                asked.append(len(x))
            parts = zip(toys, x.chunk(len(toys)), strict=True)
            return torch.cat([toy(part, t) for toy, part in parts])

        return predict

    each = [Toy(text).double() for text in texts]
    prompt = Branch(3.0, of(each))
    return Network([Branch(-2.0, of([Toy(0.0).double()] * len(each)), back=()), prompt], SD, dtype=torch.float64)


def optimized(own: Network, number: int, way_back: str, name: str, updates: int = 2) -> list[Tensor]:
    """A small run: sample, pull a gradient back, move, and again."""
    trajectory = begun(get_sampler(name), STEPS, own, way_back=way_back)
    state, images = trajectory.from_noise(latent(number)), []
    for _ in range(updates + number):  # the runs end one after another
        final = trajectory.run(state)
        images.append(trajectory.image(final))
        state, gradients = trajectory.adjoint(final, images[-1] ** 3 * 10.0**number)
        scale = gradients[0].abs().max()
        state = [x - 0.1 * g / scale for x, g in zip(state, gradients, strict=True)]
    return images


@pytest.mark.parametrize("way_back", ["full", "prompt"])
@pytest.mark.parametrize("name", ["bdia", "lcm"])
def test_each_comes_to_what_it_comes_to_alone(way_back, name):
    asked: list[int] = []
    found, owns = {}, {}

    def run(member):
        number = member.number
        owns[number] = member.asking(network(TEXTS[number], asked=asked))
        found[number] = optimized(owns[number], number, way_back, name)

    join = lambda numbers: network(*(TEXTS[number] for number in numbers), asked=asked)  # noqa: E731
    assert in_lockstep([run] * 3, join) == [None] * 3
    assert set(asked) == {1, 2, 3}
    for number, text in enumerate(TEXTS):
        alone = network(text)
        expected = optimized(alone, number, way_back, name)
        assert len(found[number]) == len(expected) == 2 + number
        assert all(error(a, e) < 1e-9 for a, e in zip(found[number], expected, strict=True))
        assert owns[number].evals_forward == alone.evals_forward
        assert owns[number].evals_backward == alone.evals_backward


def test_latents_are_stored_because_rounding_changes_with_the_number_of_runs():
    stored = []

    def run(member):
        own = member.asking(network(0.3))
        stored.append(begun(get_sampler("bdia"), STEPS, own).run([latent(0)]).inputs is not None)

    in_lockstep([run] * 2, lambda numbers: network(*([0.3] * len(numbers))))
    assert stored == [True, True]


def test_one_that_fails_leaves_the_others_alone():
    ended = {}

    def run(member):
        own = member.asking(network(TEXTS[member.number]))
        x = latent(member.number) * (float("nan") if member.number == 1 else 1.0)
        ended[member.number] = own(x, 500.0)

    errors = in_lockstep([run] * 3, lambda numbers: network(*(TEXTS[number] for number in numbers)))
    assert errors[0] is None and isinstance(errors[1], SgoolError) and errors[2] is None
    for number in (0, 2):
        assert error(ended[number], network(TEXTS[number])(latent(number), 500.0)) < 1e-12


def test_a_batch_that_does_not_fit_is_halved_for_good():
    asked: list[int] = []

    class Small(Network):
        def __call__(self, x, t):
            if len(x) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().__call__(x, t)

    def join(numbers):
        own = network(*([0.3] * len(numbers)), asked=asked)
        return Small(own.branches, SD, dtype=torch.float64)

    def run(member):
        own = member.asking(network(0.3, asked=asked))
        own(latent(member.number), 500.0)
        own(latent(member.number), 400.0)

    assert in_lockstep([run] * 4, join) == [None] * 4
    assert asked == [2] * 8  # two halves, two timesteps, two branches


def test_one_for_which_even_a_batch_of_one_is_too_large_fails_alone():
    def run(member):
        own = network(0.3)
        if member.number == 1:
            own.branches = (Branch(1.0, lambda x, t: (_ for _ in ()).throw(MemoryError("out of memory"))),)
        member.asking(own)(latent(member.number), 500.0)

    errors = in_lockstep([run] * 3, lambda numbers: None)
    assert [type(each) for each in errors] == [type(None), MemoryError, type(None)]


def test_where_networks_cannot_be_joined_each_is_asked_alone():
    asked: list[int] = []

    def run(member):
        member.asking(network(0.3, asked=asked))(latent(member.number), 500.0)

    assert in_lockstep([run] * 3, lambda numbers: None) == [None] * 3
    assert asked == [1] * 6


def test_only_one_works_at_a_time_and_in_turn():
    told = []

    def run(member):
        own = member.asking(network(0.3))
        for turn in range(3):
            told.append((turn, member.number, "begins"))
            torch.randn(50, 50) @ torch.randn(50, 50)
            told.append((turn, member.number, "ends"))
            own(latent(0), 100.0 * turn)

    in_lockstep([run] * 3, lambda numbers: network(*([0.3] * len(numbers))))
    assert told == [(turn, number, word) for turn in range(3) for number in range(3) for word in ("begins", "ends")]


def test_an_exception_from_outside_ends_all_runs_with_stop():
    ended = []

    def run(member):
        own = member.asking(network(0.3))
        try:
            while True:
                own(latent(0), 500.0)
        except Stop:
            ended.append(member.number)

    def join(numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_lockstep([run] * 2, join)
    assert ended == [0, 1]
