"""A browser as the tests drive it: pages that must neither complain nor ask anybody else.

Playwright talks to a Chromium that is installed already; it downloads none.
"""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PATIENCE_MS = 60_000
PIXELS = """async (image) => {
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  return Array.from(pen.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


@dataclass
class Visit:
    """A page, and what it did."""

    page: Page
    origin: str
    asked: list[str] = field(default_factory=list)  # method and path of each request
    foreign: list[str] = field(default_factory=list)  # addresses elsewhere
    complaints: list[str] = field(default_factory=list)  # console errors and uncaught exceptions

    def __getitem__(self, element_id: str) -> Locator:
        """Find an element by its id."""
        return self.page.locator(f"#{element_id}")

    @property
    def images(self) -> Locator:
        """The images in their places; drawn ones can be downloaded."""
        return self.page.locator("#tiles .tile:has(a[download]) img")

    async def ready(self) -> None:
        """Wait until the page can generate."""
        await expect(self["run"]).to_be_enabled()

    async def generate(self, count: int = 1) -> None:
        """Press the button and wait for all images."""
        await self["run"].click()
        await expect(self.images).to_have_count(count)
        await expect(self["run"]).to_be_visible()

    async def value(self, element_id: str) -> str:
        """Return what stands in a field."""
        return await self[element_id].input_value()

    def watch(self, page: Page) -> None:
        """Take note of requests, errors and warnings."""
        page.on("request", lambda request: self._note(request.method, request.url))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, method: str, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"data", "blob"}:
            return
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.foreign.append(url)
        self.asked.append(f"{method} {parts.path}")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request carried."""
    body: dict[str, Any] = json.loads(request.post_data or "")
    return body


@asynccontextmanager
async def visiting(
    browser: Browser,
    url: str,
    *,
    path: str = "/",
    refusals: Sequence[int] = (),
    is_ready: bool = True,
    **options: Any,
) -> AsyncIterator[Visit]:
    """Open a page in a browser of its own, which forgets everything afterwards.

    When the block ends, the page must have asked nobody else and complained of nothing but the
    `refusals`, statuses that the test provokes.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = await context.new_page()
    visit = Visit(page, url.rstrip("/"))
    visit.watch(page)
    await page.goto(visit.origin + path)
    if is_ready:
        await visit.ready()
    try:
        yield visit
    finally:
        await context.close()
    allowed = tuple(f"the server responded with a status of {status}" for status in refusals)
    unexpected = [c for c in visit.complaints if not any(part in c for part in allowed)]
    assert [] == unexpected
    assert [] == visit.foreign
