"""Facts of drawing images in the browser: what is shown while they come, and afterwards."""

import asyncio
import hashlib
import io

import httpx
from PIL import Image
from playwright.async_api import Browser, expect

from tests.browser.driver import PIXELS, Visit, body_of, visiting
from tests.service.fakes import FakeEngine
from tests.service.harness import listening

# Keeps what the status says, and how many previews stand there, whenever anything changes.
RECORD = """() => {
  window.seen = { texts: [], progress: [], previews: 0 };
  new MutationObserver(() => {
    const text = document.querySelector("#status").textContent;
    if (window.seen.texts.at(-1) !== text) {
      window.seen.texts.push(text);
      window.seen.progress.push(document.querySelector("#progress").value);
    }
    const previews = document.querySelectorAll('#tiles img[alt$="drawn"]').length;
    window.seen.previews = Math.max(window.seen.previews, previews);
  }).observe(document.querySelector("#stage"), { subtree: true, childList: true });
}"""


async def choose(visit: Visit, name: str) -> None:
    """Choose a class by its name."""
    await visit["class_id"].fill(name)
    await visit.page.get_by_role("option", name=name).first.click()


async def test_the_image_is_the_one_that_the_interface_gives(digits: str, browser: Browser) -> None:
    """What is shown and downloaded is, byte for byte, what the same settings give elsewhere."""
    async with visiting(browser, digits) as visit:
        await choose(visit, "four")
        await visit["seed"].fill("11")
        await visit.generate()
        async with visit.page.expect_download() as download:
            await visit.page.get_by_label("Download seed 11").click()
        saved = (await (await download.value).path()).read_bytes()
        assert "digits-4-11.png" == (await download.value).suggested_filename
        shown = await visit.images.first.evaluate(PIXELS)
    async with httpx.AsyncClient(base_url=digits, timeout=60) as client:
        reply = await client.post(
            "/v1/generations", json={"class_id": 4, "seed": 11}, headers={"accept": "image/png"}
        )
    assert hashlib.sha256(saved).digest() == hashlib.sha256(reply.content).digest()
    with Image.open(io.BytesIO(reply.content)) as image:
        assert list(image.convert("RGBA").tobytes()) == shown


async def test_the_page_says_what_it_shows(digits: str, browser: Browser) -> None:
    """Model, revision, precision and determinism, the seed, and where the time went."""
    async with httpx.AsyncClient(base_url=digits, timeout=60) as client:
        card = (await client.get("/v1/models")).json()["data"][0]
    async with visiting(browser, digits) as visit:
        await visit.generate()
        facts = await visit["model-facts"].inner_text()
        assert card["revision"] in facts
        assert card["numerics"]["precision"] in facts
        assert card["numerics"]["determinism"] in facts
        assert (
            await visit.value("seed") in await visit.page.locator("#tiles figcaption").inner_text()
        )
        answer = await visit["result-facts"].inner_text()
        assert "gen_" in answer
        assert "Decoding" in answer
        await expect(visit["status"]).to_contain_text("An image of seven in")


async def test_small_images_grow_pixel_by_pixel(digits: str, browser: Browser) -> None:
    """An image of 64 pixels is shown larger, and not smoothed."""
    async with visiting(browser, digits) as visit:
        await visit.generate()
        image = visit.images.first
        assert "pixelated" == await image.evaluate("node => getComputedStyle(node).imageRendering")
        width = await image.evaluate("node => [node.naturalWidth, node.clientWidth]")
        assert width[0] == 64
        assert width[1] >= 256


async def test_progress_and_previews_come_before_the_image(browser: Browser) -> None:
    """Progress only grows and is exact, time left is told, previews stand before images."""
    async with (
        listening(FakeEngine(step_s=0.06)) as h,
        visiting(browser, str(h.client.base_url)) as visit,
    ):
        await visit.page.evaluate(RECORD)
        await visit["num_images"].fill("2")
        await visit.generate(2)
        seen = await visit.page.evaluate("window.seen")
    drawing = [text for text in seen["texts"] if text.startswith("Drawing")]
    assert any(text.endswith("left") for text in drawing)
    shares = [share for share in seen["progress"] if share]
    assert shares == sorted(shares)
    assert len(shares) >= 3
    assert all((share * 16).is_integer() for share in shares)
    assert 2 == seen["previews"]


async def test_several_images_have_consecutive_seeds(browser: Browser) -> None:
    """Each image has its own seed beneath it; choosing one sets its settings, alone."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["seed"].fill("4294967295")
        await visit["num_images"].fill("3")
        await visit.generate(3)
        captions = visit.page.locator("#tiles figcaption .seed")
        seeds = [text.removeprefix("Keep seed ") for text in await captions.all_text_contents()]
        assert ["4294967295", "0", "1"] == seeds
        await captions.nth(2).click()
        assert ("1", "1") == (await visit.value("seed"), await visit.value("num_images"))
        before = await visit.images.nth(2).evaluate(PIXELS)
        await visit.generate(1)
        assert before == await visit.images.first.evaluate(PIXELS)


async def test_a_seed_is_used_once_unless_it_is_kept(browser: Browser) -> None:
    """The seed that stands there is used; the next run draws another, but for a kept one."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        first = await visit.value("seed")
        await visit.generate()
        assert first == await visit.value("seed")
        await visit["run"].click()
        await expect(visit["seed"]).not_to_have_value(first)
        await visit["seed-random"].click()
        drawn = await visit.value("seed")
        await visit.generate()
        assert drawn == await visit.value("seed")
        await visit["seed-keep"].click()
        await visit.generate()
        assert drawn == await visit.value("seed")


async def test_settings_reach_the_server(browser: Browser) -> None:
    """Guidance by slider, temperature, order, rounds and count are those of the job."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit.page.get_by_label("Guidance, slider").fill("7.5")
        assert "7.5" == await visit.value("guidance_scale")
        await visit["temperature"].fill("0")
        await visit.page.get_by_role("radio", name="Random").check()
        await visit.page.get_by_label("2 even rounds").click()
        async with visit.page.expect_request("**/v1/generations") as asked:
            await visit.generate()
        body = body_of(await asked.value)
        assert (7.5, 0, "random", [8, 8]) == tuple(
            body[name] for name in ("guidance_scale", "temperature", "order", "unmask_schedule")
        )
        await visit["restore-all"].click()
        assert ["2", "2"] == [await visit.value("guidance_scale"), await visit.value("temperature")]
        assert "4, 4, 4, 4" == await visit.value("unmask_schedule")


async def test_the_place_in_the_queue_is_told(browser: Browser) -> None:
    """While others are drawn, the page says which place in line it has."""
    engine = FakeEngine(num_slots=1)
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.gate.clear()
        ahead = [asyncio.create_task(h.generate(class_id=i)) for i in range(2)]
        await h.until(lambda stats: stats.jobs_running + stats.jobs_waiting == 2)
        await visit["run"].click()
        await expect(visit["status"]).to_contain_text("Queued, 2nd in line")
        engine.gate.set()
        await asyncio.gather(*ahead)
        await expect(visit.images).to_have_count(1)


async def test_cancelling_frees_the_slots(browser: Browser) -> None:
    """Escape ends the run at once, on the server too; the next run is not disturbed."""
    engine = FakeEngine()
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.gate.clear()
        await visit["run"].click()
        await h.until(lambda stats: stats.jobs_running == 1)
        await expect(visit["cancel"]).to_be_focused()
        await visit.page.keyboard.press("Escape")
        await expect(visit["status"]).to_have_text("Cancelled.")
        await expect(visit["run"]).to_be_focused()
        await h.until(lambda stats: stats.jobs_running + stats.jobs_waiting == 0)
        engine.gate.set()
        await visit.generate()
        assert "" == await visit["failure"].inner_text()


async def test_a_page_that_is_left_cancels_its_run(browser: Browser) -> None:
    """Closing the tab frees the slots."""
    engine = FakeEngine()
    async with listening(engine) as h:
        async with visiting(browser, str(h.client.base_url)) as visit:
            engine.gate.clear()
            await visit["run"].click()
            await h.until(lambda stats: stats.jobs_running == 1)
        await h.until(lambda stats: stats.jobs_running == 0)


async def test_a_model_that_loads_is_waited_for(browser: Browser) -> None:
    """Before a worker is ready the page says so, and shows its numerics when it is."""
    async with listening() as h:
        loaded = (await h.client.get("/v1/models")).json()
        loading = {**loaded, "data": [{**loaded["data"][0], "numerics": None}]}
        answers = iter([loading])
        async with visiting(browser, str(h.client.base_url), is_ready=False) as visit:
            page = visit.page
            await page.route(
                "**/v1/models", lambda route: route.fulfill(json=next(answers, loaded))
            )
            await page.reload()
            await expect(visit["model-facts"]).to_contain_text("loading")
            await expect(visit["model-facts"]).to_contain_text("float32")
