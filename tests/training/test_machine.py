"""What a report says of the machine."""

import torch

from training.machine import describe_machine


def test_machine_is_described() -> None:
    """The processor with its memory, the device, threads and versions; processes if there are
    several."""
    alone = describe_machine(torch.device("cpu"), 1)
    assert {"processor", "device", "threads", "software"} == set(alone)
    assert "cores" in alone["processor"]
    assert "cpu" == alone["device"]
    assert f"torch {torch.__version__}" in alone["software"]
    assert "cpu, 4 processes" == describe_machine(torch.device("cpu"), 4)["device"]
