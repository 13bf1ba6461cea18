"""Facts of the pages as a whole: what they ask for, what they forbid, what they do without."""

import asyncio
import re

import pytest
from playwright.async_api import Browser, Error, Route, expect

from tests.browser.driver import visiting
from tests.service.harness import Harness, listening


async def num_files_sent(h: Harness) -> float:
    """Read from the metrics how many files of the pages were asked for."""
    text = (await h.client.get("/metrics")).text
    counted = re.findall(r'http_requests_total{handler="/static/.*} ([0-9.e+]+)', text)
    return sum(map(float, counted))


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_second_visit_asks_for_the_page_alone(browser: Browser, path: str) -> None:
    """Scripts and styles come from the browser's own memory."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), path=path, is_ready=False) as visit,
    ):
        await visit.page.wait_for_load_state("networkidle")
        before = await num_files_sent(h)
        assert before >= 8
        await visit.page.goto(f"{visit.origin}{path}?again")
        await visit.page.wait_for_load_state("networkidle")
        assert before == await num_files_sent(h)


ATTACKS = [
    """() => document.body.innerHTML = "<img src=x onerror='window.bad = 1'>" """,
    # Not at once: what a debugger evaluates may itself evaluate.
    """() => new Promise((_, fail) => setTimeout(() => {
      try { eval("window.bad = 1"); } catch (error) { fail(error); }
    }))""",
    "() => setTimeout('window.bad = 1', 0)",
    """() => {
      const script = document.createElement("script");
      script.text = "window.bad = 1";
      document.head.append(script);
    }""",
]


async def test_text_never_becomes_code(browser: Browser) -> None:
    """What a flaw of the page could be used for is refused by the browser."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        for attack in ATTACKS:
            with pytest.raises(Error, match=r"TrustedScript|TrustedHTML|unsafe-eval"):
                await visit.page.evaluate(attack)
        await asyncio.sleep(0.05)
        assert await visit.page.evaluate("window.bad === undefined")
        visit.complaints.clear()


async def test_names_from_the_server_are_text(browser: Browser) -> None:
    """A class or a model called like markup is shown, letter by letter."""
    name = "<img src=x onerror=alert(1)>"
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        reply = (await h.client.get("/v1/classes")).json()
        reply["data"][7].update(name=name, names=[name, name])
        await visit.page.route("**/v1/classes?*", lambda route: route.fulfill(json=reply))
        await visit.page.goto(visit.origin + "/?")
        await visit.ready()
        await visit["class_id"].click()
        await expect(visit["class-list"]).to_contain_text(name)
        assert 0 == await visit["class-list"].locator("img").count()
        await visit.page.keyboard.press("Escape")
        await visit.generate()
        await expect(visit["status"]).to_contain_text(name)


async def test_the_documentation_says_the_essentials_without_a_script(browser: Browser) -> None:
    """Without JavaScript there are examples, fields, all routes, and the way to openapi.json."""
    async with (
        listening() as h,
        visiting(
            browser,
            str(h.client.base_url),
            path="/docs",
            is_ready=False,
            java_script_enabled=False,
            refusals=[404],  # the browser's own wish for an icon of a document in JSON
        ) as visit,
    ):
        text = await visit.page.locator("main").inner_text()
        for word in ("curl", "guidance_scale", "Accept: image/png", "Retry-After", "/v1/models"):
            assert word in text
        await expect(visit["tools"]).to_be_hidden()  # its buttons would do nothing
        await visit.page.get_by_role("link", name="openapi.json").first.click()
        assert visit.page.url.endswith("/openapi.json")


async def test_the_playground_says_that_it_needs_a_script(browser: Browser) -> None:
    """Without JavaScript there is a way to the documentation."""
    async with (
        listening() as h,
        visiting(
            browser, str(h.client.base_url), is_ready=False, java_script_enabled=False
        ) as visit,
    ):
        await visit.page.locator("noscript a").click()
        assert visit.page.url.endswith("/docs")


async def test_every_route_is_documented_and_can_be_tried(browser: Browser) -> None:
    """Each route of the document has a section; trying one shows the answer and its images."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url), path="/docs", is_ready=False) as visit,
    ):
        document = (await h.client.get("/openapi.json")).json()
        sections = visit.page.locator(".route")
        await expect(sections).to_have_count(sum(map(len, document["paths"].values())))
        route = visit["post-v1-generations"]
        await expect(route).to_contain_text("unmask_schedule")
        await route.get_by_text("Try it").click()
        await route.get_by_role("button", name="Send").click()
        await expect(route.locator(".answer")).to_contain_text("200 OK")
        image = route.get_by_alt_text("Image 1 of the answer")
        assert 32 == await image.evaluate(
            "async (node) => { await node.decode(); return node.naturalWidth; }"
        )
        await route.get_by_label("Accept").select_option("text/event-stream")
        await route.get_by_role("button", name="Send").click()
        await expect(route.locator(".answer")).to_contain_text("event: completed")
        search = visit["get-v1-classes"]
        await search.get_by_text("Try it").click()
        await search.get_by_label("q", exact=True).fill("lucky")
        await search.get_by_role("button", name="Send").click()
        await expect(search.locator(".answer")).to_contain_text('"class_id": 7')
        model = visit["get-v1-models-model_id"]
        await model.get_by_text("Try it").click()
        await model.get_by_label("model_id").fill("digits")
        await model.get_by_role("button", name="Send").click()
        await expect(model.locator(".answer")).to_contain_text("bits_per_token")


async def test_a_link_into_the_documentation_arrives(browser: Browser) -> None:
    """The address of a section leads to it, although it is made after the page has come."""
    async with (
        listening() as h,
        visiting(
            browser, str(h.client.base_url), path="/docs#get-v1-classes", is_ready=False
        ) as visit,
    ):
        await expect(visit["get-v1-classes"]).to_be_in_viewport()


async def test_pages_work_behind_a_prefix(browser: Browser) -> None:
    """Every address is relative to the page, so that a proxy may put it anywhere."""
    async with (
        listening() as h,
        visiting(browser, str(h.client.base_url)) as visit,
    ):
        await visit.page.wait_for_load_state("networkidle")
        served = re.compile(re.escape(visit.origin) + "/deep/er/(.*)")

        async def forward(route: Route) -> None:
            inner = served.sub(rf"{visit.origin}/\1", route.request.url)
            reply = await route.fetch(url=inner)
            await route.fulfill(response=reply)

        await visit.page.route(served, forward)
        visit.asked.clear()
        await visit.page.goto(f"{visit.origin}/deep/er/")
        await visit.ready()
        await visit.generate()
        assert f"{visit.origin}/deep/er/v1/generations" in await visit["snippet"].inner_text()
        await visit.page.get_by_role("link", name="API docs").click()
        await expect(visit["post-v1-generations"]).to_be_visible()
        assert [] == [line for line in visit.asked if " /deep/er/" not in line]
