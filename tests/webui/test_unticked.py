"""Unticked, the extension changes nothing: the same bytes as without it, before and after a run with it."""

from __future__ import annotations

import pytest
from payloads import SGOOL, UNTICKED, difference, make, make_anew


@pytest.mark.parametrize("name", UNTICKED)
def test_same_bytes_as_without_the_extension(without, server, name):
    ours = make_anew(server, UNTICKED[name])
    assert ours.texts == without[name].texts
    assert ours.encoded == without[name].encoded


@pytest.mark.parametrize("nothing", [{"iterations": 0}, {"method": "none"}], ids=str)
@pytest.mark.parametrize("name", UNTICKED)
def test_same_pixels_where_there_is_nothing_to_do(without, server, name, nothing):
    ours = make_anew(server, UNTICKED[name], {**SGOOL, **nothing})
    assert len(ours) == len(without[name])
    assert not any(difference(ours.image(i), without[name].image(i)).any() for i in range(len(ours)))


def test_same_bytes_after_a_run_with_it(server):
    payload = UNTICKED["txt2img"]
    before = make(server, payload)
    ticked = make(server, payload, SGOOL)
    after = make(server, payload)
    assert ticked.encoded != before.encoded
    assert after.encoded == before.encoded
