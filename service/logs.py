"""Log lines: one per change of state, as `message key=value …` or as one JSON object.

The keys are those that a call hands over as `extra`, so that a line can be searched for by job or
request without parsing prose; what is logged while a request is answered carries its id by itself.
Secrets are cut out of the finished line, whatever they came in: a message, a key or a traceback.
Configured once per process, by the command that starts it.
"""

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.api_keys import KEY

# The one thing that is known everywhere without being handed on, and only lines of the log read it.
request_id: ContextVar[str] = ContextVar("request_id")

REDACTED = "[redacted]"
_QUOTES = r"""[\\"'\]\s]*"""  # between a header's name and its value, in any notation
_SECRETS = re.compile(
    rf"""
      (?P<head> \b (?: authorization | x-api-key | api[_-]key | password | passwd | secret )
               {_QUOTES} [:=,] {_QUOTES} (?: b['"] )? (?: (?:bearer|basic) \s+ )? )
      [^\s"'\\,;&)}}\]]+
    | (?P<scheme> \b bearer \s+ ) [\w.~+/=-]+
    | (?P<user> :// [^\s/:@"']* : ) [^\s/@"']+ (?= @ )
    | \b {KEY.pattern}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

jobs_logger = logging.getLogger("bar.jobs")


def configure(level: str, *, as_json: bool) -> None:
    """Send the logs of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The server below tells of itself what our own lines say already.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for library in ("asyncio", "httpx", "huggingface_hub", "opentelemetry", "PIL"):
        logging.getLogger(library).setLevel(logging.WARNING)


def log_job(job_id: str, state: str, **fields: object) -> None:
    """Log that a job has entered `state`; times in `fields` are rounded."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()}
    jobs_logger.info("job %s", state, extra={"job": job_id, **rounded})


def redact(text: str) -> str:
    """Return `text` without keys, passwords and the values of headers that carry them."""
    return _SECRETS.sub(_cut, text)


def _cut(found: "re.Match[str]") -> str:
    return (found["head"] or found["scheme"] or found["user"] or "") + REDACTED


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    extras = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if "request" not in extras and (current := request_id.get("")):
        extras["request"] = current
    return extras


class TextFormatter(logging.Formatter):
    """`time level logger: message key=value …`, a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Append the record's keys to its message."""
        pairs = "".join(f" {key}={value}" for key, value in _extras(record).items())
        return super().formatMessage(record) + pairs

    def format(self, record: logging.LogRecord) -> str:
        """Render the record without secrets."""
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record, its keys and its traceback, without secrets."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(entry, default=str))
