"""The journal of a selection: what was tried, what it cost and what came of it, kept so that nothing is done twice.

In: facts, as they become known. Out: `selection.json`, always whole, and one table of log-likelihoods for every scored
configuration beside it. Decides nothing.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softspec.errors import ConfigError
from softspec.train.loop.folder import MARGINS_NAME, SELECTION_NAME, RunFolder
from softspec.train.result.export import storing
from softspec.train.selection.plan import Configuration

TABLES = "tables"


class Journal:
    """A folder with the journal and the unfinished configurations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}

    @property
    def margins(self) -> Path:
        """The file with what the base makes of preferences."""
        return self.path / MARGINS_NAME

    def begin(self, settings: Mapping[str, Any], plan: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
        """Take up the journal that is there, or begin one; returns whether there was one.

        Raises:
            ConfigError: the one that is there has other settings, or is damaged.
        """
        found = self._read()
        fresh = {"settings": dict(settings), "plan": dict(plan), "data": dict(data)}
        for part, now in fresh.items() if found else ():
            before = found.get(part, {})
            for key in [*now, *before]:
                if now.get(key) != before.get(key):
                    raise ConfigError(
                        f"cannot go on: {part} {key} is {json.dumps(now.get(key))}, but the selection in '{self.path}' "
                        f"began with {json.dumps(before.get(key))}; change it back, or remove that folder"
                    )
        self.content = {**fresh, "configurations": {}, "learned": []}
        self.write()
        return bool(found)

    def run_of(self, each: Configuration) -> RunFolder:
        """The folder in which a configuration is trained."""
        return RunFolder(self.path / each.name)

    def table(self, each: Configuration, step: int) -> dict[str, Any] | None:
        """What `keep` was given; None if it was not."""
        file = self._table(each, step)
        return torch.load(file, weights_only=True) if file.exists() else None

    def remembered(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` returned the first time."""
        file = self.path / TABLES / f"{name}.json"
        if not file.exists():
            content = json.dumps(compute())
            with storing(file):
                file.parent.mkdir(exist_ok=True)
                temporary = file.with_suffix(".new")
                temporary.write_text(content, encoding="utf-8")
                os.replace(temporary, file)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def has_scored(self, each: Configuration) -> bool:
        """Whether a configuration was scored at some step."""
        return any((self.path / TABLES).glob(f"{each.name}_at-*.pt"))

    def keep(self, each: Configuration, step: int, loglik: Tensor | None, facts: Mapping[str, Any]) -> None:
        """Keep what a configuration came to after so many steps; without a table it cannot go on."""
        file = self._table(each, step)
        with storing(file):
            file.parent.mkdir(exist_ok=True)
            temporary = file.with_suffix(".new")
            torch.save({"loglik": loglik, **facts}, temporary)
            os.replace(temporary, file)

    def note(self, each: Configuration, **facts: Any) -> None:
        """Add facts about a configuration; those of `rungs` are appended if they are of a new one."""
        known = self.content["configurations"].setdefault(
            each.name,
            {
                "num_members": each.num_members,
                "renyi_alpha": each.renyi_alpha,
                "rank": each.shape.rank,
                "layers": each.shape.layers,
                "steps": each.steps,
                "starts_from": None,
                "adapter_steps": 0,
                "seconds": 0.0,
                "rungs": [],
                "verdict": "",
            },
        )
        known["rungs"] += [rung for rung in facts.pop("rungs", []) if rung not in known["rungs"]]
        known.update(facts)
        self.write()

    def learn(self, sentence: str) -> None:
        """Add a sentence about what was learned."""
        self.content["learned"].append(sentence)
        self.write()

    def write(self) -> None:
        """Write `selection.json`; whoever reads it sees the old one or the new one."""
        file = self.path / SELECTION_NAME
        with storing(file):
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".new")
            temporary.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, file)

    def forget(self, each: Configuration) -> None:
        """Free the room of a configuration that goes no further."""
        shutil.rmtree(self.run_of(each).path, ignore_errors=True)

    def _table(self, each: Configuration, step: int) -> Path:
        return self.path / TABLES / f"{each.name}_at-{step}.pt"

    def _read(self) -> dict[str, Any]:
        file = self.path / SELECTION_NAME
        if not file.exists():
            return {}
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return {part: dict(content[part]) for part in ("settings", "plan", "data")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{file}' cannot be read: remove '{self.path}' and start again") from error
