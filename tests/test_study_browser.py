"""The study in a real browser: a scripted visitor answers by keyboard and by touch, reloads, goes back and goes on.

SGOOL_WEBUI_CHROMIUM names the browser where it is not found; SGOOL_WEBUI_SCREENSHOTS a folder for what it looked like.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from study_folder import HOSTILE, serving, write_evaluation

from sgool.__main__ import main
from sgool.lab.study.analysis import analyse
from sgool.lab.study.answers import Answer
from sgool.lab.study.page import make
from sgool.lab.study.pairs import Choice
from sgool.lab.study.server import Limit, Server

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
expect = playwright.expect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROMPTS = (HOSTILE, "a small frog and a car on a busy yellow background, " * 6, "two foxes\non grass")


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("SGOOL_WEBUI_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if not path and not Path(driver.chromium.executable_path).exists():
            pytest.skip("there is no Chromium; set SGOOL_WEBUI_CHROMIUM to one")
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def server(tmp_path: Path):
    folder = write_evaluation(tmp_path / "evaluation", PROMPTS, size=128)
    make(folder, Choice(session=6))
    with serving(folder) as served:
        yield served


@pytest.fixture
def visit(browser):
    """Opens the page as a new visitor; an error of its script fails the test."""
    contexts, errors = [], []

    def visit_(url: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield visit_
    for context in contexts:
        context.close()
    assert errors == []


def shoot(page, name: str) -> None:
    if folder := os.environ.get("SGOOL_WEBUI_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def question(page, number: int, agreement: bool) -> None:
    """Wait until this question can be answered."""
    expect(page.locator("#count")).to_have_text(f"{number} of 6")
    expect(page.locator("#what")).to_contain_text("fits this text" if agreement else "of better quality")
    expect(page.locator("#pictures")).to_have_attribute("aria-busy", "false")


def shown(page) -> list[str]:
    """The files of the pictures, left and right."""
    return [image.get_attribute("src").removeprefix("pictures/") for image in page.locator(".picture img").all()]


def press(page, number: int, quality: str, agreement: str) -> list[str]:
    """Answer a pair by keyboard; its pictures."""
    question(page, number, False)
    pictures = shown(page)
    page.keyboard.press(quality)
    question(page, number, True)
    assert shown(page) == pictures
    page.keyboard.press(agreement)
    return pictures


def by_pictures(server: Server, answers: list[Answer]) -> dict[frozenset[str], Answer]:
    pairs = {pair.id: pair for pair in server.study.pairs}
    return {frozenset(pairs[each.pair].pictures): each for each in answers}


def chosen(server: Server, answer: Answer, question: str) -> str:
    """The picture that was chosen, or "same"."""
    (pair,) = (each for each in server.study.pairs if each.id == answer.pair)
    return {**dict(zip(("first", "second"), pair.pictures, strict=True)), "same": "same"}[getattr(answer, question)]


def test_a_visitor_answers_by_keyboard_reloads_and_goes_on(server, visit):
    page = visit(server.url, viewport={"width": 1400, "height": 900})
    page.get_by_role("button", name="Start").press("Enter")
    seen = [press(page, 1, "ArrowLeft", "ArrowRight"), press(page, 2, "2", "0"), press(page, 3, "ArrowDown", "1")]
    question(page, 4, False)
    half = shown(page)
    page.keyboard.press("ArrowRight")
    question(page, 4, True)
    page.reload()
    question(page, 4, True)  # where it was, with the same sides
    assert shown(page) == half
    page.keyboard.press("ArrowLeft")
    question(page, 5, False)
    page.keyboard.press("Backspace")
    question(page, 4, True)
    expect(page.locator("#left")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Backspace")
    question(page, 4, False)
    expect(page.locator("#right")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowDown")  # another answer replaces the first
    question(page, 4, True)
    page.keyboard.press("ArrowLeft")
    for number in range(5, 7):
        press(page, number, "ArrowLeft", "ArrowLeft")
    expect(page.get_by_text("All your answers have been sent.")).to_be_visible()
    answers = server.answers.every()
    assert len(answers) == 6 and len({each.visitor for each in answers}) == 1
    found = by_pictures(server, answers)
    expected = ((0, 1), (1, "same"), ("same", 0))
    for pictures, sides in zip((*seen, half), (*expected, ("same", 0)), strict=True):
        answer = found[frozenset(pictures)]
        (pair,) = (each for each in server.study.pairs if each.id == answer.pair)
        assert pair.pictures[("first", "second").index(answer.left)] == pictures[0]
        for name, side in zip(("quality", "agreement"), sides, strict=True):
            assert chosen(server, answer, name) == (side if side == "same" else pictures[side])
    page.reload()
    expect(page.get_by_text("Thank you!")).to_be_visible()
    page.get_by_role("button", name="4 more").click()
    expect(page.locator("#count")).to_have_text("7 of 10")
    assert page.title() == "Which picture is better?"


def test_a_careful_visitor_counts_and_a_careless_one_does_not(server, visit):
    """Both through the browser, to the analysis. The careful one likes each pair's last method best."""
    pairs = {frozenset(pair.pictures): pair for pair in server.study.pairs}
    for careful in (True, False):
        page = visit(server.url)
        page.get_by_role("button", name="Start").click()
        for number in range(1, 7):
            question(page, number, False)
            pictures = shown(page)
            pair = pairs[frozenset(pictures)]
            best = max(pair.methods, key=("noise", *server.study.methods).index)
            side = pictures.index(pair.pictures[pair.methods.index(best)])
            press(page, number, *(2 * [("ArrowLeft", "ArrowRight")[side if careful else 1 - side]]))
        expect(page.get_by_text("All your answers have been sent.")).to_be_visible()
    figures = analyse(server.study, server.answers.every())
    assert figures["visitors"] == {"counted": 1, "failed": 1, "unchecked": 0}
    assert figures["answers"] == 5  # one of the first six is a check
    for found in figures["questions"].values():
        assert all(row["better"] == row["same"] == 0 for row in found["preferences"])


def test_by_touch_on_a_small_screen(server, visit):
    page = visit(server.url, viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Start").tap()
    for tapped in ("#left", "#right"):
        expect(page.locator("#pictures")).to_have_attribute("aria-busy", "false")
        assert page.locator("body").evaluate("body => body.scrollWidth") <= 400
        boxes = [page.locator(each).bounding_box() for each in ("#left", "#right", "#same")]
        assert all(box["y"] + box["height"] <= 800 and box["height"] >= 44 for box in boxes)
        page.locator(tapped).tap()
    question(page, 2, False)
    (answer,) = server.answers.every()
    assert answer.quality != answer.agreement and "same" not in (answer.quality, answer.agreement)


def test_a_key_that_is_held_is_one_answer(server, visit):
    page = visit(server.url)
    page.get_by_role("button", name="Start").click()
    question(page, 1, False)
    for _ in range(6):
        page.keyboard.down("ArrowLeft")  # the second and later ones are repeats
        page.wait_for_timeout(100)
    question(page, 1, True)


def test_prompts_are_text(server, visit):
    page = visit(server.url)
    page.get_by_role("button", name="Start").click()
    texts = set()
    for number in range(1, 11):
        if number == 7:
            page.get_by_role("button", name="4 more").click()
        expect(page.locator("#count")).to_contain_text(f"{number} of")
        for agreement in (False, True):
            expect(page.locator("#what")).to_contain_text("fits this text" if agreement else "of better quality")
            expect(page.locator("#pictures")).to_have_attribute("aria-busy", "false")
            texts |= {page.locator("#text").text_content()} if agreement else set()
            page.keyboard.press("ArrowLeft")
    assert texts == set(PROMPTS)
    assert page.title() == "Which picture is better?" and page.locator("script").count() == 2


def test_what_cannot_be_sent_is_sent_later(server, visit):
    page = visit(server.url)
    page.get_by_role("button", name="Start").click()
    page.route("**/answers", lambda route: route.abort())
    for number in range(1, 7):
        press(page, number, "ArrowLeft", "ArrowLeft")
    expect(page.get_by_text("6 of your answers could not be sent.")).to_be_visible()
    page.unroute("**/answers")
    server.limit = Limit(rate=4.0, burst=3)  # the page waits, and tries again
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("All your answers have been sent.")).to_be_visible()
    assert server.answers.count() == 6


def test_without_a_server_the_answers_become_a_file(server, visit, tmp_path):
    folder = server.answers.path.parents[1]
    page = visit((folder / "study" / "page" / "index.html").as_uri())
    page.get_by_role("button", name="Start").click()
    for number in range(1, 7):
        press(page, number, "ArrowLeft", "ArrowDown")
    with page.expect_download() as download:
        page.get_by_text("Save my answers as a file").click()
    download.value.save_as(tmp_path / "answers.json")
    assert len(json.loads((tmp_path / "answers.json").read_text())["answers"]) == 6
    assert main(["study", str(folder), "--add", str(tmp_path / "answers.json")]) == 0
    assert [each.agreement for each in server.answers.every()] == ["same"] * 6


def test_a_picture_that_does_not_load_can_be_had_again(server, visit):
    page = visit(server.url)
    page.route("**/pictures/*", lambda route: route.abort())
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("A picture could not be loaded.")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.unroute("**/pictures/*")
    page.get_by_role("button", name="Try again").click()
    question(page, 1, False)
    assert server.answers.every() == []


@pytest.mark.skipif("SGOOL_WEBUI_SCREENSHOTS" not in os.environ, reason="SGOOL_WEBUI_SCREENSHOTS names no folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(400, 800), (1400, 900)])
def test_what_it_looks_like(server, visit, scheme, width, height):
    page = visit(server.url, viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 500)
    name = f"study-{scheme}-{width}"
    shoot(page, f"{name}-start")
    page.get_by_role("button", name="Start").click()
    question(page, 1, False)
    shoot(page, f"{name}-quality")
    page.keyboard.press("ArrowLeft")
    shoot(page, f"{name}-chosen")
    question(page, 1, True)
    shoot(page, f"{name}-agreement")
    page.keyboard.press("ArrowLeft")
    page.route("**/answers", lambda route: route.abort())
    for number in range(2, 7):
        press(page, number, "ArrowLeft", "ArrowLeft")
    expect(page.locator("#unsent")).to_be_visible()
    shoot(page, f"{name}-end")
