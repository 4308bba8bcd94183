"""The phrases of the prompt in a browser: a chip for each, its place over the picture, and the best of a batch."""

from __future__ import annotations

import re

import pytest
from test_browser import (
    BOX,
    IMAGE,
    VIEW,
    browser,  # noqa: F401  a fixture
    expect,
    fold,
    generate,
    number,
    open_page,  # noqa: F401  a fixture
    prepare,
    pretend,
    shoot,
    wait_for_quiet,
    wait_for_the_end,
    wait_for_the_view,
)

CHIPS = f"{VIEW} .sgool-chip"
SHOWN = f"{VIEW} .sgool-veil:not([hidden])"
BOTH = ["before", "after"]
FROG = {"phrase": "a small frog", "before": 0.12, "after": 0.81, "maps": BOTH}
CAR = {"phrase": "a car", "before": 0.97, "after": 0.34, "maps": BOTH}


def phrases(*found, note=""):
    """What the server says of an image's phrases."""
    return {"found": list(found), "measured_by": "embedded", "note": note}


def layout(page):
    """Where everything in the view is."""
    return page.evaluate(
        f"""() => [...document.querySelectorAll("{VIEW} *:not(.sgool-veil, .sgool-tag)")].map(node => {{
            const {{x, y, width, height}} = node.getBoundingClientRect();
            return [node.className, x, y + scrollY, width, height];
        }})"""
    )


def rest(page):
    """The mouse is over nothing."""
    page.mouse.move(1, 1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_run_shows_a_chip_for_each_phrase_and_where_it_is(open_page, theme):  # noqa: F811
    page = open_page(theme)
    prepare(page, 2)
    generate(page)
    wait_for_the_view(page)
    chips = page.locator(CHIPS)
    expect(chips).to_have_count(2)
    for chip, phrase in zip(chips.all(), ("a car", "a small frog on a busy red background"), strict=True):
        expect(chip).to_have_text(re.compile(rf"^{phrase}\d+ % → \d+ %(, not found)?$"))
    rest(page)
    expect(page.locator(SHOWN)).to_have_count(0)
    before = layout(page)
    shoot(page, f"phrases-{theme}", VIEW)
    chips.nth(0).hover()
    expect(page.locator(SHOWN)).to_have_count(2)
    page.wait_for_function(f"[...document.querySelectorAll('{SHOWN}')].every(veil => veil.naturalWidth === 512)")
    sources = [veil.get_attribute("src") for veil in page.locator(SHOWN).all()]
    assert [source.split("/")[-1] for source in sources] == ["phrase-1-after.png", "phrase-1-before.png"]
    assert layout(page) == before  # nothing moves
    chips.nth(1).hover()
    expect(page.locator(SHOWN).first).to_have_attribute("src", re.compile("phrase-2-after.png$"))
    rest(page)
    expect(page.locator(SHOWN)).to_have_count(0)
    expect(page.locator(f"{VIEW} .sgool-tag-left")).to_have_text("Before")
    # Pressed, it stays, and the divider can be moved over it.
    chips.nth(1).click()
    rest(page)
    expect(chips.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(SHOWN)).to_have_count(2)
    assert layout(page) == before
    shoot(page, f"phrases-held-{theme}", VIEW)
    page.set_viewport_size({"width": 900, "height": 1000})
    shoot(page, f"phrases-held-{theme}-900", VIEW)


def test_the_keyboard_shows_a_phrase_and_keeps_it(open_page):  # noqa: F811
    page = open_page()
    pretend(page, [{**IMAGE, "phrases": phrases(FROG, CAR)}])
    frog, car = page.locator(CHIPS).first, page.locator(CHIPS).nth(1)
    page.get_by_role("slider", name="Divider between before (left) and after (right)").focus()
    page.keyboard.press("Tab")
    expect(frog).to_be_focused()
    assert frog.evaluate("chip => getComputedStyle(chip).outlineStyle") == "solid"
    expect(page.locator(SHOWN)).to_have_count(2)
    expect(page.locator(f"{VIEW} .sgool-tag-left")).to_have_text("Before: 12 %, not found")
    expect(page.locator(f"{VIEW} .sgool-tag-right")).to_have_text("After: 81 %")
    page.keyboard.press("Tab")
    expect(page.locator(SHOWN).first).to_have_attribute("src", re.compile("phrase-2-after.png$"))
    page.keyboard.press("Enter")
    expect(car).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Tab")
    expect(page.locator(SHOWN)).to_have_count(2)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(page.locator(SHOWN).first).to_have_attribute("src", re.compile("phrase-1-after.png$"))
    page.keyboard.press("Tab")
    page.keyboard.press(" ")
    expect(car).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Tab")
    expect(page.locator(SHOWN)).to_have_count(0)


def test_a_tap_shows_a_phrase_until_the_next_tap(browser, server):  # noqa: F811
    page = browser.new_page(viewport={"width": 900, "height": 1000}, has_touch=True)
    try:
        page.goto(server.url, wait_until="domcontentloaded")
        page.locator(BOX).wait_for(state="attached")
        wait_for_quiet(page)
        pretend(page, [{**IMAGE, "phrases": phrases(FROG, CAR)}])
        frog, car = page.locator(CHIPS).first, page.locator(CHIPS).nth(1)
        frog.tap()
        expect(page.locator(SHOWN)).to_have_count(2)
        car.tap()
        expect(page.locator(SHOWN).first).to_have_attribute("src", re.compile("phrase-2-after.png$"))
        expect(page.locator(f"{CHIPS}[aria-pressed=true]")).to_have_count(1)
        car.tap()
        expect(page.locator(SHOWN)).to_have_count(0)
    finally:
        page.close()


def test_what_the_server_says_of_a_phrase_is_text(open_page):  # noqa: F811
    page = open_page()
    name = "<img src=x onerror='window.hacked=1'>"
    long = {**CAR, "phrase": "a very long phrase " * 20}
    blind = {**FROG, "phrase": "a fly", "maps": []}
    note = "The critic <b>x</b> has no heat maps."
    pretend(
        page, [{**IMAGE, "message": "It ended.", "phrases": phrases({**FROG, "phrase": name}, long, blind, note=note)}]
    )
    chips = page.locator(CHIPS)
    expect(chips.nth(0)).to_have_text(f"{name}12 % → 81 %")
    expect(chips.nth(1)).to_have_text(re.compile("97 % → 34 %, not found$"))
    expect(chips.nth(2)).to_be_disabled()
    expect(page.locator(f"{VIEW} .sgool-message")).to_have_text(f"It ended. {note}")
    assert page.evaluate("window.hacked") is None and page.locator(f"{CHIPS} img").count() == 0
    widths = [chip.bounding_box()["width"] for chip in chips.all()]
    assert max(widths) <= page.locator(VIEW).bounding_box()["width"]
    share = chips.nth(1).locator("span").nth(1)
    assert share.evaluate(
        "node => node.scrollWidth <= node.clientWidth + 1 || getComputedStyle(node).flexShrink === '0'"
    )
    styles = [chip.evaluate("node => getComputedStyle(node).borderTopStyle") for chip in chips.all()]
    assert styles == ["solid", "dashed", "solid"]
    shoot(page, "phrases-text", VIEW)


def test_a_phrase_and_where_people_look_take_turns(open_page):  # noqa: F811
    page = open_page()
    pretend(page, [{**IMAGE, "phrases": phrases(FROG, CAR)}])
    view = page.locator(VIEW)
    frog, left = page.locator(CHIPS).first, view.locator(".sgool-before:not(.sgool-veil)")
    looks, divider = view.get_by_role("button", name="Where people look"), view.get_by_role("slider")
    looks.click()
    rest(page)
    frog.hover()
    expect(left).to_have_attribute("src", re.compile("before.png$"))
    assert divider.input_value() == "50"
    rest(page)
    expect(left).to_have_attribute("src", re.compile("saliency.png$"))
    assert divider.input_value() == "100"
    looks.click()
    frog.click()
    looks.click()
    rest(page)
    expect(frog).to_have_attribute("aria-pressed", "false")
    expect(page.locator(SHOWN)).to_have_count(0)
    expect(left).to_have_attribute("src", re.compile("saliency.png$"))


def test_a_phrase_stays_chosen_from_image_to_image(open_page):  # noqa: F811
    page = open_page()
    other = {**IMAGE, "phrases": phrases({**CAR, "phrase": "a tree"}, FROG)}
    pretend(page, [{**IMAGE, "phrases": phrases(FROG, CAR)}, other, IMAGE])
    page.locator(CHIPS).first.click()
    rest(page)
    following = page.get_by_label("Next image of the batch")
    following.click()
    expect(page.locator(SHOWN).first).to_have_attribute("src", re.compile("/1/phrase-2-after.png$"))
    expect(page.locator(CHIPS).nth(1)).to_have_attribute("aria-pressed", "true")
    following.click()
    expect(page.locator(f"{VIEW} .sgool-chips")).to_be_hidden()
    expect(page.locator(SHOWN)).to_have_count(0)
    expect(page.locator(f"{VIEW} .sgool-tag-right")).to_have_text("After")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_best_of_a_batch_are_shown_with_score_rank_and_phrases(open_page, theme):  # noqa: F811
    page = open_page(theme)
    prepare(page, 0)
    fold(page, "more")
    page.locator("#sgool_txt2img_best input[type=checkbox]").click()
    fold(page, "more")
    number(page, "txt2img_batch_size", 4)
    page.evaluate("window.scrollTo(0, 0)")
    generate(page)
    wait_for_the_end(page)
    view = page.locator(VIEW)
    view.locator(".sgool-frame").wait_for()
    page.wait_for_function(f"document.querySelector('{VIEW} .sgool-after:not(.sgool-veil)').naturalWidth > 0")
    expect(view.locator(".sgool-facts")).to_have_text(
        re.compile(r"^score \d\.\d{3}, rank 1 of 4 · scored by embedded$")
    )
    expect(view.locator(".sgool-title")).to_have_text(re.compile(r"^SGOOL, seed \d+$"))
    for hidden in (".sgool-scores", ".sgool-handle", ".sgool-before:not(.sgool-veil)", ".sgool-tag-right"):
        expect(view.locator(hidden)).to_be_hidden()
    expect(view.get_by_role("button", name="Where people look")).to_be_hidden()
    expect(view.locator(".sgool-links a")).to_have_text(["image"])
    chips = page.locator(CHIPS)
    expect(chips.first).to_have_text(re.compile(r"^a car\d+ %(, not found)?$"))
    chips.first.click()
    rest(page)
    expect(page.locator(SHOWN)).to_have_count(1)
    expect(view.locator(".sgool-tag-right")).to_have_text(re.compile(r"^a car: \d+ %(, not found)?$"))
    shoot(page, f"phrases-best-{theme}", VIEW)
    page.get_by_label("Next image of the batch").click()
    expect(view.locator(".sgool-facts")).to_contain_text("rank 2 of 4")
    view.get_by_role("button", name="Enlarge").click()
    dialog = page.locator("dialog.sgool-dialog")
    expect(dialog.locator("button[aria-pressed=true]")).to_have_text("Image")
    expect(dialog.locator("button[aria-pressed]:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
