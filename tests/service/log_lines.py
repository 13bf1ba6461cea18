"""What one logger said: libraries and threads may say something of their own at any time."""

import logging

import pytest


def said(
    caplog: pytest.LogCaptureFixture, logger: str, level: int = logging.WARNING
) -> list[logging.LogRecord]:
    """Return what `logger` has said in this test, at `level` or above."""
    return [line for line in caplog.records if line.name == logger and line.levelno >= level]
