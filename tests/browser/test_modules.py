"""Facts of the page's modules by themselves: events out of bytes, schedules, words, bounds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser

from model.config import MAX_GUIDANCE_SCALE, MAX_SEED, MAX_TEMPERATURE
from tests.browser.driver import Visit, visiting
from tests.service.harness import listening

CALL = """async ([address, name, values]) => {
  const module = await import(address);
  return typeof module[name] === "function" ? module[name](...values) : module[name];
}"""
READ = """async ([address, chunks]) => {
  const { readEvents } = await import(address);
  const encoder = new TextEncoder();
  const isText = (chunk) => typeof chunk === "string";
  const bytes = (chunk) => isText(chunk) ? encoder.encode(chunk) : new Uint8Array(chunk);
  const stream = new ReadableStream({
    start(sink) { chunks.forEach((chunk) => sink.enqueue(bytes(chunk))); sink.close(); },
  });
  const found = [];
  for await (const { event, data, id } of readEvents(stream)) found.push([event, data, id]);
  return found;
}"""


@asynccontextmanager
async def page_of(browser: Browser) -> AsyncIterator[Visit]:
    """A page to call modules in."""
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        yield visit


async def call(visit: Visit, module: str, name: str, *values: Any) -> Any:
    """Call a function that a module exports, or return what it exports by this name."""
    address = f"{visit.origin}/static/0/{module}"
    return await visit.page.evaluate(CALL, [address, name, list(values)])


async def read(visit: Visit, *chunks: str | list[int]) -> list[list[str]]:
    """Read a stream that arrives in these pieces; return its events."""
    events: list[list[str]] = await visit.page.evaluate(
        READ, [f"{visit.origin}/static/0/sse.js", list(chunks)]
    )
    return events


async def test_events_are_read_as_the_standard_says(browser: Browser) -> None:
    """Comments, several lines of data, line ends of all kinds, ids, and a last part cut off."""
    async with page_of(browser) as visit:
        expected = [
            ["a", "1", ""],
            ["message", "2\n3", ""],
            ["message", " 4", "7"],
            ["b", "5", "7"],
        ]
        text = (
            ":hello\n\nevent: a\ndata: 1\n\ndata:2\ndata: 3\n\nid: 7\ndata:  4\n\n"
            "event: b\nretry: 9\nunknown\ndata: 5\n\nevent: c\n\ndata: 6\n"
        )
        for end in ("\n", "\r", "\r\n"):
            written = text.replace("\n", end)
            assert expected == await read(visit, written), repr(end)
            assert expected == await read(visit, *written), repr(end)


async def test_a_letter_may_be_cut_in_two(browser: Browser) -> None:
    """Bytes of one letter that arrive apart, and a byte order mark, are read rightly."""
    async with page_of(browser) as visit:
        raw = "\ufeffdata: ½ €\n\n".encode()
        assert [["message", "½ €", ""]] == await read(visit, *([byte] for byte in raw))


async def test_a_schedule_is_judged_as_the_server_does(browser: Browser) -> None:
    """The page refuses a schedule exactly when the server would."""
    schedules = [
        [4] * 4,
        [16],
        [1, 15],
        [15, 1],
        [8, 9],
        [8, 7],
        [0, 16],
        [],
        [2, 2, 4, 8],
        [1] * 16,
    ]
    async with listening() as h, visiting(browser, str(h.client.base_url)) as visit:
        for schedule in schedules:
            reply = await h.generate(class_id=1, unmask_schedule=schedule)
            problem = await call(visit, "schedule.js", "scheduleProblem", schedule, 16)
            assert (200 == reply.status_code) == (problem == ""), (problem, reply.text)


async def test_a_model_of_one_round_has_one_schedule(browser: Browser) -> None:
    """Where a token is drawn at once, more rounds are a mistake, whatever they sum to."""
    async with page_of(browser) as visit:
        assert "" == await call(visit, "schedule.js", "scheduleProblem", [16], 16, 1)
        problem = await call(visit, "schedule.js", "scheduleProblem", [8, 8], 16, 1)
        assert "This model draws all bits of a token in one round." == problem


async def test_even_schedules_are_right_for_any_number_of_rounds(browser: Browser) -> None:
    """They sum to the bits of a token and never decrease."""
    async with page_of(browser) as visit:
        for bits, rounds in [(16, 3), (10, 4), (24, 8), (256, 7), (10, 10)]:
            schedule = await call(visit, "schedule.js", "evenSchedule", bits, rounds)
            assert rounds == len(schedule)
            assert "" == await call(visit, "schedule.js", "scheduleProblem", schedule, bits)


async def test_bounds_are_those_of_the_interface(browser: Browser) -> None:
    """The page's bounds are the model's: none can change alone."""
    async with page_of(browser) as visit:
        bounds = await call(visit, "settings.js", "BOUNDS")
    most = {name: bound["max"] for name, bound in bounds.items()}
    assert {
        "seed": MAX_SEED,
        "guidance_scale": MAX_GUIDANCE_SCALE,
        "temperature": MAX_TEMPERATURE,
    } == most
    assert [0, 1, 0] == [bounds[name]["min"] for name in ("seed", "guidance_scale", "temperature")]


async def test_durations_are_told_in_one_way(browser: Browser) -> None:
    """Two digits that matter, in the unit that suits."""
    durations = {
        0.0012: "1.2 ms", 0.0096: "10 ms", 0.25: "250 ms", 0.9996: "1.0 s", 9.94: "9.9 s",
        9.96: "10 s", 59.6: "1 min 00 s", 125: "2 min 05 s",
    }  # fmt: skip
    async with page_of(browser) as visit:
        for seconds, text in durations.items():
            assert text == await call(visit, "wording.js", "duration", seconds)


async def test_places_in_line_are_ordinals(browser: Browser) -> None:
    """1st, 2nd, 3rd, 4th, and the teens."""
    async with page_of(browser) as visit:
        places = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th",
                  21: "21st", 102: "102nd", 111: "111th", 1013: "1013th"}  # fmt: skip
        for number, text in places.items():
            assert text == await call(visit, "wording.js", "ordinal", number)
