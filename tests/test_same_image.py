from __future__ import annotations

import numpy as np
import pytest

from sgool import lab
from sgool.lab.compare import Plan, compare, render_tables
from sgool.lab.same_image import structural_similarity


def test_structural_similarity_against_its_formula():
    """Two flat pictures differ in their means alone: (2 a b + c1) / (a^2 + b^2 + c1)."""
    flat = {value: np.full((32, 32, 3), value, np.uint8) for value in (100, 140)}
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    assert structural_similarity(flat[100], flat[140]) == pytest.approx(expected, abs=1e-9)
    assert structural_similarity(flat[100], flat[100]) == pytest.approx(1.0)


def test_structural_similarity_falls_as_noise_grows():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    noise = rng.normal(size=picture.shape)
    found = [
        structural_similarity(picture, np.clip(picture + scale * noise, 0, 255).astype(np.uint8))
        for scale in (0, 5, 20, 80)
    ]
    assert found[0] == pytest.approx(1.0) and found == sorted(found, reverse=True) and found[-1] < 0.7


def test_an_image_is_improved_and_varied_at_the_same_cost():
    """Strength 0.5 of ten steps: 10 evaluations a variation; an update 24, the way there and back 16 to 32."""
    plan = Plan(limit=1, budget=60, methods=("none", "varied-0.5", "improved-0.5"), jobs=1)
    figures = compare(lab.HARD, plan, progress=False)
    none, varied, improved = figures["trials"]
    assert (varied["equivalents"], none["similarity"]) == (60, None)
    assert 40 <= improved["equivalents"] <= 60
    for each in (varied, improved):
        assert (each["similarity"] == pytest.approx(1.0)) == (each["distance"] == pytest.approx(0.0, abs=1e-5))
    assert "improved-0.5: similarity to the plain image" in render_tables(figures)
