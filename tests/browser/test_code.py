"""Facts of the code that the page gives away: it runs, and draws the image beside it."""

import asyncio
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.driver import Visit, visiting
from tests.service.harness import expected_png, listening
from tests.service.key_files import one_key

KEPT = {"guidance_scale": 4.5, "temperature": 1.0, "unmask_schedule": (8, 8), "order": "random"}


async def set_up(visit: Visit) -> None:
    """Leave the defaults in every field."""
    await visit["class_id"].fill("three")
    await visit.page.get_by_role("option", name="three").click()
    await visit["seed"].fill("99")
    await visit["guidance_scale"].fill("4.5")
    await visit["temperature"].fill("1")
    await visit["unmask_schedule"].fill("8, 8")
    await visit.page.get_by_role("radio", name="Random").check()


async def run(*command: str, cwd: Path, **environ: str) -> None:
    """Run a command in a folder; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env={**os.environ, **environ}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here: apt install curl")
async def test_the_curl_command_draws_the_image(tmp_path: Path, browser: Browser) -> None:
    """Pasted into a shell, it writes the image of the settings."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await set_up(visit)
        code = await visit["snippet"].inner_text()
        await run("sh", "-ec", f"{code} --silent --fail", cwd=tmp_path)
    assert expected_png(3, 99, **KEPT) == (tmp_path / "three.png").read_bytes()


async def test_the_python_code_draws_the_images(tmp_path: Path, browser: Browser) -> None:
    """Run as a program, with the key in the environment, it writes all of them."""
    keys = tmp_path / "keys.json"
    key = one_key(keys)
    async with (
        listening(api_keys_file=keys) as h,
        visiting(browser, str(h.client.base_url), refusals=[401], is_ready=False) as visit,
    ):
        await visit["key"].fill(key)
        await visit.page.keyboard.press("Enter")
        await visit.ready()
        await set_up(visit)
        await visit["num_images"].fill("2")
        await visit["tab-python"].click()
        code = await visit["snippet"].inner_text()
        await run(sys.executable, "-c", code, cwd=tmp_path, BAR_API_KEY=key)
    for seed in (99, 100):
        assert expected_png(3, seed, **KEPT) == (tmp_path / f"three-{seed}.png").read_bytes()


@pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="no openai here: pip install openai"
)
async def test_the_openai_code_draws_the_image(tmp_path: Path, browser: Browser) -> None:
    """Run as a program with the unmodified client, it writes the image of the settings."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        await set_up(visit)
        await visit["tab-openai"].click()
        code = await visit["snippet"].inner_text()
        await run(sys.executable, "-c", code, cwd=tmp_path)
    assert expected_png(3, 99, **KEPT) == (tmp_path / "three-0.png").read_bytes()


async def test_defaults_are_left_out(browser: Browser) -> None:
    """Code says what differs from the model's own settings, the seed, and no more."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        code = await visit["snippet"].inner_text()
        assert '"seed": ' in code
        for field in ("guidance_scale", "temperature", "order", "unmask_schedule", "num_images"):
            assert field not in code
        await visit["temperature"].fill("2.5")
        assert '"temperature": 2.5' in await visit["snippet"].inner_text()


async def test_code_is_copied(browser: Browser) -> None:
    """The button copies what stands there; where that is forbidden it is selected instead."""
    async with (
        listening() as h,
        visiting(
            browser,
            str(h.client.base_url),
            permissions=["clipboard-read", "clipboard-write"],
        ) as visit,
    ):
        await visit["copy"].click()
        await expect(visit["copy"]).to_have_text("Copied")
        code = await visit["snippet"].inner_text()
        assert code == await visit.page.evaluate("navigator.clipboard.readText()")
        await visit.page.evaluate(
            "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
        )
        await visit["copy"].click()
        await expect(visit["copy"]).to_contain_text("Selected")
        assert code == await visit.page.evaluate("getSelection().toString()")
