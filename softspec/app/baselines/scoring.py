"""Scores files: what each model of a table thinks of the rows, in the form in which `softspec evaluate` keeps them.

In: ensemble directories or records, and a file of rows. Out: complete scores files; one that was begun is gone on with.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softspec.artefact.manifest import load_manifest
from softspec.console import tell
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.load import load
from softspec.ensemble.stacked.backend import StackedBackend
from softspec.errors import ConfigError, DataError
from softspec.evaluation.records import Header, ScoresWriter, read_header
from softspec.evaluation.score import Survey, header_of, score
from softspec.maths.mixture import uniform_log_weights


@dataclass(frozen=True)
class Data:
    """The rows by which all models are judged, and how many tokens an answer of their own may have."""

    path: Path
    survey: Survey
    max_tokens: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens} if self.survey.form == "generation" else {}


def score_directory(directory: Path, name: str, kind: str, data: Data, output: Path) -> Path:
    """Score all rows under an ensemble directory, or those that are missing.

    Raises:
        ConfigError: `output` has scores of something else.
    """
    manifest = load_manifest(directory)
    header = header_of(
        directory, manifest, manifest.base_model.path, data.path, data.survey, data.settings
    ).model_copy(update={"model": name, "model_kind": kind})
    with opened(output, header) as file:
        if file.num_done < data.survey.num_rows:
            tell(f"scoring {data.survey.num_rows} rows under '{name}' in {directory}")
            with loaded(directory, data) as ensemble:
                score(ensemble, data.path, file, data.max_tokens)
    return output


@contextmanager
def loaded(directory: Path, data: Data) -> Iterator[Ensemble]:
    """An ensemble directory, ready to be asked; what the base makes of prompts is kept for the next one."""
    with load(directory, backend="transformers") as ensemble:
        assert isinstance(ensemble.backend, StackedBackend)
        ensemble.backend.keep_prompts(data.survey.prompt_tokens)
        yield ensemble


def opened(path: Path, header: Header) -> ScoresWriter:
    """A scores file to be written or gone on with.

    Raises:
        ConfigError: there is one of something else.
    """
    with suppress(DataError):  # without one whole line it is begun anew
        if path.exists() and read_header(path) != header:
            raise ConfigError(
                f"'{path}' has scores of other rows, another model or other settings: delete it, or name another "
                "--output-dir"
            )
    return ScoresWriter(path, header)


def derived(source: Path, members: int, **changes: Any) -> Header:
    """The header of scores that were made of others; `members`: how many a record has, which weigh alike."""
    weights = tuple(uniform_log_weights(members).tolist())
    base = {**read_header(source).model_dump(), "log_weights": weights, "weights_rule": "prefix_posterior"}
    return Header.model_validate({**base, **changes})


def check_scores(folder: Path, data: Data) -> None:
    """Look at the scores that are there, before anything is trained.

    Raises:
        ConfigError: they are of a file of the same name and other contents.
    """
    for path in sorted(folder.glob("*.jsonl")):
        with suppress(DataError):
            if read_header(path).data_digest != data.survey.digest:
                raise ConfigError(
                    f"'{path}' has scores of other rows than '{data.path}': delete '{folder}', or name another "
                    "--output-dir"
                )
