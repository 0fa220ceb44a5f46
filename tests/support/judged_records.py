"""Records of models whose members are known, for metrics that have a truth to be compared with."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softspec.evaluation.columns import Columns, read_columns
from softspec.evaluation.records import Header, Record, ScoresWriter

TEXTS = ("yes", "no", "perhaps", "never", "always")


def header(num_rows: int, num_members: int = 2, **changes: Any) -> Header:
    known = {
        "model": "known",
        "model_kind": "ensemble",
        "model_digest": "m",
        "log_weights": (-math.log(num_members),) * num_members,
        "data": "data.jsonl",
        "data_digest": "d",
        "num_rows": num_rows,
    }
    return Header.model_validate({**known, **changes})


def record(row: int, members: Sequence[Sequence[float]], **labels: Any) -> Record:
    """A row from what members think of its choices (K, C), which need not sum to 1; they weigh alike."""
    mixture = [_log(sum(column) / len(members)) for column in zip(*members, strict=True)]
    size = len(mixture)
    known: dict[str, Any] = {
        "form": "choices",
        "item": f"i{row}",
        "choices": TEXTS[:size],
        "num_tokens": (1,) * size,
        **labels,
    }
    logs = tuple(tuple(map(_log, own)) for own in members)
    return Record(row=row, log_probs=tuple(mixture), member_log_probs=logs, **known)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def random_records(num_rows: int, num_members: int = 3, num_choices: int = 4, seed: int = 0) -> list[Record]:
    """Rows of members that differ, with answers drawn from their mixture."""
    generator = np.random.default_rng(seed)
    found = []
    for row in range(num_rows):
        members = generator.dirichlet(np.full(num_choices, 0.7), num_members).clip(1e-6)
        members /= members.sum(1, keepdims=True)
        answer = int(generator.choice(num_choices, p=members.mean(0)))
        found.append(record(row, members.tolist(), answer=answer))
    return found


def columns(records: Sequence[Record], length_normalise: bool = False, **changes: Any) -> Columns:
    members = len(records[0].member_log_probs)
    return read_columns(header(len(records), members, **changes), records, length_normalise)


def written(path: Path, records: Sequence[Record], **changes: Any) -> Path:
    with ScoresWriter(
        path, header(num_members=len(records[0].member_log_probs), **{"num_rows": len(records), **changes})
    ) as writer:
        for each in records:
            writer.add(each)
    return path
