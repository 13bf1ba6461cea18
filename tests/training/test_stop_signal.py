"""Signals as requests."""

import signal

import pytest

from training.stop_signal import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request(number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C set the flag; afterwards the old handlers are back."""
    before = signal.getsignal(number)
    with StopSignal() as stop:
        states = [stop.requested]
        signal.raise_signal(number)
        states.append(stop.requested)
        assert [False, True] == states
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_second_ctrl_c_interrupts() -> None:
    """Who presses Ctrl-C twice does not want to wait for a step."""
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
