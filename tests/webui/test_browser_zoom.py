"""Zoom in a browser: the switch, its controls and its words, a run's places in the view, and paste."""

from __future__ import annotations

import re

import pytest
from payloads import SIZE
from test_browser import (
    VIEW,
    browser,  # noqa: F401  a fixture
    choose,
    expect,
    fold,
    generate,
    number,
    open_page,  # noqa: F401  a fixture
    pretend,
    shoot,
    small,
    tick,
    wait_for_picture,
    wait_for_the_end,
    wait_for_the_view,
)

from sgool import cost
from sgool.presets import PRESETS
from sgool.settings import ABOUT, Settings

PROMPT = "a car and a small frog on a busy red background"
LINE = "#sgool_txt2img [data-sgool]"
SWITCH = "#sgool_txt2img_zoom input[type=checkbox]"
PLACE = {
    "name": "a frog",
    "text": "a frog on a hill",
    "verdict": "kept",
    "kept": True,
    "before": 0.612,
    "after": 0.744,
    "region": {"left": 1, "top": 1, "width": 9, "height": 9},
    "pictures": ["before", "after"],
}


def prepare(page, **details):
    """A small picture with preset Detail, and the embedded networks. The accordion is left open."""
    small(page, PROMPT)
    tick(page)
    fold(page)
    page.locator("#sgool_txt2img_preset_detail").click()
    choose(page, "sgool_txt2img_saliency", "spectral")
    choose(page, "sgool_txt2img_zoom_by", "phrases")
    fold(page, "more")
    for elem_id in ("guide", "selector"):
        choose(page, f"sgool_txt2img_{elem_id}", "embedded")
    number(page, "sgool_txt2img_threshold", 0.25)
    for name, value in details.items():
        number(page, f"sgool_txt2img_{name}", value)
    fold(page, "more")
    page.evaluate("window.scrollTo(0, 0)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 900])
def test_the_second_switch_and_its_words(open_page, theme, width):  # noqa: F811
    page = open_page(theme, width=width)
    fold(page)
    line = page.locator(LINE)
    for name in ("zoom", "zoom_by", "zoom_places", "zoom_strength", "zoom_iterations"):
        expect(page.locator(f"#sgool_txt2img_{name}")).to_be_visible()
    expect(page.locator("#sgool_txt2img_zoom_order")).to_be_hidden()
    shoot(page, f"zoom-accordion-off-{theme}-{width}", "#sgool_txt2img")
    page.locator(SWITCH).check()
    expect(line).to_have_text("; ".join(cost.line(Settings(zoom=True))))
    page.locator("#sgool_txt2img_preset_detail").click()
    expect(line).to_have_text("Paints small places again; about an image's time")
    expect(page.locator("#sgool_txt2img_preset_detail")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(SWITCH)).to_be_checked()
    detail = Settings.of(PRESETS["Detail"])
    number(page, "sgool_txt2img_zoom_places", 5)
    expect(line).to_have_text("; ".join(cost.line(detail.changed(zoom_places=5))))
    number(page, "sgool_txt2img_zoom_places", 2)
    number(page, "sgool_txt2img_zoom_iterations", 3)
    expect(line).to_have_text("; ".join(cost.line(detail.changed(zoom_places=2, zoom_iterations=3))))
    number(page, "sgool_txt2img_zoom_iterations", 0)
    tick(page)
    shoot(page, f"zoom-accordion-{theme}-{width}", "#sgool_txt2img")
    page.locator(SWITCH).uncheck()
    expect(line).to_have_text("Has nothing to do: 0 iterations, and no zoom")
    page.locator("#sgool_txt2img_preset_balanced").click()
    expect(line).to_have_text("Improves the image's starting noise; about 7 times an image's time")
    fold(page, "more")
    expect(page.locator("#sgool_txt2img_zoom_order")).to_be_visible()
    shoot(page, f"zoom-more-{theme}-{width}", "#sgool_txt2img")
    if width == 900:
        overflow = page.evaluate("document.querySelector('#sgool_txt2img').scrollWidth - innerWidth")
        assert overflow <= 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_zoom_alone_is_shown_with_its_places(open_page, theme):  # noqa: F811
    page = open_page(theme)
    prepare(page)
    generate(page)
    wait_for_the_view(page)
    view = page.locator(VIEW)
    expect(view.locator(".sgool-facts")).to_have_text(re.compile(r"^zoom: \d of \d places? kept · scored by embedded$"))
    expect(view.locator(".sgool-scores")).to_be_hidden()
    rows = view.locator(".sgool-zoomed")
    assert rows.count() >= 1
    told = rows.first.inner_text()
    assert re.search(r"\d\.\d{3} → \d\.\d{3}", told) and re.search("kept|not better", told)
    wait_for_picture(page, ".sgool-zoomed img")
    pictures = "[...document.querySelectorAll('.sgool-zoomed img')]"
    page.wait_for_function(f"{pictures}.every(one => one.naturalWidth >= {SIZE})")
    expect(view.locator(".sgool-links a")).to_have_text(["before", "after", "where people look"])
    shoot(page, f"zoom-done-{theme}", "#txt2img_results")
    page.set_viewport_size({"width": 900, "height": 1000})
    shoot(page, f"zoom-done-{theme}-900", VIEW)


def test_what_the_server_says_of_a_place_is_text(open_page):  # noqa: F811
    page = open_page()
    small(page, PROMPT)
    name = "<img src=x onerror=alert(1)>"
    refused = {**PLACE, "name": name, "text": name, "verdict": "not better, left as it was", "kept": False}
    unreached = {
        **PLACE,
        "verdict": "not reached",
        "kept": False,
        "before": None,
        "after": None,
        "pictures": ["before"],
    }
    zoom = {"kept": 1, "places": [PLACE, refused, unreached]}
    pretend(
        page,
        [{"zoom": zoom}, {"zoom": {"kept": 0, "places": []}}],
        **{"SGOOL score after": [], "SGOOL zoom kept": ["1 of 3", "0 of 0"]},
    )
    rows = page.locator(f"{VIEW} .sgool-zoomed")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_have_text("→1. a frog0.612 → 0.744kept")
    expect(rows.nth(1).locator("strong")).to_have_text(f"2. {name}")
    assert rows.nth(1).locator("img").count() == 2 and rows.nth(2).locator("img").count() == 1
    expect(page.locator(f"{VIEW} .sgool-facts")).to_have_text("zoom: 1 of 3 places kept")
    expect(page.locator(f"{VIEW} h3")).to_have_text("SGOOL, seed 11")
    shoot(page, "zoom-three-places", VIEW)
    page.get_by_label("Next image of the batch").click()
    expect(page.locator(f"{VIEW} .sgool-facts")).to_have_text("zoom: no place found")
    expect(rows).to_have_count(0)


def test_the_progress_says_which_place(open_page):  # noqa: F811
    page = open_page()
    prepare(page, zoom_iterations=40)
    generate(page)
    progress = page.locator("#txt2img_results .progressDiv")
    expect(progress).to_contain_text(re.compile(r"SGOOL zoom 1/2: a (car|frog)"), timeout=120_000)
    shoot(page, "zoom-running")
    page.locator("#txt2img_interrupt").click()
    wait_for_the_end(page)
    expect(page.locator("#html_log_txt2img").first).to_contain_text("zoom was interrupted after")


def test_paste_brings_the_switch_back_both_ways(open_page):  # noqa: F811
    page = open_page()
    fold(page)
    for value in ("True", "False"):
        text = f"a frog\nSteps: 5, Seed: 1, SGOOL {ABOUT['zoom'].label}: {value}, SGOOL version: 1"
        text = text if value == "True" else text.replace("SGOOL Zoom: False, ", "")
        page.locator("#txt2img_prompt textarea").fill(text)
        page.locator("#txt2img_tools #paste").click()
        (
            expect(page.locator(SWITCH)).to_be_checked
            if value == "True"
            else expect(page.locator(SWITCH)).not_to_be_checked
        )()
