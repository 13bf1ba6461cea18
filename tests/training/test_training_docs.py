"""docs/training.md names what there is."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from service.cli import COMMANDS
from training.presets import GENERATORS, TOKENIZERS
from training.run_config import GeneratorRun, TokenizerRun
from training.section import Section

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")


def setting_names(section: type[Section], prefix: str = "") -> set[str]:
    """Return the dotted names of all settings of a section."""
    names = set()
    for name, field in section.model_fields.items():
        inner = field.annotation
        names.add(f"{prefix}{name}")
        if is_dataclass(inner):  # an architecture, or sampling settings
            names |= {f"{prefix}{name}.{part.name}" for part in fields(inner)}
        if isinstance(inner, type) and issubclass(inner, Section):
            names |= setting_names(inner, f"{prefix}{name}.")
    return names


def test_page_lists_the_presets() -> None:
    """Both rows are the presets, in order."""
    for kind, presets in (("tokenizers", TOKENIZERS), ("generators", GENERATORS)):
        row = re.search(rf"^\| {kind} \| (.*) \|$", PAGE, re.MULTILINE)
        assert row
        assert list(presets) == re.findall(r"`([^`]+)`", row[1])


def test_settings_on_the_page_exist() -> None:
    """Every setting that the table names is one of a run."""
    known = setting_names(TokenizerRun) | setting_names(GeneratorRun)
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+[.=][a-z_*]+)`", row)}
    assert len(named) > 8
    unknown = {name for name in named if name.partition("=")[0].removesuffix(".*") not in known}
    assert set() == unknown


def test_commands_on_the_page_exist() -> None:
    """Every `bar` command of the first table is one."""
    rows = re.findall(r"^\| `bar ([a-z]+)", PAGE, re.MULTILINE)
    assert len(rows) >= 8
    assert set() == set(rows) - set(COMMANDS)
