"""What a report is asked for, and whether what was given fits together.

In: paths and settings. Out: `Wanted`, or an error in one line before anything is computed. Reads first lines only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softspec.app.outputs import check_output
from softspec.app.report.contested import require_data
from softspec.app.report.samples import Drawing
from softspec.artefact.manifest import Manifest
from softspec.errors import ConfigError
from softspec.evaluation.judge import Asked
from softspec.evaluation.records import read_header


@dataclass(frozen=True)
class Wanted:
    """What goes into a report, and where things go."""

    output: Path
    scores: tuple[Path, ...] = ()
    baselines: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    document: Path | None = None
    samples: Path | None = None
    prompts: Path | None = None
    preferences: Path | None = None
    refusal: str | None = None
    asked: Asked = field(default_factory=Asked)
    drawing: Drawing = field(default_factory=Drawing)

    @property
    def kept(self) -> Path:
        """Where answers of members are kept."""
        return self.samples or self.output.with_suffix(".samples.jsonl")


def of_same_data(scores: Path, baselines: Mapping[str, Path]) -> dict[str, Path]:
    digest = read_header(scores).data_digest
    return {name: path for name, path in baselines.items() if read_header(path).data_digest == digest}


def data_of(scores: Path, data: Sequence[Path]) -> Path | None:
    """The file that was scored, if it is among those given."""
    header = read_header(scores)
    for path in data:
        try:
            require_data(path, header)
        except ConfigError:
            continue
        return path
    return None


def require_own(scores: Path, manifest: Manifest, digest: str) -> None:
    header = read_header(scores)
    same_members = header.num_members == manifest.num_members
    if not same_members or (manifest.base_model.fingerprint is not None and header.model_digest != digest):
        raise ConfigError(
            f"'{scores}' has scores of another model ({header.model}, {header.num_members} members) than this run's: "
            "score the run with 'softspec evaluate', or give it as --baseline NAME=FILE"
        )


def require_all_used(wanted: Wanted, baselines: Mapping[str, Path]) -> None:
    """Nothing that was given is left out in silence."""
    headers = [read_header(path) for path in wanted.scores]
    for name, path in baselines.items():
        if read_header(path).data_digest not in {header.data_digest for header in headers}:
            raise ConfigError(
                f"--baseline {name}: '{path}' has scores of data that no --scores has: score the same file"
            )
    for data in wanted.data:
        problems = []
        for header in headers:
            try:
                require_data(data, header)
            except ConfigError as error:
                problems.append(error)
        if len(problems) == len(headers):
            raise (problems[0] if problems else ConfigError("--data is of no use without --scores"))


def check_outputs(wanted: Wanted) -> None:
    """What is written replaces nothing that is read, nor one another."""
    named = [Path(each.partition("=")[2]) for each in wanted.baselines]
    inputs = (*wanted.scores, *wanted.data, *named, wanted.prompts, wanted.kept)
    taken = [path for path in inputs if path is not None]
    for flag, path in (
        ("--output", wanted.output),
        ("--json", wanted.document),
        ("--red-team", wanted.preferences),
    ):
        check_output(path, taken, flag)
        if path is not None:
            taken.append(path)
