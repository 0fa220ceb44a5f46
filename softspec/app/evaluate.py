"""One run of `softspec evaluate`: an ensemble over a file, then its scores judged beside those of baselines.

In: an ensemble directory, a file of rows, scores of other models. Out: the document of metrics. Everything is checked
before the model is loaded, and a model is loaded only if rows are left to score.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from softspec.app import interruption
from softspec.app.outputs import check_output
from softspec.app.smollm2 import base_of
from softspec.artefact.manifest import load_manifest
from softspec.ensemble.load import load
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError, Interrupted
from softspec.evaluation.judge import Asked, Document, judge, named_baselines, require_same_data
from softspec.evaluation.records import ScoresWriter
from softspec.evaluation.score import header_of, score, survey


@dataclass(frozen=True)
class Wanted:
    """What is computed how, and where it goes."""

    output: Path | None
    scores: Path | None
    baselines: tuple[str, ...] = ()
    overwrite: bool = False
    backend: Literal["vllm", "transformers"] = "transformers"
    base: str | None = None
    base_unchecked: bool = False
    max_tokens: int = 64


def evaluate_file(ensemble: Path, data: Path, wanted: Wanted, asked: Asked) -> Document:
    """Score what is not scored yet, and judge it.

    Raises:
        UserError: the ensemble, a row, a flag or a file of scores is wrong.
        Interrupted: by Ctrl-C; the same command goes on where it was.
    """
    if asked.draws < 2 or wanted.max_tokens < 1:
        raise ConfigError("--bootstrap and --max-tokens must be at least 2 and 1")
    check_output(wanted.output, [data])
    baselines = named_baselines(wanted.baselines)
    manifest = load_manifest(ensemble)
    given = wanted.base or base_of([ensemble])
    base = given or manifest.base_model.path
    found = survey(data, Texts(base, None if given else manifest.base_model.revision))
    settings: dict[str, object] = {"backend": wanted.backend}
    if wanted.base_unchecked:
        settings["base"] = base
    if found.form == "generation":
        settings["max_tokens"] = wanted.max_tokens
    header = header_of(ensemble, manifest, base, data, found, settings)
    for name, scores in baselines.items():
        require_same_data(name, scores, header)
    with _scores_file(wanted) as scores:
        try:
            with (
                interruption.interruptible("interrupted"),
                ScoresWriter(scores, header, wanted.overwrite) as writer,
            ):
                if writer.num_done < header.num_rows:
                    unchecked = wanted.base_unchecked
                    with load(
                        ensemble, backend=wanted.backend, base=given, base_unchecked=unchecked
                    ) as model:
                        score(model, data, writer, wanted.max_tokens)
        except Interrupted as error:
            kept = "" if _kept(wanted) is None else f"; the same command goes on from '{scores}'"
            raise Interrupted(
                f"interrupted after {writer.num_done} of {header.num_rows} rows{kept}", error.signal_number
            ) from error
        return judge(scores, baselines, asked)


def _kept(wanted: Wanted) -> Path | None:
    """Where scores are kept; None if nobody asked for any file."""
    if wanted.scores is not None or wanted.output is None:
        return wanted.scores
    return wanted.output.with_suffix(".scores.jsonl")


@contextmanager
def _scores_file(wanted: Wanted) -> Iterator[Path]:
    if (kept := _kept(wanted)) is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "scores.jsonl"
