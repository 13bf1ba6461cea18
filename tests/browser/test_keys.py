"""Facts of keys in the browser: asked for, kept in the tab alone, sent, and never shown."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.driver import visiting
from tests.service.harness import listening
from tests.service.key_files import one_key

EVERYTHING = """() => JSON.stringify([
  { ...localStorage }, document.cookie, location.href, document.documentElement.outerHTML])"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of keys is."""
    return tmp_path / "keys.json"


async def test_a_key_is_asked_for_refused_and_taken(path: Path, browser: Browser) -> None:
    """Without a key the page asks for one, says that a wrong one is wrong, and goes on with it."""
    key = one_key(path)
    async with (
        listening(api_keys_file=path) as h,
        visiting(browser, str(h.client.base_url), refusals=[401], is_ready=False) as visit,
    ):
        dialog = visit["key-dialog"]
        await expect(dialog).to_be_visible()
        await expect(visit["key"]).to_be_focused()
        await visit["key"].fill("wrong")
        await visit.page.keyboard.press("Enter")
        await expect(visit["key-problem"]).to_contain_text("not known")
        await visit["key"].fill(key)
        async with visit.page.expect_request("**/v1/models") as asked:
            await visit.page.keyboard.press("Enter")
        assert f"Bearer {key}" == (await asked.value).headers["authorization"]
        await visit.ready()
        await expect(dialog).to_be_hidden()
        await expect(visit["trouble"]).to_be_hidden()
        await visit.generate()


async def test_a_key_stays_in_the_tab(path: Path, browser: Browser) -> None:
    """It survives a reload, and stands neither in the page, its address, its code nor on disk."""
    key = one_key(path)
    async with (
        listening(api_keys_file=path) as h,
        visiting(browser, str(h.client.base_url), refusals=[401], is_ready=False) as visit,
    ):
        await visit["key"].fill(key)
        await visit.page.keyboard.press("Enter")
        await visit.ready()
        await visit.page.reload()
        await visit.ready()
        await visit.generate()
        assert key not in await visit.page.evaluate(EVERYTHING)
        assert "Bearer $BAR_API_KEY" in await visit["snippet"].inner_text()
        await visit["key-open"].click()
        assert ("password", key) == (
            await visit["key"].get_attribute("type"),
            await visit["key"].input_value(),
        )
        await visit["key-forget"].click()
        await expect(visit["trouble"]).to_contain_text("asks for an API key")
        assert "" == (await visit.page.evaluate("Object.values(sessionStorage).join('')"))


async def test_a_key_that_no_header_can_carry_is_not_tried(browser: Browser) -> None:
    """Spaces and letters beyond ASCII are refused on the spot."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await visit["key-open"].click()
        for wrong in ("", "two words", "schlüssel"):
            await visit["key"].fill(wrong)
            await visit.page.keyboard.press("Enter")
            await expect(visit["key"]).to_have_attribute("aria-invalid", "true")
        await visit.page.keyboard.press("Escape")
        await expect(visit["key-dialog"]).to_be_hidden()
        await visit.generate()


async def test_without_keys_nothing_of_them_is_sent_or_copied(browser: Browser) -> None:
    """No Authorization header, and none in the code."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        async with visit.page.expect_request("**/v1/generations") as asked:
            await visit.generate()
        assert "authorization" not in (await asked.value).headers
        assert "Authorization" not in await visit["snippet"].inner_text()


async def test_a_key_that_ends_is_said_at_the_next_run(path: Path, browser: Browser) -> None:
    """A key taken back while the page is open leads to the dialog, with the server's words."""
    key = one_key(path)
    async with (
        listening(api_keys_file=path) as h,
        visiting(browser, str(h.client.base_url), refusals=[401], is_ready=False) as visit,
    ):
        await visit["key"].fill(key)
        await visit.page.keyboard.press("Enter")
        await visit.ready()
        await visit.page.evaluate("sessionStorage.setItem('bar-serve.key', 'revoked')")
        await visit.page.reload()
        await expect(visit["key-problem"]).to_contain_text("not known")
