"""Facts of reading the page otherwise: axe's rules, what is said, small screens, less motion."""

from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

from tests.browser.driver import PIXELS, Visit, visiting
from tests.service.fakes import FakeEngine
from tests.service.harness import listening

WIDTHS = (320, 375, 700, 900, 1024, 1440)
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


async def violations(visit: Visit) -> list[tuple[str, Any]]:
    """Name the rules that the page breaks as it stands, and where."""
    found = await Axe().run(visit.page, options={**RULES, "resultTypes": ["violations"]})
    return [
        (violation["id"], [node["target"] for node in violation["nodes"]])
        for violation in found.response["violations"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_breaks_no_rule(browser: Browser, scheme: str) -> None:
    """Neither empty, nor with images, a failure, a sweep, an open list or an open dialog."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), color_scheme=scheme) as visit,
    ):
        assert [] == await violations(visit)
        await visit["num_images"].fill("2")
        await visit.generate(2)
        assert [] == await violations(visit)
        await visit["temperature"].fill("99")
        assert [] == await violations(visit)
        await visit["restore-all"].click()
        await visit["class_id"].click()
        await expect(visit["class-list"]).to_be_visible()
        assert [] == await violations(visit)
        await visit.page.keyboard.press("Escape")
        await visit["key-open"].click()
        assert [] == await violations(visit)
        await visit.page.keyboard.press("Escape")
        await visit["help-open"].click()
        assert [] == await violations(visit)
        await visit.page.keyboard.press("Escape")
        await visit["tab-sweep"].click()
        await visit["columns-values"].fill("1, 2")
        await visit["rows-values"].fill("1, 2")
        await visit["run"].click()
        await expect(visit.page.locator(".cell img")).to_have_count(4)
        assert [] == await violations(visit)


async def test_the_documentation_breaks_no_rule(browser: Browser) -> None:
    """With all routes listed, and one being tried."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), path="/docs", is_ready=False) as visit,
    ):
        await expect(visit["post-v1-generations"]).to_be_visible()
        assert [] == await violations(visit)
        await visit["post-v1-generations"].get_by_text("Try it").click()
        assert [] == await violations(visit)


async def test_a_failure_breaks_no_rule(browser: Browser) -> None:
    """A failure is an alert, readable in its colours."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), refusals=[502]) as visit,
    ):
        await visit.page.route("**/v1/generations", lambda route: route.fulfill(status=502))
        await visit["run"].click()
        await expect(visit.page.get_by_role("alert").filter(has_text="502")).to_be_visible()
        assert [] == await violations(visit)


async def test_turning_points_are_announced_and_steps_are_not(browser: Browser) -> None:
    """A live region says begin, quarters and end of a run: a few sentences, however many steps."""
    record = """() => {
      window.said = [];
      const node = document.querySelector("#announcer");
      const watch = new MutationObserver(() => window.said.push(node.textContent));
      watch.observe(node, { childList: true });
    }"""
    engine = FakeEngine(step_s=0.03)
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        await expect(visit["announcer"]).to_have_attribute("role", "status")
        await visit.page.evaluate(record)
        await visit.generate()
        await expect(visit["announcer"]).to_contain_text("An image of seven")
        said = await visit.page.evaluate("window.said")
    assert len(said) == len(set(said))
    assert len(said) <= 8
    assert any(text.startswith("Drawing, ") for text in said)


async def test_images_say_what_they_are(browser: Browser) -> None:
    """An image has its class and seed as its text, a preview how far it is."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["seed"].fill("3")
        await visit.generate()
        await expect(visit.images.first).to_have_attribute("alt", "seven, seed 3")


async def test_nothing_is_wider_than_the_screen(browser: Browser) -> None:
    """From 320 pixels up the page scrolls one way; wide things scroll in themselves."""
    width_of_page = "document.documentElement.scrollWidth"
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["num_images"].fill("3")
        await visit.generate(3)
        await visit["tab-sweep"].click()
        await visit["columns-values"].fill("1 2 3 4 5 6 7 8")
        await visit["rows-values"].fill("1")
        await visit["run"].click()
        await expect(visit.page.locator(".cell img")).to_have_count(8)
        for width in WIDTHS:
            await visit.page.set_viewport_size({"width": width, "height": 700})
            for tab in ("tab-sweep", "tab-images"):
                await visit[tab].click()
                assert width == await visit.page.evaluate(width_of_page), tab
        await visit.page.goto(f"{visit.origin}/docs")
        await expect(visit["post-v1-generations"]).to_be_visible()
        for width in WIDTHS:
            await visit.page.set_viewport_size({"width": width, "height": 700})
            assert width == await visit.page.evaluate(width_of_page), width


async def test_on_a_small_screen_the_images_come_into_view(browser: Browser) -> None:
    """The button stays at hand, and pressing it leads to what it draws."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), viewport={"width": 375, "height": 600}) as visit,
    ):
        await expect(visit["run"]).to_be_in_viewport()
        await visit.generate()
        await expect(visit["status"]).to_be_in_viewport()


async def test_less_motion_is_no_motion(browser: Browser) -> None:
    """Whoever asks for less motion gets no transition at all."""
    moving = """() => [...document.querySelectorAll("*")].filter((node) => {
      const style = getComputedStyle(node);
      return style.transitionDuration !== "0s" || style.animationName !== "none";
    }).length"""
    async with listening() as h:
        url = str(h.client.base_url)
        async with visiting(browser, url, reduced_motion="reduce") as visit:
            await visit.generate()
            assert 0 == await visit.page.evaluate(moving)
        async with visiting(browser, url, reduced_motion="no-preference") as visit:
            assert await visit.page.evaluate(moving)


async def test_light_and_dark_follow_the_system_until_told(browser: Browser) -> None:
    """The button goes from the system's choice to light to dark, and the page remembers."""
    paper = "() => getComputedStyle(document.documentElement).backgroundColor"
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), color_scheme="dark") as visit,
    ):
        dark = await visit.page.evaluate(paper)
        await expect(visit["theme"]).to_have_attribute(
            "aria-label", "Theme: system. Switch to light"
        )
        await visit["theme"].click()
        light = await visit.page.evaluate(paper)
        assert dark != light
        await visit.page.goto(f"{visit.origin}/docs")
        assert light == await visit.page.evaluate(paper)
        await visit["theme"].click()
        assert dark == await visit.page.evaluate(paper)


async def test_colours_of_images_are_left_alone(browser: Browser) -> None:
    """Forced colours change the page and not what was drawn."""
    async with listening() as h:
        url = str(h.client.base_url)
        pixels = []
        for forced in ("none", "active"):
            async with visiting(browser, url, forced_colors=forced) as visit:
                await visit["seed"].fill("8")
                await visit.generate()
                pixels.append(await visit.images.first.evaluate(PIXELS))
    assert pixels[0] == pixels[1]
