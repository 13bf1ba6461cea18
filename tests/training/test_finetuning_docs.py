"""docs/finetuning.md, executed: its script, and each of its commands at a few steps."""

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text("utf-8")
FEW_STEPS = [
    "--set", "training.num_steps=2", "--set", "training.batch_size=4",
    "--set", "training.optimiser.warmup_steps=1",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the page's commands, in order, without their comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def run(command: list[str], folder: Path) -> str:
    """Run a command of the page in `folder` and return what it printed."""
    program = {"bar": [sys.executable, "-m", "service"], "python": [sys.executable]}[command[0]]
    done = subprocess.run(
        [*program, *command[1:]],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, (command, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all of the page but its installation and its server."""
    folder = tmp_path_factory.mktemp("page")
    (script,) = blocks("python")
    shorter = script.replace("PER_LETTER = 5", "PER_LETTER = 1").replace(
        "string.ascii_letters", "string.ascii_letters[:6]"
    )
    assert shorter != script
    (folder / "glyphs.py").write_text(shorter, "utf-8")
    for command in commands():
        if command[0] == "python" or command[:2] in (["bar", "sample"], ["bar", "export"]):
            run(command, folder)
        elif command[:2] in (["bar", "train"], ["bar", "finetune"]):
            run([*command, *FEW_STEPS], folder)
    return folder


@pytest.mark.timeout(300)
def test_page_names_every_step() -> None:
    """The page installs, makes pictures, trains, finetunes, also with adapters, samples, exports,
    serves and asks."""
    verbs = [" ".join(command[:2]) for command in commands()]
    assert [
        "pip install", "python glyphs.py", "bar train", "bar finetune",
        "pip install", "bar finetune", "bar sample", "bar sample", "bar export", "bar serve", "curl http://127.0.0.1:8000/v1/generations",
    ] == verbs  # fmt: skip


@pytest.mark.timeout(300)
def test_pages_commands_leave_what_it_promises(folder: Path) -> None:
    """Five classes, a grid, a model with a card: all where the page says."""
    assert 5 == len(list((folder / "pictures").iterdir()))
    assert (folder / "samples.png").stat().st_size
    assert (folder / "samples-lora.png").stat().st_size
    adapters = folder / "runs" / "typefaces-lora" / "adapter" / "adapter_model.safetensors"
    assert 173_088 * 4 < adapters.stat().st_size < 173_088 * 4 + 20_000
    card = (folder / "typefaces" / "README.md").read_text("utf-8")
    assert "bold, italic, sans, serif, typewriter" in card


@pytest.mark.timeout(300)
def test_pages_model_is_served_by_name(folder: Path) -> None:
    """The page's request to the page's server gives a PNG of the class that it names."""
    serve = next(command for command in commands() if command[:2] == ["bar", "serve"])
    curl = next(command for command in commands() if command[0] == "curl")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [port if part == "8000" else part for part in serve[1:]]
    server = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url, body = curl[1].replace("8000", port), curl[curl.index("-d") + 1]
        answer = ask(server, url, body)
    finally:
        server.terminate()
        server.wait(30)
    assert 200 == answer.status_code
    assert answer.content.startswith(b"\x89PNG")
    assert b"serif" in answer.content


def ask(server: subprocess.Popen[bytes], url: str, body: str) -> httpx.Response:
    """Ask as soon as the server answers."""
    headers = {"content-type": "application/json", "accept": "image/png"}
    deadline = time.monotonic() + 120
    with httpx.Client(trust_env=False, timeout=60) as client:
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            try:
                answer = client.post(url, content=body, headers=headers)
                if answer.status_code != 503:
                    return answer
            except httpx.TransportError:
                pass
            time.sleep(0.2)
