"""Facts of the log lines: keys survive as text and as JSON."""

import json
import logging
import sys

from service.logs import JsonFormatter, TextFormatter


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
