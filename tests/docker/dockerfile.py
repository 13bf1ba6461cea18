"""docker/Dockerfile as stages and instructions, read without Docker."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    text: str

    @property
    def is_exec_form(self) -> bool:
        return self.text.startswith("[")

    def words(self) -> list[str]:
        """Split an exec form as JSON, anything else as a shell would."""
        return list(json.loads(self.text)) if self.is_exec_form else shlex.split(self.text)


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)

    def of(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]


class Dockerfile:
    """A Dockerfile's global arguments and its stages by name."""

    def __init__(self, text: str) -> None:
        self.arguments: dict[str, str] = {}
        self.stages: dict[str, Stage] = {}
        for each in _instructions(text):
            if each.name == "FROM":
                parent, _, name = each.words()
                self.stages[name] = Stage(name, parent)
            elif self.stages:
                next(reversed(self.stages.values())).instructions.append(each)
            else:
                name, _, value = each.text.partition("=")
                self.arguments[name] = value

    def lineage(self, name: str) -> Iterator[Stage]:
        """Yield the stages that a target is made of, the first one first."""
        stage = self.stages[name]
        if stage.parent in self.stages:
            yield from self.lineage(stage.parent)
        yield stage

    def last(self, target: str, name: str) -> Instruction:
        """Return the instruction that is in force in `target`."""
        return [each for stage in self.lineage(target) for each in stage.of(name)][-1]

    def environment(self, target: str) -> dict[str, str]:
        """Return the variables that a container of `target` starts with."""
        stages = self.lineage(target)
        pairs = [word for stage in stages for each in stage.of("ENV") for word in each.words()]
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def targets(self) -> list[str]:
        """The stages that images are made of: those with a command."""
        return [name for name, stage in self.stages.items() if stage.of("CMD")]


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield Instruction(name, rest.strip())
