"""What was scored: a line of JSON for each row, and a table about all of them.

In: scores in the order of their rows. Out: a file that appears under its name once it is complete, and lines for the
terminal. Knows no engine.
"""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

Score = dict[str, Any]
QUANTILES = (10, 50, 90)
SHOWN = ("nll", "nll per token", "mutual_information", "max_epistemic", "disagreement")


@dataclass(frozen=True)
class Wanted:
    """What is to become of the scores: a file or none, and whether it has every token's numbers."""

    output: Path | None
    detail: Literal["summary", "tokens"] = "summary"
    overwrite: bool = False


def partial_of(path: Path) -> Path:
    """Where the lines are until all are there."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def opened(path: Path | None) -> Iterator[TextIO | None]:
    """The file to write lines to, which gets its name when the block ends well; None where none is wanted."""
    if path is None:
        yield None
        return
    with partial_of(path).open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial_of(path).replace(path)


def line(row: int, scores: Sequence[Score]) -> str:
    """One row's scores as they are written; rows are counted from 0."""
    return json.dumps({"row": row, "scores": scores}, ensure_ascii=False, separators=(",", ":")) + "\n"


class Summary:
    """The numbers of all answers, eight bytes each."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0
        self._numbers = {name: array("d") for name in SHOWN}

    def add(self, scores: Iterable[Score]) -> None:
        """Count one more row."""
        self.rows += 1
        for score in scores:
            self.tokens += score["num_tokens"]
            nll = 0.0 - score["log_prob"]
            known = {"nll": nll, "nll per token": nll / score["num_tokens"], **score}
            for name, numbers in self._numbers.items():
                numbers.append(known[name])

    def table(self) -> str:
        """Means and quantiles; nats, but for the disagreement."""
        answers = len(self._numbers["nll"])
        head = "".join(f"{title:>9}" for title in ("mean", *(f"{percent} %" for percent in QUANTILES)))
        lines = [f"{self.rows:,} rows, {answers:,} answers, {self.tokens:,} tokens", f"{'':20}{head}"]
        for name, numbers in self._numbers.items():
            ordered = sorted(numbers)
            cells = [sum(ordered) / answers, *(ordered[(answers - 1) * q // 100] for q in QUANTILES)]
            lines.append(f"{name:20}" + "".join(f"{cell:9.3f}" for cell in cells))
        return "\n".join(lines)
