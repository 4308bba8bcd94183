"""Unticked, the extension changes nothing: the same bytes as without it, before and after a run with it."""

from __future__ import annotations

import pytest
from payloads import SGOOL, UNTICKED, make


@pytest.mark.parametrize("name", UNTICKED)
def test_same_bytes_as_without_the_extension(without, server, name):
    ours = make(server, UNTICKED[name])
    assert ours.texts == without[name].texts
    assert ours.encoded == without[name].encoded


def test_same_bytes_after_a_run_with_it(server):
    payload = UNTICKED["txt2img"]
    before = make(server, payload)
    ticked = make(server, payload, SGOOL)
    after = make(server, payload)
    assert ticked.encoded != before.encoded
    assert after.encoded == before.encoded
