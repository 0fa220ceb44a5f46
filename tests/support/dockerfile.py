"""A Dockerfile as data: its stages, and what they set and run.

In: a file. Out: instructions in their order. Knows of the syntax what this project's files use.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """What stands between one FROM and the next: the image it begins with, its name, and (instruction, rest) pairs."""

    image: str
    name: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        """What follows this instruction, each time."""
        return [rest for each, rest in self.instructions if each == instruction]

    def the(self, instruction: str) -> str:
        """What follows the only instruction of this name."""
        (found,) = self.all(instruction)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets; values may name variables that are set elsewhere."""
        pairs = [word.partition("=") for rest in self.all("ENV") for word in shlex.split(rest)]
        return {name: value for name, _, value in pairs}

    @property
    def commands(self) -> list[str]:
        """The shell commands of RUN, without Docker's own flags."""
        return [re.sub(r"^(--\S+ +)+", "", rest) for rest in self.all("RUN")]

    def words(self, instruction: str) -> list[str]:
        """The command that an instruction gives as a list of JSON."""
        rest = self.the(instruction)
        return list(json.loads(rest[rest.index("[") :]))


def stages_of(path: Path) -> list[Stage]:
    """The stages of a Dockerfile; the last one is the image."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found: list[list[tuple[str, str]]] = []
    for line in lines:
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, rest.strip()))
    return [_stage(instructions) for instructions in found]


def _stage(instructions: list[tuple[str, str]]) -> Stage:
    (_, source), *rest = instructions
    image, _, name = source.partition(" AS ")
    return Stage(image, name, tuple(rest))
