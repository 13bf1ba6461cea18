"""Facts of a training run's report in a browser: it asks nobody, and everybody can read it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser.driver import Visit
from tests.browser.test_accessibility import violations
from tests.training.made_up_run import HOSTILE, made_up_report
from training.report import REPORT_FILE

WIDTHS = (320, 375, 700, 1024, 1440)


@asynccontextmanager
async def reading(browser: Browser, folder: Path, **options: Any) -> AsyncIterator[Visit]:
    """Open the report of a made-up run from the disk; it may neither complain nor ask anybody."""
    made_up_report(folder).write("running")
    context = await browser.new_context(**options)
    visit = Visit(await context.new_page(), "file://")
    visit.watch(visit.page)
    await visit.page.goto((folder / REPORT_FILE).as_uri())
    try:
        yield visit
    finally:
        await context.close()
    assert [] == visit.complaints
    assert [] == visit.foreign
    assert 1 == len(visit.asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_report_breaks_no_rule(browser: Browser, tmp_path: Path, scheme: str) -> None:
    """Closed and with all details open, in either colours, it is accessible."""
    async with reading(browser, tmp_path, color_scheme=scheme) as visit:
        assert [] == await violations(visit)
        for summary in await visit.page.locator("summary").all():
            await summary.click()
        assert [] == await violations(visit)


async def test_the_slider_goes_through_the_steps(browser: Browser, tmp_path: Path) -> None:
    """It shows the last sheet first, and by keyboard each earlier one, with its step."""
    async with reading(browser, tmp_path) as visit:
        slider = visit["generator-step"]
        shown = visit.page.locator(".sheets img:visible")
        await expect(shown).to_have_attribute("alt", "One column for each class, step 300")
        await slider.press("ArrowLeft")
        await expect(shown).to_have_attribute("alt", "One column for each class, step 200")
        await expect(slider).to_have_attribute("aria-valuetext", "step 200")
        await expect(visit.page.locator(".sheets output")).to_have_text("step 200")
        loaded = "images => images.every(image => image.naturalWidth === 80)"
        assert await visit.page.locator(".sheets img").evaluate_all(loaded)


async def test_without_scripts_all_sheets_are_there(browser: Browser, tmp_path: Path) -> None:
    """Where scripts are off, sheets stand one below the other, each with its step."""
    async with reading(browser, tmp_path, java_script_enabled=False) as visit:
        await expect(visit.page.locator(".sheets img:visible")).to_have_count(4)
        await expect(visit.page.get_by_text("step 200", exact=True)).to_be_visible()
        await expect(visit["generator-step"]).to_be_hidden()


async def test_a_hostile_name_is_read_and_not_run(browser: Browser, tmp_path: Path) -> None:
    """A class called like a script is in the list of classes, and no dialog opens."""
    dialogs = list[str]()
    async with reading(browser, tmp_path) as visit:
        visit.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        await visit.page.get_by_text("2 classes", exact=True).click()
        await expect(visit.page.locator("details pre").first).to_contain_text(HOSTILE)
        await visit.page.reload()
        visit.asked.pop()
    assert [] == dialogs


async def test_no_screen_is_too_narrow(browser: Browser, tmp_path: Path) -> None:
    """From 320 pixels up the page scrolls one way."""
    async with reading(browser, tmp_path) as visit:
        for width in WIDTHS:
            await visit.page.set_viewport_size({"width": width, "height": 700})
            assert width == await visit.page.evaluate("document.documentElement.scrollWidth")
