"""The document of a benchmark, rewritten as it goes on; and how a benchmark ends early.

In: samples. Out: a JSON file that can be read at any time. Knows nothing of what is measured.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softspec.app import interruption
from softspec.app.bench.core.spread import Summary

SCHEMA_VERSION = 1


class Results:
    """The document that is being written; `path` always holds a readable one. Cells and samples are dataclasses."""

    def __init__(self, path: Path, facts: Mapping[str, Any], summary: Summary) -> None:
        """`facts` are keys of the document: what was measured on what."""
        self._path = path
        self._summary = summary
        self._facts: dict[Any, dict[str, Any]] = {}
        self._samples: dict[Any, dict[str, list[Any]]] = {}
        self.document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": False,
            **facts,
            "cells": [],
        }
        self.write()

    def begin(self, cell: Any, ways: Sequence[str], **facts: Any) -> None:
        """From now on a cell with these ways, in this order; `facts` are further keys of it."""
        self._facts[cell] = facts
        self._samples[cell] = {way: [] for way in ways}

    def add(self, cell: Any, way: str, sample: Any) -> None:
        self._samples[cell][way].append(sample)

    def write(self, complete: bool = False) -> None:
        """Replace the file by what is known now; readers see the old one or the new one."""
        self.document["complete"] = complete
        self.document["cells"] = [
            {
                **asdict(cell),
                **self._facts[cell],
                **self._summary.of(samples),
                "samples": {way: [asdict(sample) for sample in found] for way, found in samples.items()},
            }
            for cell, samples in self._samples.items()
        ]
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self._path)


def interruptible(output: Path) -> AbstractContextManager[None]:
    """SIGINT and SIGTERM end a benchmark in the midst of a start too; `output` has what was measured until then."""
    return interruption.interruptible(f"interrupted; what was measured is in '{output}'")
