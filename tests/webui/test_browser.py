"""In a browser: open, tick, generate, watch, compare, paste back, interrupt, generate again.

SGOOL_WEBUI_CHROMIUM names the browser where it is not found; SGOOL_WEBUI_SCREENSHOTS a folder for what it looked like.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from payloads import BASE, PROMPT

from sgool.presets import PRESETS
from sgool.settings import ABOUT, DEFAULTS

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=60_000)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SLOW = 600_000
"""Milliseconds to wait for what takes a generation."""
END = """() => {
    const timer = document.createElement("p");
    timer.className = "progress-text";
    document.querySelector("#html_log_txt2img").append(timer);
    timer.remove();
}"""
"""What the page sees of a generation's end: Gradio takes its timer away."""
LAST = "**/sgool/v1/last?tab=txt2img"


@pytest.fixture(scope="module")
def browser():
    named = os.environ.get("SGOOL_WEBUI_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if not path and not Path(driver.chromium.executable_path).exists():
            pytest.skip("there is no Chromium; set SGOOL_WEBUI_CHROMIUM to one")
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the WebUI in a theme: a page on which a script error fails the test."""
    pages, errors = [], []

    def open_(theme="light"):
        page = browser.new_page(viewport={"width": 1280, "height": 2000})
        pages.append(page)
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda error: errors.append(error.stack))
        page.goto(f"{server.url}/?__theme={theme}", wait_until="domcontentloaded")
        page.locator("#sgool_txt2img-visible-checkbox").wait_for(state="attached")
        page.locator("#sgool_txt2img_view .sgool-last").wait_for(state="attached")
        page.wait_for_load_state("networkidle")  # what the page asks for when it is loaded would undo what is typed
        return page

    yield open_
    for page in pages:
        page.close()
    # The WebUI's own page has errors of its own, for example when the width is typed in.
    assert not [stack for stack in errors if "sgool" in stack]


def shoot(page, name, selector="#txt2img_extra_tabs"):
    folder = os.environ.get("SGOOL_WEBUI_SCREENSHOTS")
    if folder:
        page.mouse.move(0, 0)
        page.locator(selector).screenshot(path=Path(folder) / f"{name}.png")


def number(page, elem_id, value):
    field = page.locator(f"#{elem_id} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def choose(page, elem_id, value):
    page.locator(f"#{elem_id} input").click()
    page.locator(f"#{elem_id} li[data-value='{value}']").click()


def tick(page):
    page.locator("#sgool_txt2img > .label-wrap").click()
    playwright.expect(page.locator("#sgool_txt2img-visible-checkbox")).to_be_checked()


def prepare(page, iterations, prompt=PROMPT, seed=BASE["seed"], steps=4):
    """A small picture, SGOOL ticked with so many steps, and the embedded networks."""
    page.locator("#txt2img_prompt textarea").fill(prompt)
    for elem_id, value in {"width": 128, "height": 128, "steps": BASE["steps"], "cfg_scale": 4}.items():
        number(page, f"txt2img_{elem_id}", value)
    page.locator("#txt2img_seed input").fill(str(seed))
    tick(page)
    number(page, "sgool_txt2img_iterations", iterations)
    choose(page, "sgool_txt2img_saliency", "spectral")
    page.locator("#sgool_txt2img_more > .label-wrap").click()
    for elem_id, value in {"steps": steps, "cutouts": 2, "learning_rate": 0.2, "warmup": 0, "patience": 0}.items():
        number(page, f"sgool_txt2img_{elem_id}", value)
    for elem_id in ("guide", "selector"):
        choose(page, f"sgool_txt2img_{elem_id}", "embedded")
    shoot(page, "more", "#sgool_txt2img_more")
    page.locator("#sgool_txt2img_more > .label-wrap").click()


def generate(page):
    page.locator("#txt2img_generate").click()


def wait_for_progress(page, text):
    progress = page.locator("#txt2img_results .progressDiv")
    playwright.expect(progress).to_contain_text(text, timeout=SLOW)
    return progress.inner_text()


def wait_for_the_end(page):
    playwright.expect(page.locator("#txt2img_interrupt")).to_be_hidden(timeout=SLOW)
    page.locator("#sgool_txt2img_view .sgool-frame").wait_for(timeout=SLOW)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tick_generate_watch_and_compare(open_page, theme):
    page = open_page(theme)
    view = page.locator("#sgool_txt2img_view")
    playwright.expect(view.locator(".sgool-frame")).to_be_hidden()
    shoot(page, f"closed-{theme}", "#sgool_txt2img")
    # A run that is worth looking at: its pictures are the README's.
    prepare(page, iterations=5, prompt="a penguin and a strawberry on a busy blue background", seed=1, steps=8)
    shoot(page, f"open-{theme}", "#sgool_txt2img")
    generate(page)
    told = wait_for_progress(page, re.compile(r"SGOOL [23]/5, score [\d.]+ -> [\d.]+"))
    assert "%" in told
    playwright.expect(view.locator(".sgool-frame")).to_be_hidden()  # nothing of an earlier run
    shoot(page, f"running-{theme}")
    wait_for_the_end(page)
    playwright.expect(view.locator(".sgool-scores")).to_have_text(
        re.compile(r"^Score \d\.\d+ → \d\.\d+ \(.\d\.\d+\) · \d+ regions? · 5 iterations$")
    )
    for picture in ("sgool-before", "sgool-after"):
        page.wait_for_function(f"document.querySelector('#sgool_txt2img_view .{picture}').naturalWidth == 128")
    divider = view.get_by_role("slider")
    before = view.locator(".sgool-before")
    half = before.evaluate("image => getComputedStyle(image).clipPath")
    divider.focus()
    page.keyboard.press("Home")
    assert before.evaluate("image => getComputedStyle(image).clipPath") != half
    page.keyboard.press("End")
    box = view.locator(".sgool-frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert abs(int(divider.input_value()) - 50) <= 3
    shoot(page, f"done-{theme}")
    looks = view.get_by_role("button", name="Where people look")
    looks.click()
    playwright.expect(looks).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("document.querySelector('#sgool_txt2img_view .sgool-before').naturalWidth > 128")
    shoot(page, f"saliency-{theme}", "#sgool_txt2img_view")


def test_paste_the_infotext_back(open_page, server):
    page = open_page()
    prepare(page, iterations=1, prompt="a frog <img src=x onerror='window.hacked=1'>")
    page.locator("#sgool_txt2img_region_prompt textarea").fill('a "green" frog, small: <b>[SEP]</b> a car')
    generate(page)
    wait_for_the_end(page)
    controls = "#sgool_txt2img :is(input:not([type=range]), textarea)"
    read = f"[...document.querySelectorAll('{controls}')].map(e => e.type == 'radio' ? e.checked : e.value)"
    set_by_hand = page.evaluate(read)
    text = (server.home / "params.txt").read_text()
    assert page.evaluate("window.hacked") is None
    again = open_page()
    again.locator("#txt2img_prompt textarea").fill(text)
    again.locator("#txt2img_tools #paste").click()
    playwright.expect(again.locator("#sgool_txt2img-visible-checkbox")).to_be_checked()
    playwright.expect(again.locator("#sgool_txt2img_region_prompt textarea")).not_to_have_value("")
    assert again.evaluate(read) == set_by_hand


def test_interrupt_and_generate_again(open_page):
    page = open_page()
    prepare(page, iterations=100)
    generate(page)
    wait_for_progress(page, re.compile(r"SGOOL [2-9]/100"))
    page.locator("#txt2img_interrupt").click()
    wait_for_the_end(page)
    scores = page.locator("#sgool_txt2img_view .sgool-scores")
    interrupted = scores.inner_text()
    assert not interrupted.endswith(" 100 iterations")
    playwright.expect(page.locator("#sgool_txt2img_view .sgool-message")).to_contain_text("nterrupted")
    shoot(page, "interrupted-light")
    number(page, "sgool_txt2img_iterations", 1)
    generate(page)
    playwright.expect(scores).to_have_text(re.compile("· 1 iteration$"), timeout=SLOW)
    page.locator("#txt2img_prompt textarea").fill("")
    generate(page)
    playwright.expect(page.locator("#html_log_txt2img").first).to_contain_text("SGOOL needs a prompt", timeout=SLOW)
    playwright.expect(page.locator("#sgool_txt2img_view .sgool-frame")).to_be_hidden()  # that run has come to nothing


def test_the_page_asks_for_the_run_once_when_it_has_ended(open_page):
    """However it ends; and never while it runs, when what the server knows may be another user's run."""
    page = open_page()
    asked, timer = [], page.locator("#html_log_txt2img .progress-text")
    page.on("request", lambda request: asked.append(request.url) if "/sgool/v1/last?" in request.url else None)

    def ended(expected):
        playwright.expect(timer).to_have_count(0, timeout=SLOW)
        page.wait_for_timeout(500)
        assert len(asked) == expected

    prepare(page, iterations=100)
    generate(page)
    wait_for_progress(page, re.compile(r"SGOOL [2-9]/100"))
    assert not asked
    page.locator("#txt2img_interrupt").click()
    ended(1)
    number(page, "sgool_txt2img_iterations", 1)
    for prompt, expected in ((PROMPT, 2), ("", 3)):
        page.locator("#txt2img_prompt textarea").fill(prompt)
        generate(page)
        timer.wait_for(state="attached")
        ended(expected)


def test_the_view_shows_what_there_is(open_page):
    """Several images, none any more (another's run has begun), and more than are kept."""
    page = open_page()
    tick(page)
    view = page.locator("#sgool_txt2img_view")
    frame, place = view.locator(".sgool-frame"), view.locator(".sgool-place")
    image = {"score_before": 0.1, "score_after": 0.2, "iterations": 3, "regions": 1, "message": ""}

    def tell(number, count, kept=8):
        run = {"id": number, "images": [image] * count, "kept": kept}
        page.unroute(LAST)
        page.route(LAST, lambda route: route.fulfill(json=run))
        page.evaluate(END)

    tell(5, 3)
    playwright.expect(place).to_have_text("1 of 3")
    view.get_by_role("button", name="Previous image of the batch").click()
    playwright.expect(place).to_have_text("3 of 3")
    tell(0, 0)
    playwright.expect(frame).to_be_hidden()
    tell(4, 2, kept=2)  # a server that was started anew may count from below
    playwright.expect(place).to_have_text("1 of the first 2")
    tell(6, 1)
    playwright.expect(place).to_be_hidden()
    playwright.expect(frame).to_be_visible()


def test_the_tooltips_are_there(open_page):
    page = open_page()
    tick(page)
    page.locator("#sgool_txt2img_more > .label-wrap").click()
    for name in ("iterations", "region_prompt", "regularization", "saliency"):
        playwright.expect(page.locator(f"#sgool_txt2img_{name}")).to_have_attribute("title", ABOUT[name].help)


def test_presets_fill_the_controls(open_page):
    page = open_page()
    tick(page)
    iterations = page.locator("#sgool_txt2img_iterations input[type=number]")
    for preset in ("Paper", "Quick", "Balanced"):
        page.locator(f"#sgool_txt2img_preset_{preset.lower()}").click()
        expected = PRESETS[preset].get("iterations", DEFAULTS["iterations"])
        playwright.expect(iterations).to_have_value(str(expected))


def test_img2img_has_it_too(open_page):
    page = open_page()
    page.locator("#tabs > .tab-nav button").get_by_text("img2img", exact=True).click()
    page.locator("#sgool_img2img > .label-wrap").click()
    playwright.expect(page.locator("#sgool_img2img-visible-checkbox")).to_be_checked()
    iterations = page.locator("#sgool_img2img_iterations input[type=number]")
    playwright.expect(iterations).to_be_visible()
    text = "a frog\nSteps: 5, Seed: 1, SGOOL iterations: 7, SGOOL prompt of the regions: sea, SGOOL version: 0"
    page.locator("#img2img_prompt textarea").fill(text)
    page.locator("#img2img_tools #paste").click()
    playwright.expect(iterations).to_have_value("7")
    playwright.expect(page.locator("#sgool_img2img_region_prompt textarea")).to_have_value("sea")
    shoot(page, "img2img-light", "#sgool_img2img")


def test_settings_have_a_page_of_it(open_page, server):
    page = open_page()
    page.locator("#tabs > .tab-nav button").get_by_text("Settings", exact=True).click()
    page.locator("#settings > .tab-nav button").get_by_text("SGOOL", exact=True).click()
    box = page.locator("#setting_sgool_save_before input")
    playwright.expect(box).not_to_be_checked()
    box.check()
    shoot(page, "settings-light", "#settings_sgool")
    page.locator("#settings_submit").click()
    try:
        playwright.expect(page.locator("#settings_result").first).to_contain_text("sgool_save_before")
        assert server.get("/sdapi/v1/options")["sgool_save_before"] is True
    finally:
        server.options(sgool_save_before=False)
