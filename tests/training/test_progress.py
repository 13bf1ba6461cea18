"""The progress line."""

import io

import pytest

from training.progress import Progress, format_duration


class Clock:
    """A clock that stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_time_left_counts_from_where_the_run_went_on() -> None:
    """A run resumed at step 60 that did 20 steps in 10 s has 10 s left for the next 20."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress("tokenizer", 60, 100, stream, clock)
    clock.now_s = 10.0
    progress.show(80, {"loss": 0.12345})
    assert "tokenizer 80/100  80%  loss 0.1235  10s left\n" == stream.getvalue()


def test_what_came_before_the_first_step_is_no_measure() -> None:
    """Two of four steps in 2 s, after a minute of measuring, leave 2 s, and took 64 s in all."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress("tokenizer", 0, 4, stream, clock)
    clock.now_s = 60.0
    progress.begin()
    clock.now_s = 62.0
    progress.show(2, {})
    clock.now_s = 64.0
    progress.show(4, {})
    assert ["2s left", "took 1m04s"] == [
        line[-len(text) :]
        for line, text in zip(
            stream.getvalue().splitlines(), ["2s left", "took 1m04s"], strict=True
        )
    ]


def test_lines_in_a_log_are_rare_but_the_last_one_comes() -> None:
    """Into a file a line goes every 15 s, and always at the end."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress("generator", 0, 100, stream, clock)
    for step in range(1, 101):
        clock.now_s = step / 5
        progress.show(step, {})
    lines = stream.getvalue().splitlines()
    assert ["generator 1/100", "generator 76/100", "generator 100/100"] == [
        " ".join(line.split()[:2]) for line in lines
    ]
    assert lines[-1].endswith("took 20s")


def test_terminal_line_rewrites_itself() -> None:
    """On a terminal the line starts at the left edge and ends only at the last step."""
    clock, stream = Clock(), Terminal()
    progress = Progress("generator", 0, 2, stream, clock)
    progress.show(1, {})
    clock.now_s = 1.0
    progress.show(2, {})
    assert 2 == stream.getvalue().count("\r\x1b[K")
    assert 1 == stream.getvalue().count("\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds: float, text: str) -> None:
    """Durations show their two largest units."""
    assert text == format_duration(seconds)
