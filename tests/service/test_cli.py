"""Facts of the command line: quick help, one line for each error, a status for scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import __version__
from service.cli import COMMANDS, main
from service.commands.flags import SECTIONS
from service.settings import Settings


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `bar` in a process of its own."""
    command = [sys.executable, "-m", "service", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BAR_")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, **environ}
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments or when asked, `bar` says what it can do."""
    assert 0 == main(arguments)
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 100


def test_help_imports_no_framework() -> None:
    """`bar --help` needs neither torch nor a web framework nor numpy."""
    script = (
        "import sys, service.cli; service.cli.main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'fastapi', 'pydantic', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`bar COMMAND --help` prints how to use it, and is no error."""
    try:
        status = main([name, "--help"])
    except SystemExit as stop:  # argparse ends that way
        status = int(stop.code or 0)
    assert 0 == status
    assert f"usage: bar {name}" in capsys.readouterr().out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`bar --version` says which software this is."""
    assert 0 == main(["--version"])
    assert f"bar-serve {__version__}\n" == capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and the commands that there are."""
    assert 2 == main(["sreve"])
    assert (
        "no command 'sreve'; the commands are serve, worker, queue, generate"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("arguments", "message"), [
    (["serve", "--model", "digit"], "bar serve: there is no model and no directory 'digit'"),
    (["serve", "--model", "."], "bar serve: . is no model directory: no config.json"),
    (["serve", "--port", "99999"], "bar serve: --port: Input should be less than or equal"),
    (["serve", "--host", "0.0.0.0"], "bar serve: --host 0.0.0.0 lets other machines in"),
    (["serve", "--api-keys-file", "none"], "bar serve: the API keys in none cannot be used"),
    (["generate", "--class", "1", "--output", "x.gif"], "bar generate: --output x.gif: "),
    (["generate", "--class", "1", "--model", "nope"], "bar generate: there is no model"),
])  # fmt: skip
def test_an_error_is_one_line_and_status_1(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What a user can cause is told in one line, without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAR_PORT", "0")
    assert 1 == main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert 1 == error.count("\n")


def test_a_mistyped_variable_is_one_line_too() -> None:
    """The environment is checked when a command needs it."""
    done = run("models", BAR_CACHEDIR="x")
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("bar models: no setting is named BAR_CACHEDIR; the nearest is")


@pytest.mark.parametrize("arguments", [["generate", "--class", "3"], ["serve", "--port", "0"]])
def test_no_torch_is_one_line(arguments: list[str]) -> None:
    """Where torch is not installed, as beside the API, a command says so and what to do."""
    script = (
        "import sys; sys.modules['torch'] = None; from service.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    assert "Traceback" not in done.stderr
    assert f"bar {arguments[0]}: torch is not installed here" in done.stderr.splitlines()[-1]


def test_every_setting_stands_under_one_heading() -> None:
    """Where there are many flags they stand in groups, and none is forgotten or there twice."""
    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted(Settings.model_fields) == sorted(placed)


@pytest.mark.parametrize(("command", "says", "keeps_to_itself"), [
    ("serve", "who is let in:", ""),
    ("worker", "a worker needs one", "in this process's memory"),
    ("queue", "retry ID    admit one of them again", "in this process's memory"),
    ("health", "port of bar serve", "0 takes a free one"),
    ("generate", "model that makes them", "separated by commas"),
])  # fmt: skip
def test_help_says_what_flags_mean_here(
    command: str, says: str, keeps_to_itself: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag that several commands have does not speak of what another does with it."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert 0 == stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(says.split()) in shown
    assert not keeps_to_itself or keeps_to_itself not in shown
