"""Facts of the log lines: one per change of state, findable by their keys, without secrets."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.api_keys import make_key
from service.logs import REDACTED, JsonFormatter, TextFormatter, redact
from tests.service.fakes import NUM_STEPS, FakeEngine
from tests.service.harness import running


def record(message: str, **extra: object) -> logging.LogRecord:
    """Make a record as a logger would."""
    values = {"name": "bar.queue", "levelname": "INFO", "levelno": logging.INFO, "msg": message}
    return logging.makeLogRecord({**values, **extra})


def test_a_text_line_ends_with_its_keys() -> None:
    """What a call hands over as `extra` can be searched for."""
    line = TextFormatter().format(record("job queued", job="gen_1", images=4))
    assert line.endswith("INFO    bar.queue: job queued job=gen_1 images=4")


def test_a_json_line_is_one_object() -> None:
    """Time, level, logger, message and keys are fields; a traceback is one too."""
    try:
        raise ValueError("broken\nhere")
    except ValueError:
        failed = record("step failed", job="gen_1", exc_info=sys.exc_info())
    line = JsonFormatter().format(failed)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert "ValueError: broken" in entry.pop("exception")
    assert {
        "level": "info",
        "logger": "bar.queue",
        "message": "step failed",
        "job": "gen_1",
    } == entry


KEY = make_key()


@pytest.mark.parametrize("text", [
    "Authorization: Bearer s3cret",
    "authorization=Basic s3cret",
    "X-API-Key: s3cret",
    "{'authorization': 'Bearer s3cret', 'accept': '*/*'}",
    "[(b'authorization', b'Bearer s3cret'), (b'x-api-key', b's3cret')]",
    'Headers({"x-api-key": "s3cret"})',
    json.dumps({"headers": json.dumps({"authorization": "Bearer s3cret"})}),
    "Error 111 connecting to redis://user:s3cret@queue:6379/0",
    "rediss://:s3cret@queue:6379",
    "https://someone:s3cret@collector/v1/traces",
    "password=s3cret db=0",
    "sent bearer s3cret",
])  # fmt: skip
def test_secrets_are_cut_out(text: str) -> None:
    """However a header or a URL is written down, what it keeps secret is not."""
    assert "s3cret" not in redact(text)
    assert REDACTED in redact(text)


@pytest.mark.parametrize("text", [
    "job queued job=gen_0123456789abcdef01234567 images=4 cost=64 priority=normal",
    "redis://queue:6379/0 does not answer",
    "GET /v1/generations/gen_0123456789abcdef01234567/content?index=0",
    "bar_images_generated_total",
    "secrets are kept elsewhere",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    """Lines remain readable, ids and addresses searchable."""
    assert text == redact(text)


def test_a_key_is_recognised_by_itself() -> None:
    """Also where nothing around it says what it is."""
    assert f"unknown key {REDACTED}, again" == redact(f"unknown key {KEY}, again")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_nothing_of_a_line_carries_a_secret(formatter: logging.Formatter) -> None:
    """Message, keys and traceback are all looked through, and JSON stays JSON."""
    try:
        raise ConnectionError(f"redis://user:s3cret@queue refused {KEY}")
    except ConnectionError:
        failed = record(f"got {KEY}", url="redis://:s3cret@queue", exc_info=sys.exc_info())
    line = formatter.format(failed)
    assert "s3cret" not in line
    assert KEY not in line
    assert line.count(REDACTED) >= 4
    if isinstance(formatter, JsonFormatter):
        json.loads(line)


class Collecting(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged from INFO on, as it is written."""
    handler, ours = Collecting(), logging.getLogger("bar")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield handler.lines
    ours.removeHandler(handler)
    ours.setLevel(level)


@pytest.mark.anyio
async def test_a_request_leaves_one_line_for_each_state(lines: list[dict[str, Any]]) -> None:
    """Queued, running, succeeded: each once, with the job's id, and what one would ask next."""
    async with running(FakeEngine(num_slots=2)) as h:
        lines.clear()
        request_id = (await h.generate(class_id=1, num_images=2)).headers["x-request-id"]
        await h.client.get("/livez")
    queued, run, succeeded = lines
    assert ["job queued", "job running", "job succeeded"] == [line["message"] for line in lines]
    assert 1 == len({line["job"] for line in lines})
    assert request_id == queued["request"]
    assert (2, 2 * NUM_STEPS, "normal") == (queued["images"], queued["cost"], queued["priority"])
    assert (1, True) == (run["attempt"], run["queue_s"] >= 0)
    times = {"age_s", "queue_s", "generation_s", "decode_s", "encode_s", "device_s"}
    assert times < set(succeeded)
    assert 0 < succeeded["device_s"] <= succeeded["generation_s"]


@pytest.mark.anyio
async def test_a_refused_request_leaves_one_line(lines: list[dict[str, Any]]) -> None:
    """It says which request, how it was answered and why; nothing of what it contained."""
    async with running(FakeEngine(num_slots=2)) as h:
        lines.clear()
        reply = await h.generate(class_id=99, metadata={"note": "s3cret"})
        await h.client.get("/nowhere/s3cret")
    (line,) = lines
    assert ("answered", 400, "unknown_class") == (line["message"], line["status"], line["error"])
    assert ("POST", "/v1/generations") == (line["method"], line["handler"])
    assert reply.headers["x-request-id"] == line["request"]
    assert "s3cret" not in str(lines)


@pytest.mark.anyio
async def test_requests_at_the_same_time_keep_their_ids_apart(lines: list[dict[str, Any]]) -> None:
    """What is logged for one never carries the id of another."""
    async with running(FakeEngine(num_slots=2)) as h:
        lines.clear()
        replies = await asyncio.gather(*(h.generate(class_id=n) for n in range(8)))
    ids = {reply.json()["id"]: reply.headers["x-request-id"] for reply in replies}
    queued = {line["job"]: line["request"] for line in lines if line["message"] == "job queued"}
    assert ids == queued
