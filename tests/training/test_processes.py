"""Two processes that train one model, over gloo on this machine's loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.test_trainer import assert_same, final_state, rows
from tests.training.tiny_runs import generator_stage, make_trainer, trainer_config
from training.errors import TrainingError
from training.processes import OneProcess, find_processes

ROOT = Path(__file__).parents[2]


def together(
    folder: Path,
    stage: str = "tests.training.tiny_runs:generator_stage",
    *,
    count: int = 2,
    fatal_step: int | None = None,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """Train a tiny model on `count` processes."""
    options: dict[str, Any] = {"stage": stage, "settings": settings}
    if fatal_step is not None:
        options["fatal_step"] = fatal_step
    program = str(ROOT / "tests/training/tiny_processes.py")
    return torchrun(count, program, str(folder), json.dumps(options))


def torchrun(count: int, *program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in `count` processes."""
    pytest.importorskip("accelerate", reason="pip install 'bar-serve[train]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count),
        "--master-addr", "127.0.0.1", "--master-port", str(port), *program,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on one process that takes each batch in two parts."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    make_trainer(generator_stage(), folder, trainer_config().but(micro_batches=2)).fit()
    return folder


@pytest.mark.timeout(120)
def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    """Weights, optimiser, average and held-out metrics are bitwise those of one process that takes
    the batch in two parts."""
    done = together(tmp_path)
    assert 0 == done.returncode, done.stderr
    ours, theirs = final_state(tmp_path), final_state(alone)
    for part in ("model", "optimiser", "average", "num_averaged", "best"):
        assert_same(ours[part], theirs[part], part)
    held_out = [[row for row in rows(f) if row["split"] == "held_out"] for f in (tmp_path, alone)]
    assert held_out[0] == held_out[1]


@pytest.mark.timeout(180)
def test_killed_processes_resume_bitwise(alone: Path, tmp_path: Path) -> None:
    """After kill -9 of both in step 7 the same command goes on, to the same weights."""
    killed = together(tmp_path, fatal_step=7)
    assert killed.returncode
    assert f"exitcode  : {-signal.SIGKILL}" in killed.stderr
    done = together(tmp_path)
    assert 0 == done.returncode, done.stderr
    assert_same(final_state(tmp_path)["model"], final_state(alone)["model"])
    steps = [row["step"] for row in rows(tmp_path) if row["split"] == "train"]
    assert list(range(1, 13)) == steps


def test_gradients_travel_once_a_step(tmp_path: Path) -> None:
    """Of a batch in five parts four are held back; the last one brings the sum to the others."""
    calls: list[str] = []

    class Listening(OneProcess):
        def joined(self, module: nn.Module) -> nn.Module:
            module.register_forward_hook(lambda *_: calls.append("part"))
            return module

        @contextmanager
        def held_back(self, joined: Any) -> Iterator[None]:
            calls.append("(")
            yield
            calls.append(")")

    config = trainer_config(num_steps=1).but(micro_batches=5)
    make_trainer(generator_stage(), tmp_path, config, processes=Listening()).fit()
    assert 4 * ["(", "part", ")"] + ["part"] == calls


def test_batch_must_be_shared_evenly(tmp_path: Path) -> None:
    """A batch of ten cannot be shared by three processes: the message says what can."""

    class Three(OneProcess):
        count = 3

    with pytest.raises(TrainingError, match=r"batch of 10 .* 3 processes .* multiple of 3"):
        make_trainer(generator_stage(), tmp_path, processes=Three())


def test_without_torchrun_a_process_is_alone() -> None:
    """A plain command neither waits for others nor imports accelerate."""
    assert isinstance(find_processes("cpu"), OneProcess)
