"""In a browser: whether SGOOL samples as the user does, the uploaded picture as it is, and the final image."""

from __future__ import annotations

import re

from test_browser import (
    VIEW,
    browser,  # noqa: F401  a fixture
    choose,
    expect,
    fold,
    generate,
    number,
    open_page,  # noqa: F401  a fixture
    prepare,
    shoot,
    wait_for_the_view,
)

from sgool import cost
from sgool.settings import Settings

LINE = "#sgool_txt2img [data-sgool]"


def test_the_line_and_the_view_say_that_sgool_samples_as_the_user_does(open_page):  # noqa: F811
    page = open_page()
    prepare(page, iterations=2)
    expect(page.locator(LINE)).not_to_contain_text("sampled with")
    choose(page, "txt2img_sampling", "LCM")
    expect(page.locator(LINE)).to_contain_text("sampled with your own LCM")
    words = cost.in_words(cost.images(Settings(iterations=2, steps=4), 5, "LCM"))
    expect(page.locator(f"{LINE} .sgool-cost")).to_have_text(words)
    shoot(page, "follow-accordion")
    generate(page)
    wait_for_the_view(page)
    expect(page.locator(f"{VIEW} .sgool-facts")).to_contain_text("sampled with your own LCM, 5 steps")
    expect(page.locator(f"{VIEW} .sgool-scores")).not_to_contain_text("sampled again")
    shoot(page, "follow-view")
    number(page, "txt2img_steps", 13)
    expect(page.locator(LINE)).not_to_contain_text("sampled with")


def test_the_final_image_by_the_users_sampler(open_page):  # noqa: F811
    page = open_page()
    prepare(page, iterations=3)
    fold(page, "more", "expert")
    choose(page, "sgool_txt2img_sampler", "bdia")
    number(page, "sgool_txt2img_strength", 1)
    page.locator("#sgool_txt2img_render input[value=yours]").check()
    shoot(page, "render-more", "#sgool_txt2img_sampling")
    words = cost.in_words(cost.images(Settings(iterations=3, steps=4, sampler="bdia", strength=1, render="yours"), 5))
    expect(page.locator(f"{LINE} .sgool-cost")).to_have_text(words)
    generate(page)
    wait_for_the_view(page)
    expect(page.locator(f"{VIEW} .sgool-scores")).to_contain_text(
        re.compile(r"by your sampler \d\.\d{3}|sampled again")
    )
    shoot(page, "render-view")


def test_the_picture_as_it_is_belongs_to_img2img(open_page):  # noqa: F811
    page = open_page()
    fold(page)
    expect(page.locator("#sgool_txt2img_as_uploaded")).to_be_hidden()
    page.locator("#tabs .tab-nav button", has_text="img2img").first.click()
    page.locator("#sgool_img2img > .label-wrap").click()
    expect(page.locator("#sgool_img2img_as_uploaded")).to_be_visible()
    expect(page.locator("#sgool_img2img_start")).to_be_hidden()
    shoot(page, "as-uploaded", "#sgool_img2img")
