"""Fixtures of the browser's tests; all of them are skipped where there is no Chromium."""

from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser, async_playwright

pytest.register_assert_rewrite("tests.browser.driver")

from tests.browser.driver import CHROMIUM, FLAGS  # noqa: E402 - what it asserts is explained
from tests.browser.servers import serving_digits  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder, and skip it where nothing can show a page."""
    for item in items:
        if "tests/browser/" not in item.path.as_posix():
            continue
        item.add_marker(pytest.mark.browser)
        item.add_marker(pytest.mark.anyio)
        item.add_marker(pytest.mark.timeout(180))  # several processes, on a machine that is busy
        if CHROMIUM is None:
            item.add_marker(pytest.mark.skip("no Chromium here: apt install chromium"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the service and Playwright run on."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """A headless Chromium, one for the tests of a module; each test has a profile of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def digits() -> Iterator[str]:
    """The address of a real server with the bundled model."""
    with serving_digits("--num-slots", "2", "--threads", "1") as url:
        yield url
