"""In a browser: open, tick, generate, watch, compare, paste back, interrupt, generate again.

SGOOL_WEBUI_CHROMIUM names the browser where it is not found; SGOOL_WEBUI_SCREENSHOTS a folder for what it looked like.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hosts import AUTOMATIC1111, FORGE, HOST, NEO, only_in
from payloads import BASE, PROMPT, SGOOL, SIZE, make, picture
from PIL import Image
from webui_server import encode

from sgool import cost
from sgool.guidance import CRITICS
from sgool.presets import AIMS, PRESETS
from sgool.settings import ABOUT, DEFAULTS, Settings

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=60_000)
expect = playwright.expect

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
QUIET = 4000 if HOST in (FORGE, NEO) else 1500
"""Milliseconds without a request, after which a page has been loaded. Gradio 4's is slow to ask for more."""
BOX = "#sgool_txt2img-visible-checkbox"
TITLE = "#sgool_txt2img > .label-wrap"
VIEW = "#sgool_txt2img_view"
IMG2IMG_TAB = re.compile(r"^\s*img2img\s*$", re.IGNORECASE)
IMAGE = {
    "score_before": 0.784,
    "score_resampled": 0.895,
    "score_after": 0.912,
    "best_iteration": 4,
    "iterations": 12,
    "regions": 3,
    "message": "",
}
"""What the server says of an image."""


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

    def open_(theme="light", width=1400, height=900, then=None):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda error: errors.append(error.stack))
        if then:
            then(page)
        page.goto(f"{server.url}/?__theme={theme}", wait_until="domcontentloaded")
        page.locator(BOX).wait_for(state="attached")
        wait_for_quiet(page)
        return page

    yield open_
    for page in pages:
        page.close()
    # The WebUI's own page has errors of its own, for example when the width is typed in.
    assert not [stack for stack in errors if "sgool" in stack]


def wait_for_quiet(page):
    """Until the page has asked for nothing for a while: what it asks for when it is loaded would undo what is typed.
    (Gradio 4 never ends one of its requests, so the network never rests.)
    """
    asked = [None]

    def hear(request):
        asked.append(request)

    page.on("request", hear)
    while asked:
        asked.clear()
        page.wait_for_timeout(QUIET)
    page.remove_listener("request", hear)
    page.locator(BOX).wait_for(state="attached")  # Forge Neo loads its page twice


def shoot(page, name, selector=None):
    """What the page looks like. selector: only this part of it, all of it; the page is not scrolled."""
    folder = os.environ.get("SGOOL_WEBUI_SCREENSHOTS")
    if not folder:
        return
    page.mouse.move(0, 0)
    path = Path(folder) / f"{name}.png"
    if selector is None:
        page.screenshot(path=path)
        return
    box = page.locator(selector).bounding_box()
    box["x"], box["y"] = box["x"] + page.evaluate("window.scrollX"), box["y"] + page.evaluate("window.scrollY")
    page.screenshot(path=path, full_page=True, clip=box)


def number(page, elem_id, value):
    field = page.locator(f"#{elem_id} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def choose(page, elem_id, value):
    page.locator(f"#{elem_id} input").click()
    page.locator(f"#{elem_id} li:is([data-value='{value}'], [aria-label='{value}'])").click()  # gradio 3, 4


def tick(page):
    page.locator(BOX).click()
    expect(page.locator(BOX)).to_be_checked()


def fold(page, *names):
    """Open or close these parts of the accordion; none: itself."""
    for title in [f"#sgool_txt2img_{name} > .label-wrap" for name in names] or [TITLE]:
        page.locator(title).click()


def small(page, prompt, seed=BASE["seed"]):
    """A small picture of few steps."""
    page.locator("#txt2img_prompt textarea").fill(prompt)
    for elem_id, value in {"width": SIZE, "height": SIZE, "steps": BASE["steps"], "cfg_scale": 4}.items():
        number(page, f"txt2img_{elem_id}", value)
    page.locator("#txt2img_seed input").fill(str(seed))


def prepare(page, iterations, prompt=PROMPT, seed=BASE["seed"], steps=4):
    """A small picture, SGOOL ticked with so many steps, and the embedded networks. The accordion is left open."""
    small(page, prompt, seed)
    tick(page)
    fold(page)
    number(page, "sgool_txt2img_iterations", iterations)
    choose(page, "sgool_txt2img_saliency", "spectral")
    fold(page, "more", "expert")
    for elem_id, value in {"steps": steps, "cutouts": 2, "learning_rate": 0.2, "warmup": 0, "patience": 0}.items():
        number(page, f"sgool_txt2img_{elem_id}", value)
    for elem_id in ("guide", "selector"):
        choose(page, f"sgool_txt2img_{elem_id}", "embedded")
    fold(page, "more", "expert")
    page.evaluate("window.scrollTo(0, 0)")


def generate(page):
    page.locator("#txt2img_generate").click()


def wait_for_progress(page, text):
    progress = page.locator("#txt2img_results .progressDiv")
    expect(progress).to_contain_text(text, timeout=SLOW)
    return progress.inner_text()


def wait_for_the_end(page):
    expect(page.locator("#txt2img_interrupt")).to_be_hidden(timeout=SLOW)


def wait_for_the_view(page):
    wait_for_the_end(page)
    page.locator(f"{VIEW} .sgool-frame").wait_for(timeout=SLOW)
    for name in ("before", "after"):
        wait_for_picture(page, f".sgool-{name}")


def wait_for_picture(page, selector):
    page.wait_for_function(f"document.querySelector('{selector}')?.naturalWidth > 0")


def hand_over(page, told):
    """What Gradio does when a generation has ended. told: the generation info, or "" of one that failed."""
    text = told if isinstance(told, str) else json.dumps(told)
    page.locator("#generation_info_txt2img textarea").evaluate("(field, text) => { field.value = text; }", text)


def pretend(page, images, kept=8, run="x", **params):
    """A run of these images has ended. A picture of it is any picture."""
    page.unroute("**/sgool/v1/runs/**")
    own = {"sampled": "its own bdia, 4 steps", "rendered": None, "by_yours": False}
    images = [{**own, "score_best": image.get("score_after"), **image} for image in images]
    body = json.dumps({"images": images, "kept": kept})
    dot = base64.b64decode(encode(Image.new("RGB", (64, 48), "teal")))
    page.route(
        "**/sgool/v1/runs/**",
        lambda route: (
            route.fulfill(content_type="image/png", body=dot)
            if route.request.url.endswith(".png")
            else route.fulfill(content_type="application/json", body=body)
        ),
    )
    scores = [image.get("score_after") for image in images]
    params = {"SGOOL run": [run], "SGOOL score after": scores, **params}
    hand_over(page, {"all_seeds": [11, 12, 13], "extra_generation_params": params})


# The accordion.


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_closed_it_says_what_it_does_what_it_costs_and_whether_it_is_on(open_page, theme):
    page = open_page(theme)
    line = page.locator("#sgool_txt2img [data-sgool]")
    expect(line).to_have_text("Improves the image's starting noise; about 7 times an image's time")
    title, about = page.locator(f"{TITLE} > span").first.bounding_box(), line.bounding_box()
    assert about["y"] >= title["y"] + title["height"] - 1
    expect(page.locator(BOX)).to_be_visible()
    expect(page.locator(BOX)).not_to_be_checked()
    shoot(page, f"closed-{theme}", "#sgool_txt2img")
    tick(page)
    expect(page.locator("#sgool_txt2img_iterations")).to_be_hidden()
    shoot(page, f"closed-on-{theme}", "#sgool_txt2img")


def test_opening_it_does_not_switch_it_on_and_says_so(open_page, server):
    page = open_page()
    box, off = page.locator(BOX), page.locator("#sgool_txt2img div.block.sgool-off")
    fold(page)
    expect(page.locator("#sgool_txt2img_iterations")).to_be_visible()
    expect(box).not_to_be_checked()
    expect(off).to_have_text("SGOOL is off. Tick the box beside its name to use it.")
    shoot(page, "open-off", "#sgool_txt2img")
    tick(page)
    expect(off).to_be_hidden()
    fold(page)
    expect(page.locator("#sgool_txt2img_iterations")).to_be_hidden()
    expect(box).to_be_checked()  # closing does not switch it off either
    box.click()
    small(page, "a frog")
    fold(page)
    generate(page)
    info = page.locator("#html_info_txt2img").first
    expect(info).to_contain_text("Steps: 5", timeout=SLOW)
    assert "SGOOL" not in info.inner_text()


def test_the_preset_in_force_is_pressed(open_page):
    page = open_page()
    fold(page)
    buttons = {name: page.locator(f"#sgool_txt2img_preset_{name.lower()}") for name in PRESETS}

    def in_force(expected):
        for name, button in buttons.items():
            expect(button).to_have_attribute("aria-pressed", str(name == expected).lower())

    in_force("Balanced")
    looks = "button => getComputedStyle(button).backgroundImage + getComputedStyle(button).backgroundColor"
    assert buttons["Balanced"].evaluate(looks) != buttons["Quick"].evaluate(looks) == buttons["Paper"].evaluate(looks)
    for name in ("Paper", "Quick"):
        buttons[name].click()
        in_force(name)
        expected = PRESETS[name].get("iterations", DEFAULTS["iterations"])
        expect(page.locator("#sgool_txt2img_iterations input[type=number]")).to_have_value(str(expected))
    number(page, "sgool_txt2img_iterations", 6)
    in_force(None)
    number(page, "sgool_txt2img_iterations", PRESETS["Quick"]["iterations"])
    in_force("Quick")


def test_paper_warns_of_its_cost(open_page):
    page = open_page()
    fold(page)
    paper, words = page.locator("#sgool_txt2img_preset_paper"), page.locator("#sgool_txt2img .sgool-cost")
    warning = cost.in_words(cost.images(Settings.of(PRESETS["Paper"])))
    assert warning.startswith("slow: about ")
    expect(paper).to_have_attribute("title", re.compile(f"50 iterations of 50 steps.*{warning}$"))
    weight = "node => getComputedStyle(node).fontWeight"
    assert words.evaluate(weight) == "400"
    paper.click()
    expect(words).to_have_text(warning)
    assert int(words.evaluate(weight)) >= 600
    shoot(page, "paper", "#sgool_txt2img")


def test_the_cost_follows_the_settings_without_a_request(open_page):
    page, asked = open_page(), []
    fold(page)
    fold(page, "more", "expert")
    page.on("request", lambda request: asked.append(request.url))
    words, settings = page.locator("#sgool_txt2img .sgool-cost"), {}

    def follows(steps=20):
        expect(words).to_have_text(cost.in_words(cost.images(Settings(**settings), steps)))

    for name, value in {"iterations": 40, "steps": 37, "candidates": 5, "strength": 0.3}.items():
        number(page, f"sgool_txt2img_{name}", value)
        settings[name] = value
        follows()
    choose(page, "sgool_txt2img_sampler", "edict")
    settings["sampler"] = "edict"
    follows()
    page.locator("#sgool_txt2img_start input[value=image]").check()
    settings["start"] = "image"
    follows()
    assert not asked
    number(page, "txt2img_steps", 50)
    follows(50)
    assert not [url for url in asked if "sgool" in url]


def test_the_cost_and_the_preset_are_those_of_what_is_pasted(open_page):
    page = open_page()
    text = "a frog\nSteps: 20, Seed: 1, SGOOL Steps: 10, SGOOL Iterations: 3, SGOOL Cutouts: 4, SGOOL version: 0"
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#txt2img_tools #paste").click()
    expect(page.locator(BOX)).to_be_checked()
    expect(page.locator("#sgool_txt2img .sgool-cost")).to_have_text("about 3 times an image's time")
    expect(page.locator("#sgool_txt2img_preset_quick")).to_have_attribute("aria-pressed", "true")


def test_what_only_an_expert_turns_has_a_fold_of_its_own(open_page):
    page = open_page()
    fold(page)
    shown = {name for name in ABOUT if page.locator(f"#sgool_txt2img_{name}").is_visible()}
    assert shown == {name for name, about in ABOUT.items() if about.webui and about.group in ("", "Zoom")} - {
        "as_uploaded"
    }
    fold(page, "more")
    more = {name for name in ABOUT if page.locator(f"#sgool_txt2img_{name}").is_visible()} - shown
    assert {ABOUT[name].group for name in more} == {"Batch", "Zoom details", "Sampling", "Regions", "Critics"}
    shoot(page, "more-light", "#sgool_txt2img")
    fold(page, "more", "expert")
    expert = {name for name in ABOUT if page.locator(f"#sgool_txt2img_{name}").is_visible()} - shown
    assert expert == {name for name, about in ABOUT.items() if about.group == "Expert"}
    expect(page.locator("#sgool_txt2img_expert > .label-wrap")).to_contain_text("Expert")
    shoot(page, "expert-light", "#sgool_txt2img")


@pytest.mark.parametrize("name", ["guide", "selector"])
def test_the_critics_are_lists_with_the_embedded_ones_and_take_others(open_page, name):
    page = open_page()
    fold(page)
    fold(page, "more")
    field = page.locator(f"#sgool_txt2img_{name} input")
    field.click()
    values = "items => items.map(item => item.dataset.value ?? item.ariaLabel)"  # gradio 3, 4
    listed = page.locator(f"#sgool_txt2img_{name} li").evaluate_all(values)
    assert set(CRITICS) < set(listed) and "embedded" in listed
    field.fill("clip:RN50/openai")
    field.press("Enter")
    field.press("Tab")
    expect(field).to_have_value("clip:RN50/openai")


def test_a_choice_of_three_sets_the_guide_and_follows_it(open_page, server):
    """Without a request, and with a guide of another kind none is chosen."""
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    fold(page)
    chosen = page.locator("#sgool_txt2img_aim input:checked")
    expect(chosen).to_have_value("the prompt")
    expect(page.locator("#sgool_txt2img_aim")).to_contain_text("2 GB")
    shoot(page, "aim-light", "#sgool_txt2img")
    fold(page, "more")
    guide = page.locator("#sgool_txt2img_guide input")
    for name, value in list(AIMS.items())[::-1]:
        page.locator("#sgool_txt2img_aim label").get_by_text(name, exact=True).click()
        expect(guide).to_have_value(value)
        expect(chosen).to_have_value(name)
    choose(page, "sgool_txt2img_guide", "pickscore")
    expect(chosen).to_have_count(0)
    choose(page, "sgool_txt2img_guide", "hps-v2.1")
    expect(chosen).to_have_value("people's taste")
    assert not [url for url in asked if server.url in url]
    # It is the guide that the run gets, and the infotext that brings the choice back.
    text = 'a frog\nSteps: 20, Seed: 1, SGOOL Guide: "clip 1, hps-v2.1 1", SGOOL version: 0'
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#txt2img_tools #paste").click()
    expect(chosen).to_have_value("both")
    expect(guide).to_have_value(AIMS["both"])


@pytest.mark.parametrize("width", [1400, 900, 420])
def test_nothing_wraps_badly(open_page, width):
    """Everything lies within the accordion, and every label and every row of choices is one line."""
    page = open_page(width=width)
    fold(page)
    fold(page, "more", "expert")
    shoot(page, f"all-{width}", "#sgool_txt2img")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    wrong = page.locator("#sgool_txt2img").evaluate(
        """(accordion) => {
            const outer = accordion.getBoundingClientRect(), wrong = [];
            for (const node of accordion.querySelectorAll("*")) {
                const box = node.getBoundingClientRect();
                const hidden = box.width === 0 || node.closest(".hide, .options, svg, .sr-only");
                if (!hidden && (box.left < outer.left - 1 || box.right > outer.right + 1)) wrong.push(node.outerHTML);
            }
            for (const label of accordion.querySelectorAll("[data-testid=block-info], .sgool-presets button")) {
                if (label.clientHeight > 1.9 * parseFloat(getComputedStyle(label).fontSize) + 12 ||
                    label.getClientRects().length > 1) wrong.push(label.textContent);
            }
            for (const row of accordion.querySelectorAll("fieldset .wrap, .sgool-presets")) {
                const tops = [...row.querySelectorAll("label, button")].map(each => each.offsetTop);
                if (new Set(tops).size > 1) wrong.push(row.textContent);
            }
            for (const text of accordion.querySelectorAll("textarea")) {
                if (text.scrollHeight > text.clientHeight + 1) wrong.push(text.placeholder);
            }
            return wrong;
        }"""
    )
    assert not wrong


def test_the_tooltips_are_there(open_page):
    page = open_page()
    for name in ("iterations", "region_prompt", "regularization", "saliency"):
        expect(page.locator(f"#sgool_txt2img_{name}")).to_have_attribute("title", ABOUT[name].help)


def test_img2img_has_it_too(open_page):
    page = open_page()
    page.locator("#tabs > .tab-nav button").get_by_text(IMG2IMG_TAB).click()
    page.locator("#sgool_img2img-visible-checkbox").click()
    page.locator("#sgool_img2img > .label-wrap").click()
    expect(page.locator("#sgool_img2img-visible-checkbox")).to_be_checked()
    iterations = page.locator("#sgool_img2img_iterations input[type=number]")
    expect(iterations).to_be_visible()
    expect(page.locator("#sgool_img2img_start")).to_be_hidden()
    text = "a frog\nSteps: 20, Seed: 1, SGOOL Iterations: 7, SGOOL Region prompt: sea, SGOOL version: 0"
    page.locator("#img2img_prompt textarea").fill(text)
    page.locator("#img2img_tools #paste").click()
    expect(iterations).to_have_value("7")
    expect(page.locator("#sgool_img2img_region_prompt textarea")).to_have_value("sea")
    told = cost.in_words(cost.images(Settings(iterations=7, start="image")))
    expect(page.locator("#sgool_img2img .sgool-cost")).to_have_text(told)
    shoot(page, "img2img-light", "#sgool_img2img")


def test_settings_have_a_page_of_it(open_page, server):
    page = open_page()
    page.locator("#tabs > .tab-nav button").get_by_text("Settings", exact=True).click()
    page.locator("#settings > .tab-nav button").get_by_text("SGOOL", exact=True).click()
    box = page.locator("#setting_sgool_save_before input")
    expect(box).not_to_be_checked()
    box.check()
    shoot(page, "settings-light", "#settings_sgool")
    page.locator("#settings_submit").click()
    try:
        expect(page.locator("#settings_result").first).to_contain_text("sgool_save_before")
        saved = json.loads((server.home / "config.json").read_text())  # Forge Neo's API does not tell of extensions'
        assert saved["sgool_save_before"] is True
    finally:
        server.options(sgool_save_before=False)


# A run, and its view.


@pytest.mark.parametrize(("theme", "width"), [("light", 1400), ("dark", 1400), ("light", 900), ("light", 420)])
def test_tick_generate_watch_and_compare(open_page, theme, width):
    page = open_page(theme, width)
    name = f"{theme}-{width}"
    view = page.locator(VIEW)
    # A run that is worth looking at: its pictures are the README's.
    prepare(page, iterations=5, prompt="a penguin and a strawberry on a busy blue background", seed=1, steps=8)
    shoot(page, f"open-{name}", "#sgool_txt2img")
    generate(page)
    told = wait_for_progress(page, re.compile(r"SGOOL [23]/5, your image [\d.]+"))
    assert "%" in told
    expect(view).to_have_count(0)
    shoot(page, f"running-{name}", "#txt2img_extra_tabs")
    wait_for_the_view(page)
    seconds = re.compile(r"image's time \(about \d+ (s|min)\)$")
    expect(page.locator("#sgool_txt2img .sgool-cost")).to_have_text(seconds)
    expect(view.locator(".sgool-scores")).to_have_text(
        re.compile(r"^Your image \d\.\d{3} · sampled again \d\.\d{3} · after iteration \d \d\.\d{3} \(best\)$")
    )
    expect(view.locator(".sgool-facts")).to_have_text(re.compile(r"^\d regions? · 5 iterations · scored by embedded$"))
    expect(view.locator(".sgool-title")).to_have_text("SGOOL, seed 1")
    # It lies below the gallery, within its column, and has come into sight.
    box = f"document.querySelector('{VIEW}').getBoundingClientRect()"
    page.wait_for_function(f"{box}.top >= 0 && {box}.bottom <= innerHeight + 1")
    gallery, box = page.locator("#txt2img_gallery").bounding_box(), view.bounding_box()
    assert box["y"] >= gallery["y"] + gallery["height"] and box["x"] >= gallery["x"] - 1
    assert box["x"] + box["width"] <= gallery["x"] + gallery["width"] + 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shoot(page, f"done-{name}", "#txt2img_extra_tabs")
    shoot(page, f"window-{name}")
    view.get_by_role("button", name="Where people look").click()
    page.wait_for_function(f"document.querySelector('{VIEW} .sgool-before:not(.sgool-veil)').naturalWidth > {SIZE}")
    shoot(page, f"saliency-{name}", VIEW)
    view.get_by_role("button", name="Enlarge").click()
    wait_for_picture(page, ".sgool-dialog img")
    dialog = page.locator(".sgool-dialog").bounding_box()
    assert dialog["x"] >= 0 and dialog["x"] + dialog["width"] <= width
    shoot(page, f"enlarged-{name}")


def test_two_pages_each_show_their_own_run(open_page, server):
    """The second one waits in the queue when the first one ends, and begins before the first page has asked."""
    pages = [open_page(), open_page()]
    for page, seed in zip(pages, (21, 34), strict=True):
        prepare(page, iterations=2, seed=seed)
    for page in pages:
        generate(page)
    shown = []
    for page, seed in zip(pages, (21, 34), strict=True):
        wait_for_the_view(page)
        view = page.locator(VIEW)
        expect(view.locator(".sgool-title")).to_have_text(f"SGOOL, seed {seed}")
        info = page.locator("#html_info_txt2img").first.inner_text()
        for key in ("before", "resampled"):
            score = float(re.search(rf"SGOOL score {key}: ([\d.]+)", info)[1])
            expect(view.locator(".sgool-scores")).to_contain_text(f"{score:.3f}")
        shown.append(view.locator(".sgool-after:not(.sgool-veil)").get_attribute("src"))
    assert shown[0] != shown[1]
    first = pages[0].locator(VIEW)
    first.get_by_role("button", name="Where people look").click()  # a picture that it had not asked for before
    wait_for_picture(pages[0], f"{VIEW} .sgool-before:not(.sgool-veil)")
    fresh = "source => fetch(source, {cache: 'reload'}).then(answer => answer.status)"
    assert pages[0].evaluate(fresh, shown[0]) == 200
    shoot(pages[0], "after-somebody-elses-run")


def test_a_run_that_is_no_longer_kept_is_said(open_page, server):
    page = open_page()
    prepare(page, iterations=1)
    generate(page)
    wait_for_the_view(page)
    view, asked = page.locator(VIEW), {**SGOOL, "iterations": 0, "candidates": 2, "steps": 2}
    for _ in range(8):
        make(server, BASE, asked)
    expect(view.locator(".sgool-frame")).to_be_visible()
    view.get_by_role("button", name="Where people look").click()
    expect(view.locator(".sgool-message")).to_have_text("This run is no longer kept.")
    expect(view.locator("img:visible, a:visible, button:visible")).to_have_count(0)
    shoot(page, "no-longer-kept", VIEW)


def test_a_run_that_is_lost_before_the_page_asks_is_said(open_page):
    page = open_page()
    hand_over(page, {"all_seeds": [1], "extra_generation_params": {"SGOOL run": ["gone"]}})
    expect(page.locator(f"{VIEW} .sgool-message")).to_have_text("This run is no longer kept.")
    expect(page.locator(f"{VIEW} img:visible")).to_have_count(0)
    pretend(page, [IMAGE])
    expect(page.locator(f"{VIEW} .sgool-frame")).to_be_visible()
    expect(page.locator(f"{VIEW} .sgool-message")).to_have_text("")


@only_in(AUTOMATIC1111, "its random weights keep no color of a picture")
def test_a_folder_batch_shows_the_run_of_the_first_file(open_page, tmp_path):
    """As the gallery does."""
    for name, color in (("a", "white"), ("b", "black")):
        image = picture()
        image.paste(color, (0, 0, SIZE, SIZE // 4))
        image.save(tmp_path / f"{name}.png")
    page = open_page()
    page.locator("#tabs > .tab-nav button").get_by_text(IMG2IMG_TAB).click()
    for elem_id, value in {
        "width": SIZE,
        "height": SIZE,
        "steps": 5,
        "cfg_scale": 4,
        "denoising_strength": 0.3,
    }.items():
        number(page, f"img2img_{elem_id}", value)
    text = ", ".join(f"SGOOL {ABOUT[name].label}: {value}" for name, value in SGOOL.items() if name != "enabled")
    page.locator("#img2img_prompt textarea").fill(
        f"{PROMPT}\nSteps: 5, Seed: 8, CFG scale: 4, {text}, SGOOL version: 0"
    )
    page.locator("#img2img_tools #paste").click()
    expect(page.locator("#sgool_img2img-visible-checkbox")).to_be_checked()
    page.locator("#mode_img2img > .tab-nav button").get_by_text("Batch", exact=True).click()
    page.locator("#img2img_batch_source > .tab-nav button").get_by_text("From directory", exact=True).click()
    fields = "[...document.querySelectorAll('#img2img_batch_source textarea')]"
    page.wait_for_function(f"{fields}.some(field => field.value === 'from dir')")
    page.locator("#img2img_batch_input_dir textarea").fill(str(tmp_path))
    page.locator("#img2img_generate").click()
    view = "#sgool_img2img_view .sgool-before:not(.sgool-veil)"
    page.locator("#sgool_img2img_view .sgool-frame").wait_for(timeout=SLOW)
    wait_for_picture(page, view)
    top = """async (image) => {
        await image.decode();
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        canvas.drawImage(image, 0, 0, image.naturalWidth, 4, 0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data[0];
    }"""
    expect(page.locator("#img2img_gallery .livePreview")).to_have_count(0, timeout=SLOW)  # of the last file
    assert page.locator("#img2img_gallery img").first.evaluate(top) > 150
    assert page.locator(view).evaluate(top) > 150


FIGURES = [
    ({}, {}, "Your image 0.784 · sampled again 0.895 · after iteration 4 0.912 (best)", ""),
    (
        {"best_iteration": None, "score_after": 0.784, "score_resampled": 0.7},
        {},
        "Your image 0.784 (best) · sampled again 0.700",
        " · nothing beat your image, so it is kept",
    ),
    (
        {"best_iteration": 0, "score_after": 0.895},
        {},
        "Your image 0.784 · sampled again 0.895 (best)",
        " · no iteration brought anything better",
    ),
    (
        {"best_iteration": -1},
        {"SGOOL Candidate seeds": 4},
        "Your image 0.784 · chosen of 4 seeds 0.895 · another candidate seed 0.912 (best)",
        " · no iteration brought anything better",
    ),
    (
        {"best_iteration": -1, "score_after": 0.895, "iterations": 0},
        {"SGOOL Candidate seeds": 4},
        "Your image 0.784 · chosen of 4 seeds 0.895 (best)",
        "",
    ),
    ({"score_resampled": None}, {}, "Your image 0.784 · after iteration 4 0.912 (best)", ""),
    (
        {"score_resampled": None, "best_iteration": None, "score_after": 0.784},
        {},
        "Your image 0.784 (best)",
        " · nothing beat your image, so it is kept",
    ),
]
"""What the server says that is unlike IMAGE, what the infotext says, and the words of the view."""


def test_the_figures_say_which_image_won(open_page):
    page = open_page()
    view = page.locator(VIEW)
    for run, (changed, params, scores, fact) in enumerate(FIGURES):
        pretend(page, [{**IMAGE, **changed}], run=f"x{run}", **params)
        expect(view.locator(".sgool-scores")).to_have_text(scores)
        expect(view.locator(".sgool-scores strong")).to_have_count(1)
        expect(view.locator(".sgool-facts")).to_have_text(re.compile(rf"\d+ iterations{fact}$"))


def test_the_view_shows_what_there_is(open_page):
    """Several images, each with its own seed, also where one of the batch failed, and more than are kept."""
    page = open_page()
    view, place = page.locator(VIEW), page.locator(f"{VIEW} .sgool-place")
    pretend(page, [IMAGE] * 3, run="a")
    expect(place).to_have_text("1 of 3")
    view.get_by_role("button", name="Where people look").click()
    view.get_by_role("button", name="Previous image of the batch").click()
    expect(place).to_have_text("3 of 3")
    expect(view.locator(".sgool-title")).to_have_text("SGOOL, seed 13")
    expect(view.locator(".sgool-before:not(.sgool-veil)")).to_have_attribute("src", re.compile("/a/2/saliency.png$"))
    pretend(page, [IMAGE] * 2, kept=2, run="b", **{"SGOOL score after": [None, 0.9, 0.8]})
    expect(place).to_have_text("1 of the first 2")
    expect(view.locator(".sgool-title")).to_have_text("SGOOL, seed 12")
    expect(view.locator(".sgool-before:not(.sgool-veil)")).to_have_attribute("src", re.compile("/b/0/before.png$"))
    pretend(page, [{**IMAGE, "message": "<b>Interrupted</b>"}], run="c")
    expect(place).to_be_hidden()
    expect(view.locator(".sgool-message")).to_have_text("<b>Interrupted</b>")  # text, never HTML


def test_the_divider_is_moved_by_keys_and_by_a_pointer(open_page):
    page = open_page()
    pretend(page, [IMAGE])
    view = page.locator(VIEW)
    divider, before = view.get_by_role("slider"), view.locator(".sgool-before:not(.sgool-veil)")
    expect(divider).to_have_attribute("aria-label", "Divider between before (left) and after (right)")
    clip = "image => getComputedStyle(image).clipPath"
    half = before.evaluate(clip)
    divider.focus()
    page.keyboard.press("ArrowRight")
    assert divider.input_value() == "51"
    page.keyboard.press("Home")
    assert before.evaluate(clip) != half
    view.scroll_into_view_if_needed()
    box = view.locator(".sgool-frame").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 60, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    page.mouse.up()
    assert abs(int(divider.input_value()) - 25) <= 1
    expect(page.locator(".sgool-dialog[open]")).to_have_count(0)


def test_where_people_look_covers_the_picture_or_is_compared(open_page):
    page = open_page()
    pretend(page, [IMAGE])
    view = page.locator(VIEW)
    looks, divider, left = (
        view.get_by_role("button", name="Where people look"),
        view.get_by_role("slider"),
        ".sgool-before:not(.sgool-veil)",
    )
    looks.click()
    expect(looks).to_have_attribute("aria-pressed", "true")
    expect(view.locator(left)).to_have_attribute("src", re.compile("saliency.png$"))
    clip = view.locator(left).evaluate("image => getComputedStyle(image).clipPath")
    assert re.fullmatch(r"inset\(0(px)? (0%|calc\(0%\)|calc\(100% - 100%\)|0px)( 0(px)? 0(px)?)?\)", clip), clip
    expect(view.locator(".sgool-tag-right")).to_be_hidden()  # nothing of after is seen
    divider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert divider.input_value() == "80"
    expect(view.locator(".sgool-tag-left")).to_have_text("Where people look")
    expect(view.locator(".sgool-tag-right")).to_be_visible()
    looks.click()
    expect(view.locator(left)).to_have_attribute("src", re.compile("before.png$"))
    assert divider.input_value() == "50"


def test_a_picture_can_be_enlarged(open_page):
    """By a click on it, or the button; keys turn the pages and close it, and do not reach the WebUI."""
    page = open_page()
    pretend(page, [IMAGE])
    view, dialog = page.locator(VIEW), page.locator("dialog.sgool-dialog")
    view.scroll_into_view_if_needed()
    box = view.locator(".sgool-frame").bounding_box()

    def shows(kind, name):
        expect(dialog.locator("img")).to_have_attribute("src", re.compile(f"/0/{kind}.png$"))
        expect(dialog.locator("button[aria-pressed=true]")).to_have_text(name)
        expect(dialog.locator("button[aria-pressed=true]")).to_be_focused()
        expect(dialog.get_by_role("link", name="Save")).to_have_attribute("download", f"sgool-{kind}-11.png")

    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    expect(dialog).to_be_visible()
    shows("before", "Before")
    assert dialog.locator("img").bounding_box()["width"] > box["width"]
    for kind, name in (
        ("after", "After"),
        ("saliency", "Where people look"),
        ("loss", "Loss curve"),
        ("before", "Before"),
    ):
        page.keyboard.press("ArrowRight")
        shows(kind, name)
    page.keyboard.press("ArrowLeft")
    shows("loss", "Loss curve")
    # The WebUI interrupts what runs at Escape, wherever it is pressed.
    page.evaluate("""() => {
        const interrupt = document.querySelector("#txt2img_interrupt");
        interrupt.style.display = "block";
        interrupt.addEventListener("click", () => { window.interrupted = true; });
    }""")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate("window.interrupted") is None
    enlarge = view.get_by_role("button", name="Enlarge")
    enlarge.focus()
    page.keyboard.press("Enter")
    shows("after", "After")
    dialog.get_by_role("button", name="Where people look").click()
    shows("saliency", "Where people look")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(enlarge).to_be_focused()
    enlarge.click()
    page.mouse.click(3, 3)  # beside it
    expect(dialog).to_be_hidden()
    pretend(page, [{**IMAGE, "iterations": 0}], run="y")
    expect(view.locator(".sgool-facts")).to_contain_text("0 iterations")
    enlarge.click()
    expect(dialog.get_by_role("button", name="Loss curve")).to_be_hidden()  # there is none
    pretend(page, [IMAGE], run="z")
    expect(dialog).to_be_hidden()  # what it showed is gone


def test_interrupt_save_and_generate_again(open_page, tmp_path):
    page = open_page()
    prepare(page, iterations=100)
    generate(page)
    wait_for_progress(page, re.compile(r"SGOOL [2-9]/100"))
    page.locator("#txt2img_interrupt").click()
    wait_for_the_view(page)
    view = page.locator(VIEW)
    assert not view.locator(".sgool-facts").inner_text().endswith(" 100 iterations")
    expect(view.locator(".sgool-message")).to_contain_text("nterrupted")
    shoot(page, "interrupted-light")
    for kind, link in (
        ("before", "before"),
        ("after", "after"),
        ("saliency", "where people look"),
        ("loss", "loss curve"),
    ):
        with page.expect_download() as download:
            view.get_by_role("link", name=link).click()
        assert download.value.suggested_filename == f"sgool-{kind}-{BASE['seed']}.png"
        download.value.save_as(tmp_path / "saved.png")
        assert Image.open(tmp_path / "saved.png").format == "PNG"
    number(page, "sgool_txt2img_iterations", 1)
    generate(page)
    expect(view).to_be_hidden()  # what was shown is not of this generation
    expect(view.locator(".sgool-facts")).to_have_text(re.compile("· 1 iteration( ·|$)"), timeout=SLOW)
    wait_for_the_view(page)
    page.locator(BOX).click()
    generate(page)
    wait_for_the_end(page)
    expect(page.locator("#html_info_txt2img").first).not_to_contain_text("SGOOL", timeout=SLOW)
    expect(view).to_be_visible()  # an unticked generation leaves it alone
    tick(page)
    page.locator("#txt2img_prompt textarea").fill("")
    generate(page)
    expect(page.locator("#html_log_txt2img").first).to_contain_text("SGOOL needs a prompt", timeout=SLOW)
    expect(view).to_be_hidden()  # that run has come to nothing


def test_the_page_asks_once_when_its_generation_has_ended(open_page):
    page, asked = open_page(), []
    page.on("request", lambda request: asked.append(request.url) if re.search("/runs/[^/]+$", request.url) else None)
    prepare(page, iterations=2)
    generate(page)
    wait_for_progress(page, re.compile(r"SGOOL [12]/2"))
    assert not asked
    wait_for_the_view(page)
    assert len(asked) == 1
    page.locator("#save_txt2img").click()  # also ends below the gallery, and changes nothing
    expect(page.locator("#html_log_txt2img").first).to_contain_text("Saved")
    page.wait_for_timeout(500)
    assert len(asked) == 1
    page.reload(wait_until="domcontentloaded")
    page.locator(BOX).wait_for(state="attached")
    wait_for_quiet(page)
    expect(page.locator(VIEW)).to_have_count(0)
    assert len(asked) == 1


def test_unticked_it_asks_nothing_and_shows_nothing(open_page):
    asked = []
    page = open_page(then=lambda page: page.on("request", lambda request: asked.append(request.url)))
    small(page, "a frog")
    generate(page)
    expect(page.locator("#html_info_txt2img").first).to_contain_text("Steps: 5", timeout=SLOW)
    assert not [url for url in asked if "/sgool/v1" in url]
    assert page.locator(".sgool-view, .sgool-dialog").count() == 0


def test_it_scrolls_only_whom_it_does_not_disturb(open_page):
    """Who has scrolled since the generation began, or writes, stays where he is."""
    page = open_page()
    small(page, "")
    tick(page)
    log = page.locator("#html_log_txt2img").first

    def end(run, meanwhile):
        """How far the page is scrolled after a run, of a generation that ends at once because it has no prompt."""
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        page.evaluate("document.querySelector('#txt2img_generate').click()")
        expect(log.locator(".progress-text")).to_have_count(0, timeout=SLOW)
        expect(log).to_contain_text("SGOOL needs a prompt", timeout=SLOW)
        meanwhile()
        pretend(page, [IMAGE], run=run)
        wait_for_picture(page, f"{VIEW} .sgool-after:not(.sgool-veil)")
        page.wait_for_timeout(1000)
        return page.evaluate("window.scrollY")

    assert end("a", lambda: None) > 100
    assert end("b", lambda: page.locator("#txt2img_prompt textarea").focus()) == 0
    assert end("c", lambda: page.evaluate("window.scrollTo(0, 70)")) == 70


def test_paste_the_infotext_back(open_page, server):
    page = open_page()
    prepare(page, iterations=1, prompt="a frog <img src=x onerror='window.hacked=1'>")
    page.locator("#sgool_txt2img_region_prompt textarea").fill('a "green" frog, small: <b>[SEP]</b> a car')
    image = page.locator("#sgool_txt2img_start label").get_by_text("finished image", exact=True)
    image.click()
    generate(page)
    wait_for_the_view(page)
    controls = "#sgool_txt2img :is(input:not([type=range]), textarea)"
    read = f"[...document.querySelectorAll('{controls}')].map(e => e.type == 'radio' ? e.checked : e.value)"
    set_by_hand = page.evaluate(read)
    text = (server.home / "params.txt").read_text()
    assert "SGOOL Start from: image" in text
    assert page.evaluate("window.hacked") is None
    again = open_page()
    again.locator("#txt2img_prompt textarea").fill(text)
    again.locator("#txt2img_tools #paste").click()
    expect(again.locator(BOX)).to_be_checked()
    expect(again.locator("#sgool_txt2img_region_prompt textarea")).not_to_have_value("")
    assert again.evaluate(read) == set_by_hand
