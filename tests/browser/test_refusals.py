"""Facts of what goes wrong: said in words, beside the field that can mend it, with a way on."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Route, expect

from tests.browser.driver import Visit, visiting
from tests.service.fakes import FakeEngine
from tests.service.harness import Harness, listening

GENERATIONS = "**/v1/generations"


@asynccontextmanager
async def visit_of_fake(
    browser: Browser, *refusals: int, engine: FakeEngine | None = None, **settings: object
) -> AsyncIterator[tuple[Harness, Visit]]:
    """A service on a fake engine, and a page of it in which these statuses may appear."""
    async with (
        listening(engine, **settings) as h,
        visiting(browser, str(h.client.base_url), refusals=refusals) as visit,
    ):
        yield h, visit


WRONG_VALUES = [
    ("temperature", "11", "Temperature is a number from 0 to 10."),
    ("temperature", "", "Temperature is a number from 0 to 10."),
    ("guidance_scale", "0.5", "Guidance is a number from 1 to 30."),
    ("seed", "4294967296", "A seed is a whole number from 0 to 4294967295."),
    ("seed", "1.5", "A seed is a whole number from 0 to 4294967295."),
    ("num_images", "17", "From 1 to 16 images."),
    ("unmask_schedule", "4, 4", "The rounds make 8 bits, 8 too few: a token has 16."),
    ("unmask_schedule", "8 4 4", "Rounds must not decrease: 4 stands after 8."),
    ("unmask_schedule", "x", "Each round reveals a whole number of bits, at least 1."),
]


async def test_a_wrong_value_is_marked_and_not_sent(browser: Browser) -> None:
    """The field is marked, described and focused; nothing is asked until it is right."""
    async with visit_of_fake(browser) as (_, visit):
        for field, value, message in WRONG_VALUES:
            right = await visit.value(field)
            await visit[field].fill(value)
            await expect(visit[f"{field}-problem"]).to_have_text(message)
            await visit["run"].click()
            await expect(visit[field]).to_be_focused()
            await expect(visit[field]).to_have_attribute("aria-invalid", "true")
            description = re.compile(re.escape(message))
            await expect(visit[field]).to_have_accessible_description(description)
            await visit[field].fill(right)
            await expect(visit[f"{field}-problem"]).to_be_hidden()
            await expect(visit[field]).to_have_attribute("aria-invalid", "false")
        assert "POST /v1/generations" not in visit.asked
        await visit.generate()


async def test_what_the_server_refuses_is_marked_at_its_field(browser: Browser) -> None:
    """A refusal that names a field marks it, with the server's words; a change unmarks it."""
    async with visit_of_fake(browser, 400, max_images=4) as (h, visit):
        card = (await h.client.get("/v1/models")).json()
        card["data"][0]["limits"]["max_images"] = 99  # the page believes in more than there is
        await visit.page.route("**/v1/models", lambda route: route.fulfill(json=card))
        await visit.page.reload()
        await visit.ready()
        await visit["num_images"].fill("5")
        await visit["run"].click()
        problem = visit["num_images-problem"]
        await expect(problem).to_contain_text("5 images are asked for")
        await expect(visit["num_images"]).to_be_focused()
        await expect(visit["failure"]).to_contain_text("at most 4")
        await visit["num_images"].fill("2")
        await expect(problem).to_be_hidden()
        await visit.generate(2)
        await expect(visit["failure"]).to_be_empty()


async def test_a_failure_while_drawing_is_said(browser: Browser) -> None:
    """An error that comes as an event is shown with the request's id; what stands there fades."""
    engine = FakeEngine()

    def fault() -> None:
        raise RuntimeError("a fault of the test")

    async with visit_of_fake(browser, engine=engine) as (_, visit):
        engine.decode_fault = fault
        await visit["run"].click()
        await expect(visit["failure"]).to_contain_text("The images could not be made")
        await expect(visit["failure"]).to_contain_text(re.compile(r"req_[0-9a-f]{24}"))
        await expect(visit.page.locator("#tiles .stopped")).to_have_count(1)
        await expect(visit["run"]).to_be_visible()
        engine.decode_fault = lambda: None
        await visit.generate()


async def test_a_full_queue_is_told_with_its_wait(browser: Browser) -> None:
    """429 says when to try again; the button does so."""
    engine = FakeEngine(num_slots=1)
    settings = {"max_images": 1, "max_queued_steps": 16}
    async with visit_of_fake(browser, 429, engine=engine, **settings) as (h, visit):
        engine.gate.clear()
        ahead = [asyncio.create_task(h.generate(class_id=1))]
        await h.until(lambda stats: stats.jobs_running == 1)
        ahead.append(asyncio.create_task(h.generate(class_id=2)))
        await h.until(lambda stats: stats.jobs_waiting == 1)
        await visit["run"].click()
        await expect(visit["failure"]).to_contain_text("Try again in")
        engine.gate.set()
        await asyncio.gather(*ahead)
        await visit["failure"].get_by_role("button", name="Try again").click()
        await expect(visit.images).to_have_count(1)


async def test_what_stands_between_may_answer_too(browser: Browser) -> None:
    """An answer that is not in the service's envelope is still said in words."""
    answers = {
        (502, "<h1>Bad Gateway</h1>"): "The answer was 502 Bad Gateway, without a reason.",
        (503, "{}"): "The answer was 503 Service Unavailable, without a reason.",
        (500, '{"error": "a"}'): "The answer was 500 Internal Server Error, without a reason.",
    }
    given = iter(answers)

    async def answer(route: Route) -> None:
        status, body = next(given)
        await route.fulfill(status=status, body=body)

    async with visit_of_fake(browser, 500, 502, 503) as (_, visit):
        await visit.page.route(GENERATIONS, answer)
        for message in answers.values():
            await visit["run"].click()
            await expect(visit["failure"]).to_contain_text(message)


async def test_a_stream_that_ends_early_is_a_failure(browser: Browser) -> None:
    """Without the last event nothing is taken for an image, and trying again is offered."""
    told = {"status": "running", "progress": 0.5, "eta_s": 1, "queue_position": None}
    body = f"event: progress\ndata: {json.dumps(told)}\n\n"
    async with visit_of_fake(browser) as (_, visit):
        await visit.page.route(
            GENERATIONS, lambda route: route.fulfill(body=body, content_type="text/event-stream")
        )
        await visit["run"].click()
        await expect(visit["failure"]).to_contain_text("ended before the images were done")
        await visit.page.unroute(GENERATIONS)
        await visit["failure"].get_by_role("button", name="Try again").click()
        await expect(visit.images).to_have_count(1)


async def test_a_server_that_is_away_is_said(browser: Browser) -> None:
    """Without an answer the page says so, at the start and later, and goes on when there is one."""
    async with visit_of_fake(browser) as (_, visit):
        await visit.page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
        await visit["run"].click()
        await expect(visit["failure"]).to_contain_text("No answer came")
        await visit.page.reload()
        await expect(visit["trouble"]).to_contain_text("No answer came")
        await expect(visit["run"]).to_be_disabled()
        await visit.page.unroute("**/v1/**")
        await visit["trouble-retry"].click()
        await visit.ready()
        await expect(visit["trouble"]).to_be_hidden()
        refused = "Failed to load resource: net::ERR_CONNECTION_REFUSED"
        assert {refused} == set(visit.complaints)
        visit.complaints.clear()


async def test_a_class_that_is_not_in_the_list_cannot_be_left_there(browser: Browser) -> None:
    """What was typed but not chosen gives way to the class that was."""
    async with visit_of_fake(browser) as (_, visit):
        await visit["class_id"].fill("unicorn")
        await expect(visit["class-list"]).to_contain_text("Nothing of this name.")
        await visit["seed"].focus()
        await expect(visit["class_id"]).to_have_value("seven")


async def test_a_link_with_wrong_settings_marks_them(browser: Browser) -> None:
    """A link is read as if it had been typed: what is wrong in it stays, and is marked."""
    async with (
        listening() as h,
        visiting(
            browser,
            str(h.client.base_url),
            path="/#class_id=99&guidance_scale=900&seed=x&unmask_schedule=1,b",
        ) as visit,
    ):
        for field in ("class_id", "guidance_scale", "seed", "unmask_schedule"):
            await expect(visit[f"{field}-problem"]).to_be_visible()
        await visit["run"].click()
        await expect(visit["class_id"]).to_be_focused()
        assert "POST /v1/generations" not in visit.asked
