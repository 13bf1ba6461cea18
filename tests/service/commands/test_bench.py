"""Facts of `bar bench`: it finds its benchmarks, and wrong usage is status 2."""

import pytest

from service.cli import main as bar
from service.commands.bench import BENCHMARKS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_benchmarks(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a name or when asked, it says what can be measured."""
    assert 0 == main(arguments)
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`bar bench NAME --help` prints how to use it, and is no error."""
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert 0 == stop.value.code
    assert f"usage: bar bench {name}" in capsys.readouterr().out


def test_an_unknown_benchmark_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and the benchmarks that there are, on standard error."""
    assert 2 == bar(["bench", "engin"])
    shown = capsys.readouterr()
    assert "" == shown.out
    assert "no benchmark 'engin'" in shown.err
    assert "http" in shown.err


@pytest.mark.parametrize(("arguments", "message"), [
    (["engine", "--batch", "0"], "--batch: must be a whole number from 1 on, got '0'"),
    (["engine", "--images", "-3"], "--images: must be a whole number from 1 on, got '-3'"),
    (["engine", "--runs", "x"], "--runs: must be a whole number from 1 on, got 'x'"),
    (["engine", "--dtype", "half"], "--dtype: invalid choice: 'half'"),
    (["engine", "--against", "me"], "--against: invalid choice: 'me'"),
    (["engine", "--speed"], "unrecognized arguments: --speed"),
    (["http", "--rate", "0"], "--rate: must be a number above 0, got '0'"),
    (["http", "--rate", "nan"], "--rate: must be a number above 0, got 'nan'"),
    (["http", "--goal-ms", "-1"], "--goal-ms: must be a number above 0, got '-1'"),
    (["http", "--requests", "0"], "--requests: must be a whole number from 1 on, got '0'"),
    (["http", "--concurrency", "0"], "--concurrency: must be a whole number from 1 on"),
    (["http", "--url", "127.0.0.1:80"], "--url: must be an address like http://HOST:PORT, got"),
    (["http", "--url", "http://127.0.0.1:99999"], "--url: must be an address like"),
    (["http", "--url", "http://["], "--url: must be an address like"),
    (["http", "--rate", "1", "--concurrency", "2"], "not allowed with argument"),
])  # fmt: skip
def test_wrong_options_are_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and the option with what is wrong about it."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert 2 == stop.value.code
    shown = capsys.readouterr()
    assert "" == shown.out
    assert message in shown.err
