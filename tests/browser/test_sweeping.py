"""Facts of sweeps: every cell the image that its settings give, a few at a time, cancellable."""

import asyncio
import io
from collections.abc import Sequence

from PIL import Image
from playwright.async_api import Browser, Locator, expect

from tests.browser.driver import PIXELS, Visit, visiting
from tests.service.fakes import FakeDecoding, FakeEngine
from tests.service.harness import listening


def cells(visit: Visit) -> Locator:
    """The places of the grid."""
    return visit.page.locator("#sweep-grid .cell")


def drawn(visit: Visit) -> Locator:
    """The images of the grid."""
    return visit.page.locator("#sweep-grid .cell img")


async def begin(visit: Visit, columns: str = "1, 2, 4", rows: str = "0, 2") -> None:
    """Start a sweep of guidance × temperature."""
    await visit["tab-sweep"].click()
    await visit["columns-values"].fill(columns)
    await visit["rows-values"].fill(rows)
    await visit["run"].click()


async def test_a_cell_is_the_image_of_its_settings(digits: str, browser: Browser) -> None:
    """Taking a cell's settings over and generating draws the cell's image again."""
    async with visiting(browser, digits) as visit:
        await begin(visit, "1, 3", "1, 2.5")
        await expect(drawn(visit)).to_have_count(4)
        heads = visit.page.locator("#sweep-grid th")
        assert ["1", "3", "1", "2.5"] == await heads.all_inner_texts()
        await expect(visit["status"]).to_contain_text("4 images of seven in")
        cell = visit.page.get_by_role("button", name="Guidance 3, Temperature 2.5")
        pixels = await cell.locator("img").evaluate(PIXELS)
        await cell.click()
        assert "3" == await visit.value("guidance_scale")
        assert "2.5" == await visit.value("temperature")
        await visit["tab-images"].click()
        await visit.generate()
        assert pixels == await visit.images.first.evaluate(PIXELS)


async def test_seeds_can_be_the_rows(browser: Browser) -> None:
    """Guidance × seed: four seeds from the one that stands there are suggested."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["seed"].fill("4294967294")
        await visit["tab-sweep"].click()
        await visit["rows-field"].select_option("seed")
        await expect(visit["rows-values"]).to_have_value("4294967294, 4294967295, 0, 1")
        await visit["columns-values"].fill("1, 5")
        await visit["run"].click()
        await expect(drawn(visit)).to_have_count(8)
        names = await cells(visit).evaluate_all("all => all.map((cell) => cell.ariaLabel)")
        assert any("Guidance 5, Seed 0" in name for name in names)


async def test_few_requests_are_under_way_at_once(browser: Browser) -> None:
    """Of twelve cells the server never has more than four."""
    engine = FakeEngine(num_slots=12, step_s=0.01)
    most = 0
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.gate.clear()
        await begin(visit, "1, 2, 3, 4", "1, 2, 3")
        await h.until(lambda stats: stats.num_accepted == 4)
        engine.gate.set()
        while await drawn(visit).count() < 12:
            stats = await h.queue.stats()
            most = max(most, stats.jobs_waiting + stats.jobs_running)
            await asyncio.sleep(0.005)
    assert 12 == visit.asked.count("POST /v1/generations")
    assert most <= 4


async def test_a_sweep_can_be_cancelled(browser: Browser) -> None:
    """Cancelling ends what runs and asks for nothing more; what is drawn stays."""

    class Halting(FakeEngine):
        is_warm = False

        def start_decode(self, slots: Sequence[int]) -> FakeDecoding:
            if self.is_warm:
                self.gate.clear()  # the first images come, and then none
            return super().start_decode(slots)

    engine = Halting(num_slots=4)
    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.is_warm = True
        await begin(visit, "1, 2, 3, 4", "1, 2, 3, 4, 5")
        await expect(drawn(visit).first).to_be_visible()
        await visit["cancel"].click()
        await expect(visit["status"]).to_have_text("Cancelled.")
        await h.until(lambda stats: stats.jobs_running + stats.jobs_waiting == 0)
        asked = visit.asked.count("POST /v1/generations")
        count = await drawn(visit).count()
        assert 1 <= count < asked < 20
        await expect(visit.page.locator("#sweep-grid .stopped")).to_have_count(20 - count)
        await expect(visit["run"]).to_be_focused()


async def test_a_busy_server_is_waited_for(browser: Browser) -> None:
    """Cells that are refused because the queue is full are asked for again, as long as it says."""
    engine = FakeEngine(num_slots=1)
    settings = {"max_images": 1, "max_queued_steps": 16}
    async with (
        listening(engine, **settings) as h,
        visiting(browser, str(h.client.base_url), refusals=[429]) as visit,
    ):
        engine.gate.clear()
        async with visit.page.expect_response(lambda reply: reply.status == 429):
            await begin(visit, "1, 2, 3", "1")
        engine.gate.set()
        await expect(drawn(visit)).to_have_count(3)
        assert visit.asked.count("POST /v1/generations") > 3
        await expect(visit["status"]).to_contain_text("3 images")


async def test_what_would_fail_everywhere_stops_the_sweep(browser: Browser) -> None:
    """A refusal that concerns all cells ends the sweep and is said once."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), refusals=[400]) as visit,
    ):
        refusal = {"error": {"message": "no, never", "param": None, "code": "x"}}
        await visit.page.route(
            "**/v1/generations", lambda route: route.fulfill(status=400, json=refusal)
        )
        await begin(visit, "1, 2, 3, 4, 5, 6", "1, 2, 3")
        await expect(visit["failure"]).to_contain_text("No, never.")
        assert visit.asked.count("POST /v1/generations") <= 4
        await expect(visit["run"]).to_be_visible()


async def test_a_cell_that_fails_alone_says_so(browser: Browser) -> None:
    """The others are drawn; the status counts both."""
    engine = FakeEngine(num_slots=1)
    faults = iter([True])

    def fault() -> None:
        if next(faults, False):
            raise RuntimeError("a fault of the test")

    async with listening(engine) as h, visiting(browser, str(h.client.base_url)) as visit:
        engine.decode_fault = fault
        await begin(visit, "1, 2, 3", "1")
        await expect(visit["status"]).to_contain_text("2 images of seven")
        await expect(visit["status"]).to_contain_text("1 failed")
        await expect(visit.page.locator('#sweep-grid [title*="could not be made"]')).to_have_count(
            1
        )


async def test_wrong_axes_are_marked(browser: Browser) -> None:
    """Values out of bounds, twice, too many or none: the axis says what is wrong."""
    wrong = {
        "1, 31": "Guidance is a number from 1 to 30.",
        "2 2": "A value stands there twice.",
        "": "Give at least one value.",
        "1,2,3,4,5,6,7,8,9,10,11,12,13": "At most 12 values; there are 13.",
        "a": "Guidance is a number from 1 to 30.",
    }
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        for text, problem in wrong.items():
            await begin(visit, columns=text)
            await expect(visit["columns-problem"]).to_have_text(problem)
            await expect(visit["columns-values"]).to_be_focused()
        assert "POST /v1/generations" not in visit.asked


async def test_both_axes_never_have_the_same_field(browser: Browser) -> None:
    """Choosing for one axis what the other has moves the other on."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["tab-sweep"].click()
        await visit["columns-field"].select_option("temperature")
        assert "temperature" != await visit.value("rows-field")
        await visit["rows-field"].select_option("temperature")
        assert "temperature" != await visit.value("columns-field")


async def test_arrow_keys_walk_the_grid(browser: Browser) -> None:
    """One stop of the Tab key; arrows move between cells, and Enter takes one."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await begin(visit)
        await expect(drawn(visit)).to_have_count(6)
        await cells(visit).first.focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
            await visit.page.keyboard.press(key)
        assert "4" == await visit.value("guidance_scale")
        assert "2" == await visit.value("temperature")
        assert 1 == await visit.page.locator('#sweep-grid [tabindex="0"]').count()


async def test_the_grid_can_be_kept_as_one_picture(browser: Browser) -> None:
    """A PNG with all images, in whole multiples of their size, and room for the labels."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await begin(visit)
        await expect(drawn(visit)).to_have_count(6)
        async with visit.page.expect_download() as download:
            await visit["sweep-download"].click()
        content = (await (await download.value).path()).read_bytes()
        first = await drawn(visit).first.evaluate(PIXELS)
    with Image.open(io.BytesIO(content)) as sheet:
        assert sheet.width > 3 * 96 < sheet.height + 96
        corner = sheet.convert("RGBA").crop((96, 64, 96 + 96, 64 + 96)).resize((32, 32), 0)
    assert first == list(corner.tobytes())
