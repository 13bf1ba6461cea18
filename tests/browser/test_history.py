"""Facts of the history and of links: what was drawn comes back with its settings."""

import json

from playwright.async_api import Browser, Locator, expect

from tests.browser.driver import PIXELS, Visit, visiting
from tests.service.harness import listening


def entries(visit: Visit) -> Locator:
    """The small pictures."""
    return visit.page.locator("#history button")


async def test_an_image_comes_back_with_its_settings(browser: Browser) -> None:
    """An entry survives a reload, restores its settings, and generating draws its image again."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["seed"].fill("5")
        await visit["guidance_scale"].fill("3.5")
        await visit["unmask_schedule"].fill("1 1 14")
        await visit["num_images"].fill("2")
        await visit.generate(2)
        before = await visit.images.nth(1).evaluate(PIXELS)
        await visit["restore-all"].click()
        await visit["seed-keep"].click()
        await visit.generate()
        await expect(entries(visit)).to_have_count(3)
        await visit.page.goto(visit.origin)
        await visit.ready()
        await expect(entries(visit)).to_have_count(3)
        entry = visit.page.get_by_label("seed 6, guidance 3.5, temperature 2")
        await entry.click()
        await expect(visit["status"]).to_contain_text("Settings restored")
        await expect(visit.page.get_by_alt_text("small picture")).to_be_visible()
        values = {
            name: await visit.value(name) for name in ("seed", "guidance_scale", "unmask_schedule")
        }
        assert {"seed": "6", "guidance_scale": "3.5", "unmask_schedule": "1, 1, 14"} == values
        await expect(visit["seed-keep"]).to_have_attribute("aria-pressed", "true")
        await visit.generate()
        assert before == await visit.images.first.evaluate(PIXELS)


async def test_the_history_is_cleared_in_two_steps(browser: Browser) -> None:
    """The first press asks, leaving the button takes it back, the second clears for good."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.generate()
        await expect(entries(visit)).to_have_count(1)
        clear = visit["history-clear"]
        await clear.click()
        await expect(clear).to_have_text("Really clear?")
        await visit["seed"].focus()
        await expect(clear).to_have_text("Clear")
        await clear.click()
        await clear.click()
        await expect(entries(visit)).to_have_count(0)
        await expect(visit["history-empty"]).to_be_visible()
        await visit.page.reload()
        await visit.ready()
        await expect(entries(visit)).to_have_count(0)


async def test_a_history_that_somebody_spoilt_is_passed_over(browser: Browser) -> None:
    """Whatever stands in the storage, the page works, and keeps the entries that are right."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.generate()
        await expect(entries(visit)).to_have_count(1)
        spoil = """(text) => localStorage.setItem("bar-serve.history", text)"""
        (good,) = json.loads(await visit.page.evaluate("localStorage.getItem('bar-serve.history')"))
        foreign = {**good, "thumbnail": "https://example.org/x.png"}
        for text, count in [
            ("{", 0),
            ("7", 0),
            (json.dumps([None, 3, {}, {"settings": {}}, foreign, good]), 1),
        ]:
            await visit.page.evaluate(spoil, text)
            await visit.page.reload()
            await visit.ready()
            await expect(entries(visit)).to_have_count(count)
        await visit.generate()
        await expect(entries(visit)).to_have_count(2)


async def test_a_full_storage_forgets_the_oldest(browser: Browser) -> None:
    """Where there is no room, older entries go; the run itself is not disturbed."""
    fill = """() => {
      const setItem = Storage.prototype.setItem;
      Storage.prototype.setItem = function (name, text) {
        const isTooLong = name.endsWith("history") && JSON.parse(text).length > 2;
        if (isTooLong) throw new DOMException("full", "QuotaExceededError");
        setItem.call(this, name, text);
      };
    }"""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.page.evaluate(fill)
        await visit["num_images"].fill("3")
        await visit["seed"].fill("1")
        await visit.generate(3)
        await expect(visit["status"]).to_contain_text("3 images")
        await expect(entries(visit)).to_have_count(1)
        name = "seven, seed 1, guidance 2, temperature 2, raster order, rounds 4 4 4 4, digits"
        await expect(entries(visit).first).to_have_accessible_name(name)


async def test_storage_that_is_forbidden_is_done_without(browser: Browser) -> None:
    """With storage blocked everything works but what would have been kept."""
    forbid = """for (const name of ["localStorage", "sessionStorage"]) {
      const refuse = () => { throw new DOMException("no", "SecurityError"); };
      Object.defineProperty(window, name, { get: refuse });
    }"""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.page.add_init_script(forbid)
        await visit.page.reload()
        await visit.ready()
        await visit["theme"].click()
        await visit.generate()
        await expect(visit["history-empty"]).to_be_visible()


async def test_a_link_opens_with_the_same_settings(browser: Browser) -> None:
    """The address after a run is a link; opened elsewhere, it draws the same image."""
    async with listening() as h:
        url = str(h.client.base_url)
        async with visiting(browser, url) as visit:
            await visit["class_id"].fill("three")
            await visit.page.get_by_role("option", name="three").click()
            await visit["temperature"].fill("4.5")
            await visit.page.get_by_role("radio", name="Random").check()
            await visit.generate()
            before = await visit.images.first.evaluate(PIXELS)
            await visit["tab-link"].click()
            link = await visit["snippet"].inner_text()
            assert link == visit.page.url
        async with visiting(browser, url, path=link.removeprefix(visit.origin)) as visit:
            await expect(visit["class_id"]).to_have_value("three")
            await visit.generate()
            assert before == await visit.images.first.evaluate(PIXELS)


async def test_an_image_of_a_model_that_is_gone_says_so(browser: Browser) -> None:
    """An entry of a model that is not served any more changes nothing, and says why."""
    forge = """() => {
      const [entry] = JSON.parse(localStorage.getItem("bar-serve.history"));
      entry.settings.model = "bar-x";
      localStorage.setItem("bar-serve.history", JSON.stringify([entry]));
    }"""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.generate()
        await expect(entries(visit)).to_have_count(1)
        await visit.page.evaluate(forge)
        await visit.page.reload()
        await visit.ready()
        await entries(visit).first.click()
        await expect(visit["failure"]).to_contain_text("The model bar-x is not served here.")
        assert "digits" == await visit.value("model")


async def test_a_link_to_a_model_that_is_not_here_takes_the_default(browser: Browser) -> None:
    """A model that is not served gives way to the first that is."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), path="/#model=bar-x&class_id=2") as visit,
    ):
        assert "digits" == await visit.value("model")
        assert "two" == await visit.value("class_id")
