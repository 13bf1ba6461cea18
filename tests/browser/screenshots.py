"""Pictures of the pages, to be looked at: `python -m tests.browser.screenshots FOLDER`.

Draws with the bundled model, so that the same seed gives the same picture. `playground.png` is the
one in the README; copy it to docs/images when the page has changed.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import async_playwright, expect

from tests.browser.driver import CHROMIUM, FLAGS, Visit, visiting
from tests.browser.servers import serving_digits

HISTORY = ("three", "zero", "five", "two", "nine", "four", "eight", "six")


async def images(visit: Visit) -> None:
    """Draw some of each class, and six sevens."""
    for i, name in enumerate(HISTORY):
        await visit["seed"].fill(str(i + 1))
        await choose(visit, name)
        await visit.generate()
    await visit["num_images"].fill("6")
    await visit["seed"].fill("2026")
    await choose(visit, "seven")
    await visit.generate(6)


async def sweep(visit: Visit) -> None:
    """Draw guidance × temperature."""
    await visit["seed"].fill("12")
    await visit["tab-sweep"].click()
    await visit["columns-values"].fill("1, 1.5, 2, 3, 5, 8")
    await visit["rows-values"].fill("0.5, 1, 2, 3, 4")
    await visit["run"].click()
    await expect(visit.page.locator("#sweep-grid .cell img")).to_have_count(30, timeout=120_000)


async def routes(visit: Visit) -> None:
    """Try a route of the documentation."""
    await visit.page.goto(f"{visit.origin}/docs#post-v1-generations")
    await expect(visit["post-v1-generations"]).to_be_visible()
    await visit["post-v1-generations"].scroll_into_view_if_needed()


async def choose(visit: Visit, name: str) -> None:
    """Choose a class."""
    await visit["class_id"].fill(name)
    await visit.page.get_by_role("option", name=name).first.click()
    await expect(visit["class_id"]).to_have_value(name)


@dataclass(frozen=True)
class Shot:
    """A picture: what is done, on which screen, in which colours."""

    name: str
    perform: Callable[[Visit], Awaitable[None]]
    width: int = 1360
    height: int = 850
    scheme: str = "light"


SHOTS = (
    Shot("playground", images),
    Shot("playground-dark", images, scheme="dark"),
    Shot("playground-narrow", images, 320, 640),
    Shot("playground-phone", images, 390, 844, "dark"),
    Shot("playground-tablet", images, 1024, 768),
    Shot("sweep", sweep),
    Shot("sweep-phone", sweep, 390, 844),
    Shot("docs", routes),
    Shot("docs-dark", routes, 390, 844, "dark"),
)


async def take(folder: Path) -> None:
    """Take all pictures."""
    with serving_digits() as url:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for shot in SHOTS:
                async with visiting(
                    browser,
                    url,
                    viewport={"width": shot.width, "height": shot.height},
                    color_scheme=shot.scheme,
                    device_scale_factor=1.5,
                ) as visit:
                    await shot.perform(visit)
                    await visit.page.mouse.move(0, 0)
                    await visit.page.evaluate("document.activeElement.blur()")
                    await visit.page.wait_for_timeout(500)  # scrolling comes to rest
                    await visit.page.screenshot(path=folder / f"{shot.name}.png")
            await browser.close()


if __name__ == "__main__":
    _, target = sys.argv
    Path(target).mkdir(parents=True, exist_ok=True)
    asyncio.run(take(Path(target)))
