"""A run whose truth is known, for reports: a log of training, scores of two sources that contradict each other."""

import json
import math
from pathlib import Path
from typing import Any

from softspec.artefact.manifest import load_manifest
from softspec.evaluation.rows import file_digest
from softspec.evaluation.score import ensemble_digest
from softspec.maths.answer import AnswerUncertainty
from tests.support.judged_records import record, written

HOSTILE = '<script>document.title="broken"</script> $x_1$ _under שלום עולם 😀 \u202e\x07'
LONG = "A very long prompt. " * 2000


def log_training(directory: Path, steps: int = 40, members: int = 2) -> None:
    """A log in which routing perplexity falls from K to 1, and member 0 takes 3/4."""
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        lines.append(
            {
                "step": step,
                "renyi_alpha": 0.8,
                "loss": 3 - 2 * done,
                "mixture_nll": 3 - 2 * done,
                "member_nll": 3 - done,
                "load": [0.5 + done / 4, *[(0.5 - done / 4) / (members - 1)] * (members - 1)],
                "routing_perplexity": members - (members - 1) * done,
                "gradient_norms": [1.0 + done] * members,
                "starved": [],
                "seconds": 0.5,
            }
        )
    lines.append({"step": steps, "held_out": {"mixture_nll": 1.25, "base_nll": 4.0}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "training.jsonl").write_text(text)


def scored_rows(directory: Path, run: Path, rows: int = 40, **changes: Any) -> tuple[Path, Path]:
    """Data and their scores: members agree on even rows; on odd ones each has a source's view. Texts are hostile."""
    data = directory / "data.jsonl"
    prompts = [
        LONG if row == 1 else f"{HOSTILE} {'conflict' if row % 2 else 'agreed'} {row}" for row in range(rows)
    ]
    choices = (f"yes {HOSTILE}", "no, never")
    lines = [
        {
            "messages": [{"role": "user", "content": prompt}],
            "choices": choices,
            "kind": _kind(row),
            "ratings": {"<b>A</b>": 0, "B": row % 2},
        }
        for row, prompt in enumerate(prompts)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    records = [
        record(
            row,
            [[0.99, 0.01], [0.01, 0.99]] if row % 2 else [[0.9, 0.1], [0.9, 0.1]],
            choices=choices,
            kind=_kind(row),
            ratings={"<b>A</b>": (0,), "B": (row % 2,)},
        )
        for row in range(rows)
    ]
    manifest = load_manifest(run)
    known = {
        "model": manifest.name,
        "model_digest": ensemble_digest(run, manifest, manifest.base_model.path),
        "data": "data.jsonl",
        "data_digest": file_digest(data),
    }
    scores = written(directory / "scores.jsonl", records, **{**known, **changes})
    return data, scores


def epistemic_of_conflict() -> float:
    """I(choice; member) of the odd rows."""
    return math.log(2) + 0.99 * math.log(0.99) + 0.01 * math.log(0.01)


def _kind(row: int) -> str:
    return "conflict" if row % 2 else "agreed"


def answer_uncertainty(mutual_information: float) -> AnswerUncertainty:
    """Of an answer in three tokens, by two members."""
    return AnswerUncertainty(
        num_tokens=3,
        log_prob=-1.5,
        mutual_information=mutual_information,
        total_entropy=0.5,
        aleatoric_entropy=0.25,
        epistemic=0.25,
        max_epistemic=0.5,
        disagreement=0.0,
        max_disagreement=0.0,
        member_log_probs=(-1.0, -7.25),
        member_weights=(0.75, 0.25),
    )
