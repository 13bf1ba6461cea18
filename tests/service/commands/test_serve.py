"""Facts of `bar serve` as a process: what it prints, its images, its end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.commands.generate import main as generate_main
from tests.service.key_files import one_key


@contextmanager
def serving(model: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a server of the tiny model on a free port."""
    command = [sys.executable, "-m", "service", "serve", "--model", str(model),
               "--port", "0", "--num-slots", "4", "--threads", "1", *flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()


@pytest.fixture
def server(tiny_model_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A server to which everybody on this machine has access."""
    with serving(tiny_model_dir) as process:
        yield process


def read_start(server: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return the server's URL and its first example, printed when it is ready."""
    assert server.stdout is not None
    greeting = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", greeting)
    assert found, greeting
    assert "Ready. Try:\n" == server.stdout.readline()
    return found[0], server.stdout.readline() + server.stdout.readline()


def test_the_printed_example_gives_an_image(
    server: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """What the server tells a user to type works as it is."""
    _, example = read_start(server)
    subprocess.run(example.replace("curl", "curl -sS", 1), shell=True, cwd=tmp_path, check=True)
    with Image.open(tmp_path / "image.png") as image:
        assert (8, 8) == image.size


def test_with_keys_the_printed_example_shows_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    """It works with the key in $KEY, and not without."""
    keys = tmp_path / "keys.json"
    key = one_key(keys)
    with serving(tiny_model_dir, "--api-keys-file", str(keys)) as server:
        _, example = read_start(server)
        for value, kind in (("", b'{"error"'), (key, b"\x89PNG")):
            subprocess.run(example.replace("curl", "curl -sS", 1), shell=True, cwd=tmp_path,
                           env={**os.environ, "KEY": value}, check=True)  # fmt: skip
            assert (tmp_path / "image.png").read_bytes().startswith(kind)


def test_server_and_command_line_make_the_same_image(
    server: "subprocess.Popen[str]", tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A request gives the same pixels over HTTP, in company, as `bar generate` does alone."""
    url, _ = read_start(server)
    body = {"class": "bee", "seed": 11, "num_images": 3, "order": "random"}
    data = httpx.post(f"{url}/v1/generations", json=body, timeout=60).json()["data"]
    single = httpx.post(
        f"{url}/v1/generations", json={"class": "bee", "seed": 12, "order": "random"},
        headers={"accept": "image/png"}, timeout=60,
    )  # fmt: skip
    output = tmp_path / "bee.png"
    generate_main(["--model", str(tiny_model_dir), "--class", "bee", "--seed", "12",
                   "--order", "random", "--num-slots", "4", "--threads", "1",
                   "--output", str(output)])  # fmt: skip
    assert output.read_bytes() == single.content
    assert 12 == data[1]["seed"]
    assert single.headers["x-seed"] == "12"


def test_sigterm_ends_the_process_with_status_0(server: "subprocess.Popen[str]") -> None:
    """A stopped server has not failed."""
    read_start(server)
    server.send_signal(signal.SIGTERM)
    assert 0 == server.wait(60)


def test_sigterm_while_loading_does_not_wait(server: "subprocess.Popen[str]") -> None:
    """Neither has one that was stopped before its model was there."""
    assert server.stdout is not None
    server.stdout.readline()
    server.send_signal(signal.SIGTERM)
    assert 0 == server.wait(60)


def test_a_taken_port_is_one_line(server: "subprocess.Popen[str]", tiny_model_dir: Path) -> None:
    """A second server on the same port says so, and what to do."""
    url, _ = read_start(server)
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "service", "serve", "--model", str(tiny_model_dir),
               "--port", port]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    assert (
        f"bar serve: cannot listen on 127.0.0.1 port {port}: it is in use already; choose another "
        "with --port\n"
    ) == done.stderr


BROKEN_DEVICE = """
import sys, types
from tests.service.fakes import NUM_STEPS, FakeEngine

def explode():
    if len(engine.batch_sizes) > NUM_STEPS:
        raise RuntimeError("CUDA error: device-side assert triggered")

engine = FakeEngine()
engine.fault = explode
loader = types.SimpleNamespace(load_engine=lambda info, settings: engine)
sys.modules["service.engine_loader"] = loader

from service.cli import main
sys.exit(main(["serve", "--port", "0", "--model", sys.argv[1]]))
"""


def test_a_broken_device_ends_the_process_with_status_1(tiny_model_dir: Path) -> None:
    """The client is told to come again, one line is logged, and whoever watches restarts it."""
    command = [sys.executable, "-c", BROKEN_DEVICE, str(tiny_model_dir)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url, _ = read_start(process)
            reply = httpx.post(f"{url}/v1/generations", json={"class_id": 1}, timeout=60)
            assert (503, "worker_lost") == (reply.status_code, reply.json()["error"]["code"])
            assert 1 == process.wait(60)
        finally:
            process.kill()
        assert process.stderr is not None
        errors = [line for line in process.stderr if " ERROR " in line]
    assert 1 == len(errors)
    assert "device-side assert" in errors[0]
