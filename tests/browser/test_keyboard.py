"""Facts of using the page without a mouse: order, focus, shortcuts, and how to turn them off."""

from typing import Any

from playwright.async_api import Browser, expect

from tests.browser.driver import Visit, body_of, visiting
from tests.service.fakes import FakeEngine
from tests.service.harness import listening

FOCUSED = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node.matches(".segments input") ? node.nextElementSibling : node);
  const box = node.getBoundingClientRect();
  return {
    name: node.id || node.getAttribute("aria-label") || node.textContent.trim().slice(0, 20),
    isMarked: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    isSeen: box.top >= 0 && box.bottom <= innerHeight + 1 && box.width > 0,
    isBody: node === document.body,
  };
}"""


async def press(visit: Visit, *keys: str) -> None:
    """Press keys, one after another."""
    for key in keys:
        await visit.page.keyboard.press(key)


async def test_a_whole_run_needs_no_mouse(browser: Browser) -> None:
    """Choose a class, set the count and the temperature, generate, keep the image."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await press(visit, "/")
        await expect(visit["class_id"]).to_be_focused()
        await visit.page.keyboard.type("nin")
        await press(visit, "Enter")
        await expect(visit["class_id"]).to_have_value("nine")
        await press(visit, "Tab", "Tab")
        await expect(visit["num_images"]).to_be_focused()
        await visit.page.keyboard.type("2")
        while not await visit["temperature"].evaluate("node => node === document.activeElement"):
            await press(visit, "Tab")
        await press(visit, "ArrowUp")
        assert "2.1" == await visit.value("temperature")
        async with visit.page.expect_request("**/v1/generations") as asked:
            await press(visit, "Enter")
        body = body_of(await asked.value)
        assert (9, 2, 2.1) == (body["class_id"], body["num_images"], body["temperature"])
        await expect(visit.images).to_have_count(2)
        download = visit.page.get_by_role("link", name="Download seed").first
        await download.focus()
        async with visit.page.expect_download():
            await press(visit, "Enter")


async def test_every_stop_is_seen_and_marked(browser: Browser) -> None:
    """Tab reaches everything in reading order; each stop is on screen, with a visible ring."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.generate()
        stops: list[dict[str, Any]] = []
        while True:  # once around; focus leaves the page between its end and its beginning
            await press(visit, "Tab")
            stop = await visit.page.evaluate(FOCUSED)
            if stop["name"] in {each["name"] for each in stops}:
                break
            stops += [] if stop["isBody"] else [stop]
        assert [] == [stop for stop in stops if not stop["isMarked"] or not stop["isSeen"]]
        names = [stop["name"] for stop in stops]
        first = names.index("Skip to the images")
        order = names[first:] + names[:first]
        wanted = ["Skip to the images", "API docs", "key-open", "class_id", "num_images", "seed",
                  "guidance_scale", "temperature", "unmask_schedule", "run", "tab-images",
                  "history-clear", "copy", "tab-curl", "snippet"]  # fmt: skip
        assert wanted == [name for name in order if name in wanted]
        assert (
            0 == await visit.page.locator("[tabindex]:not([tabindex='0'], [tabindex='-1'])").count()
        )


async def test_the_skip_link_leads_to_the_images(browser: Browser) -> None:
    """The first stop of the page jumps over the settings."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await press(visit, "Tab", "Enter")
        await expect(visit["stage"]).to_be_focused()
        await press(visit, "Tab")
        await expect(visit["tab-images"]).to_be_focused()


async def test_shortcuts_do_what_the_list_says(browser: Browser) -> None:
    """Each key of the list acts; the list opens with ?, and Escape closes it."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        before = await visit.value("seed")
        await press(visit, "s")
        assert before != await visit.value("seed")
        await press(visit, "k")
        await expect(visit["seed-keep"]).to_have_attribute("aria-pressed", "true")
        await press(visit, "w")
        await expect(visit["panel-sweep"]).to_be_visible()
        await expect(visit["run"]).to_contain_text("Run sweep")
        await press(visit, "i")
        await expect(visit["panel-images"]).to_be_visible()
        await press(visit, "?")
        await expect(visit["help-dialog"]).to_be_visible()
        listed = await visit.page.locator("#key-table th").all_inner_texts()
        assert {"/", "S", "K", "I", "W", "?", "Esc"} < set(listed)
        await press(visit, "Escape")
        await expect(visit["help-dialog"]).to_be_hidden()
        await press(visit, "Control+Enter")
        await expect(visit.images).to_have_count(1)


async def test_single_keys_rest_while_typing_and_can_be_turned_off(browser: Browser) -> None:
    """A letter in a field is a letter; turned off, no letter is a command, also after a reload."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["class_id"].focus()
        before = await visit.value("seed")
        await press(visit, "s")
        assert ("s", before) == (await visit.value("class_id"), await visit.value("seed"))
        await press(visit, "Escape")
        await visit["help-open"].click()
        await visit["single-keys"].uncheck()
        await press(visit, "Escape")
        await visit.page.reload()
        await visit.ready()
        before = await visit.value("seed")
        await press(visit, "s", "w", "?")
        assert before == await visit.value("seed")
        await expect(visit["panel-images"]).to_be_visible()
        await expect(visit["help-dialog"]).to_be_hidden()


async def test_escape_closes_what_is_open_before_it_cancels(browser: Browser) -> None:
    """A list or dialog takes Escape for itself; the next one cancels the run."""
    engine = FakeEngine()
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.gate.clear()
        await press(visit, "Control+Enter")
        await h.until(lambda stats: stats.jobs_running == 1)
        await visit["class_id"].click()
        await expect(visit["class-list"]).to_be_visible()
        await press(visit, "Escape")
        await expect(visit["class-list"]).to_be_hidden()
        await press(visit, "?")  # typed into the field, where it is no command
        await press(visit, "Escape")
        await visit["help-open"].click()
        await press(visit, "Escape")
        await expect(visit["help-dialog"]).to_be_hidden()
        assert 1 == (await h.queue.stats()).jobs_running
        await press(visit, "Escape")
        await expect(visit["status"]).to_have_text("Cancelled.")


async def test_tabs_are_one_stop_and_move_with_arrows(browser: Browser) -> None:
    """Arrows, Home and End choose among the forms of the code."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["tab-curl"].focus()
        await press(visit, "ArrowRight")
        await expect(visit["tab-python"]).to_be_focused()
        await expect(visit["snippet"]).to_contain_text("import httpx")
        await press(visit, "End")
        await expect(visit["snippet"]).to_contain_text("#model=digits")
        await press(visit, "ArrowRight")
        await expect(visit["tab-curl"]).to_be_focused()
        await press(visit, "Tab")
        await expect(visit["snippet"]).to_be_focused()
