"""Groups: what becomes of numbers that are made together."""

from __future__ import annotations

import pytest
import torch

from sgool.errors import SgoolError
from sgool.groups import in_groups


def made(count, most, *, room=99, bad=(), how=lambda: torch.cuda.OutOfMemoryError("CUDA out of memory.")):
    """(what came of each number, the groups that were tried); `room`: the largest group that fits."""
    groups = []

    def make(numbers):
        groups.append(list(numbers))
        if len(numbers) > room:
            raise how()
        if set(numbers) & set(bad):
            raise SgoolError("NaN")
        return [10 * number for number in numbers]

    return list(in_groups(make, count, most)), groups


@pytest.mark.parametrize(
    ("most", "groups"),
    [(8, [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2, 3], [4]]), (1, [[0], [1], [2], [3], [4]])],
)
def test_as_many_as_are_allowed_are_made_together_in_order(most, groups):
    assert made(5, most) == ([0, 10, 20, 30, 40], groups)


@pytest.mark.parametrize("how", [lambda: torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError])
def test_out_of_memory_halves_the_number_for_all_that_follow(how):
    results, groups = made(12, 8, room=3, how=how)
    assert results == list(range(0, 120, 10))
    assert [len(group) for group in groups] == [8, 4, 2, 2, 2, 2, 2, 2]


def test_out_of_memory_for_one_alone_is_raised():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        made(4, 4, room=0)


def test_a_number_that_fails_does_not_spoil_the_others():
    results, groups = made(8, 4, bad=[2, 3])
    assert results[:2] + results[4:] == [0, 10, 40, 50, 60, 70]
    assert [str(each) for each in results[2:4]] == ["NaN", "NaN"] and isinstance(results[2], SgoolError)
    assert groups == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]  # the rest is together again


def test_what_is_no_failure_of_the_things_made_is_raised_at_once():
    with pytest.raises(RuntimeError, match="shapes"):
        made(4, 4, room=2, how=lambda: RuntimeError("shapes do not match"))


def test_a_group_that_failed_is_not_kept_in_memory():
    class Large:
        alive = 0

        def __init__(self):
            Large.alive += 1

        def __del__(self):
            Large.alive -= 1

    def make(numbers):
        assert Large.alive == 0
        tensors = [Large() for _ in numbers]
        if len(numbers) > 1:
            raise (SgoolError, MemoryError)[len(numbers) == 2](len(tensors))
        raise SgoolError("alone")

    assert [str(each) for each in in_groups(make, 4, 4)] == ["alone"] * 4
