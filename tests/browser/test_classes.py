"""Facts of choosing a class: by name, WordNet id or index, out of ten and of a thousand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from playwright.async_api import Browser, Route, expect

from model.class_labels import ClassLabels
from model.zoo import ModelInfo
from tests.browser.driver import Visit, body_of, visiting
from tests.service import harness
from tests.service.fakes import fake_info


def imagenet_info() -> ModelInfo:
    """Describe a fake model of the thousand ImageNet classes."""
    info = fake_info()
    return replace(
        info,
        class_labels=ClassLabels.imagenet(),
        generator=replace(info.generator, num_classes=1000),
    )


@asynccontextmanager
async def visit_of_imagenet(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Visit]:
    """A page of a service with a thousand classes."""
    monkeypatch.setattr(harness, "fake_info", imagenet_info)
    async with (
        harness.listening() as h,
        visiting(browser, str(h.client.base_url)) as visit,
    ):
        yield visit


async def test_a_class_is_found_by_name_id_or_index(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typing and Enter choose the best match, even before the matches are shown."""
    matches = {
        "golden r": ("golden retriever", "207 · n02099601"),
        "300": ("tiger beetle", "300 · n02165105"),
        "n02111889": ("Samoyed", "258 · n02111889"),
        "labradr retriever": ("Labrador retriever", "208 · n02099712"),
    }
    async with visit_of_imagenet(browser, monkeypatch) as visit:
        for typed, (name, ids) in matches.items():
            await visit["class_id"].focus()
            await visit["class_id"].select_text()
            await visit.page.keyboard.type(typed)
            await visit.page.keyboard.press("Enter")
            await expect(visit["class_id"]).to_have_value(name)
            await expect(visit["class-note"]).to_have_text(ids)
            await expect(visit["class-list"]).to_be_hidden()
        assert "POST /v1/generations" not in visit.asked  # Enter chose, and did not generate
        async with visit.page.expect_request("**/v1/generations") as asked:
            await visit.generate()
        assert 208 == body_of(await asked.value)["class_id"]


async def test_all_thousand_can_be_browsed(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened without a word typed, the list has every class, the chosen one in view."""
    async with visit_of_imagenet(browser, monkeypatch) as visit:
        await visit["class_id"].click()
        options = visit["class-list"].get_by_role("option")
        await expect(options).to_have_count(1000)
        chosen = visit["class-list"].locator('[aria-selected="true"]')
        await expect(chosen).to_contain_text("cock")
        await expect(chosen).to_be_in_viewport()
        await visit.page.keyboard.press("ArrowUp")
        await visit.page.keyboard.press("PageUp")
        await visit.page.keyboard.press("Enter")
        await expect(visit["class_id"]).to_have_value("tench")


async def test_names_that_two_classes_share_are_told_apart(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cranes are offered with their ids, and the chosen one is shown with its own."""
    async with visit_of_imagenet(browser, monkeypatch) as visit:
        await visit["class_id"].fill("crane")
        cranes = visit["class-list"].get_by_role("option").filter(has_text="crane")
        await expect(cranes.first).to_contain_text("134 · n02012849")
        await expect(cranes.nth(1)).to_contain_text("517 · n03126707")
        await cranes.nth(1).click()
        await expect(visit["class_id"]).to_have_value("crane (n03126707)")
        await visit["tab-openai"].click()
        assert 'prompt="n03126707"' in await visit["snippet"].inner_text()
        await visit["class_id"].click()
        active = visit["class-list"].locator('[aria-selected="true"]')
        await expect(active).to_contain_text("517")


async def test_the_combobox_keeps_the_pattern(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles, expansion, the active option and the number of matches are told as ARIA asks."""
    async with visit_of_imagenet(browser, monkeypatch) as visit:
        field, keyboard = visit["class_id"], visit.page.keyboard
        await expect(field).to_have_attribute("aria-expanded", "false")
        await field.focus()
        await expect(visit["class-list"]).to_be_hidden()  # focus alone opens nothing
        await keyboard.type("husky")
        await expect(field).to_have_attribute("aria-expanded", "true")
        await expect(visit["class-status"]).to_contain_text("match")
        first = await field.get_attribute("aria-activedescendant")
        await expect(visit[first or ""]).to_have_attribute("aria-selected", "true")
        await keyboard.press("ArrowDown")
        second = await field.get_attribute("aria-activedescendant")
        assert first != second
        await expect(visit[first or ""]).to_have_attribute("aria-selected", "false")
        await keyboard.press("Escape")
        await expect(field).to_have_attribute("aria-expanded", "false")
        await expect(field).to_have_value("cock")
        await keyboard.press("Alt+ArrowDown")
        await expect(field).to_have_attribute("aria-expanded", "true")
        await keyboard.press("Alt+ArrowUp")
        await expect(field).to_have_attribute("aria-expanded", "false")


async def test_a_slow_answer_never_overtakes_a_later_one(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matches of what was typed first are dropped when more was typed since."""
    async with visit_of_imagenet(browser, monkeypatch) as visit:
        held: list[Route] = []
        await visit.page.route(
            "**/v1/classes?*q=shark*",
            lambda route: held.append(route),  # noqa: PLW0108 - Playwright marks it
        )
        async with visit.page.expect_request("**/v1/classes?*q=shark*"):
            await visit["class_id"].fill("shark")
        await visit["class_id"].fill("goose")
        option = visit["class-list"].get_by_role("option").first
        await expect(option).to_contain_text("goose")
        for route in held:
            await route.abort()
        await expect(option).to_contain_text("goose")


async def test_another_model_brings_its_own_settings_and_classes(browser: Browser) -> None:
    """Choosing a model takes over its defaults and bounds; its classes are listed, not the old."""
    async with (
        harness.listening() as h,
        visiting(browser, str(h.client.base_url)) as visit,
    ):
        (card,) = (await h.client.get("/v1/models")).json()["data"]
        own = {**card["defaults"], "guidance_scale": 5.5, "unmask_schedule": [2, 3]}
        other = {
            **card,
            "id": "bar-x",
            "num_classes": 2,
            "bits_per_token": 5,
            "max_rounds": 5,
            "defaults": own,
        }
        names = [
            {"class_id": i, "wordnet_id": None, "name": name, "names": [name]}
            for i, name in enumerate(("ant", "bee"))
        ]
        await visit.page.route(
            "**/v1/models", lambda route: route.fulfill(json={"data": [card, other]})
        )
        await visit.page.route(
            "**/v1/classes?model=bar-x*", lambda route: route.fulfill(json={"data": names})
        )
        await visit.page.reload()
        await visit.ready()
        await visit["model"].select_option("bar-x")
        await expect(visit["class_id"]).to_have_value("ant")
        await expect(visit["guidance_scale"]).to_have_value("5.5")
        await expect(visit["unmask_schedule"]).to_have_value("2, 3")
        await expect(visit["model-facts"]).to_contain_text("bar-x")
        await visit["class_id"].click()
        await expect(visit["class-list"].get_by_role("option")).to_have_count(2)
        await visit.page.keyboard.press("Escape")
        assert '"model": "bar-x"' in await visit["snippet"].inner_text()
        await visit["model"].select_option("digits")
        await expect(visit["class_id"]).to_have_value("zero")
        await visit.generate()


async def test_a_random_class_is_one_of_the_model(browser: Browser) -> None:
    """The dice choose a class that exists, and the request has it."""
    async with (
        harness.listening() as h,
        visiting(browser, str(h.client.base_url)) as visit,
    ):
        names = {label.name for label in fake_info().class_labels}
        for _ in range(8):
            await visit["class-random"].click()
            assert await visit.value("class_id") in names
