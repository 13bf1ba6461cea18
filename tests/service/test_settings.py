"""Facts of the settings: flags over environment over defaults, and no typo unnoticed."""

import pytest
from pydantic import ValidationError

from service.errors import StartupError
from service.settings import Settings, environment_for


def test_flags_win_over_the_environment_over_defaults() -> None:
    """Each setting comes from its flag, else its variable, else its default."""
    environ = {"BAR_PORT": "9000", "BAR_MODEL": "bar-b", "HOME": "/root"}
    settings = Settings.load({"port": "9001", "host": None}, environ)
    assert (9001, "bar-b", "127.0.0.1") == (settings.port, settings.model, settings.host)


@pytest.mark.parametrize(("flags", "environ", "message"), [
    ({"port": "http"}, {}, r"^--port: .*integer.*'http'"),
    ({}, {"BAR_PORT": "tcp://10.0.0.1:80"}, r"^BAR_PORT: .*integer.*'tcp://10.0.0.1:80'"),
    ({"num_slots": "-1"}, {}, r"^--num-slots: .*greater than or equal to 0.*'-1'"),
    ({"dtype": "float16"}, {}, r"^--dtype: .*'auto'.*'float16'"),
    ({"target_step_s": "inf"}, {}, r"^--target-step-s: .*finite"),
    ({"max_timeout_s": "nan"}, {}, r"^--max-timeout-s: .*finite"),
    ({"log_level": "loud"}, {}, r"^--log-level: .*'debug'.*'loud'"),
    ({"default_timeout_s": "700"}, {}, r"700 is longer than max_timeout_s 600"),
    ({}, {"BAR_PROT": "80"}, r"no setting is named BAR_PROT; the nearest is BAR_PORT"),
])  # fmt: skip
def test_a_wrong_setting_is_named_in_one_line(
    flags: dict[str, str], environ: dict[str, str], message: str
) -> None:
    """The message names the flag or the variable, and what it was."""
    with pytest.raises(StartupError, match=message) as error:
        Settings.load(flags, environ)
    assert "\n" not in str(error.value)


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after the start."""
    settings = Settings.load({}, {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


def test_the_server_is_private_unless_told_otherwise() -> None:
    """By default only this machine can reach it."""
    assert "127.0.0.1" == Settings.load({}, {}).host


def test_every_setting_says_what_it_is() -> None:
    """Help texts are made from the descriptions."""
    assert all(field.description for field in Settings.model_fields.values())


def test_a_child_process_gets_no_settings_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment sets for this process is not what another one that it starts is told."""
    monkeypatch.setenv("BAR_PORT", "1")
    monkeypatch.setenv("OTHER", "kept")
    environ = environment_for({"model": "digits"})
    assert ("kept", "digits") == (environ["OTHER"], environ["BAR_MODEL"])
    assert "BAR_PORT" not in environ
