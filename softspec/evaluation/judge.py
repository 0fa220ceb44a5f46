"""From scores files to what is told: every metric that applies, with intervals, beside the baselines.

In: a scores file, and those of other models on the same data. Out: a document for JSON. Runs no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softspec.errors import ConfigError, DataError
from softspec.evaluation.bootstrap import Resampling, Sampled, Statistic, described, resampling_of, sample
from softspec.evaluation.columns import Columns, read_columns
from softspec.evaluation.members import annotator_share, member_statistics, responsibility_matrix
from softspec.evaluation.next_answers import NextAnswers, next_answers
from softspec.evaluation.records import Header, read_header, read_records
from softspec.evaluation.statistics import Kinds, kind_statistics, row_statistics

Document = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """How scores are judged: what counts, and how often data are resampled."""

    kinds: Kinds = field(default_factory=Kinds)
    length_normalise: bool = False
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """One model's metrics, on the data and resampled, and the columns that they come from."""

    header: Header
    columns: Columns
    rows: Resampling
    metrics: dict[str, tuple[Sampled, Resampling]]
    kinds: dict[str, dict[str, tuple[Sampled, Resampling]]]


def judge(scores: Path, baselines: Mapping[str, Path], asked: Asked) -> Document:
    """All metrics of a scores file, and their differences from those of baselines.

    Raises:
        DataError: a file is incomplete or malformed.
        ConfigError: a baseline's data are others, or a kind that is asked for is not there.
    """
    header = read_header(scores)
    for name, path in baselines.items():
        require_same_data(name, path, header)
    model = _judged(scores, asked)
    document = {
        **_described(model),
        "data": {"name": header.data, "digest": header.data_digest, "rows": header.num_rows},
    }
    document["resampled"] = {
        "unit": model.rows.unit,
        "count": model.rows.count,
        "draws": asked.draws,
        "seed": asked.seed,
    }
    document["length_normalised"] = asked.length_normalise
    document["baselines"] = {}
    for name, path in baselines.items():
        other = _judged(path, asked)
        document["baselines"][name] = {**_described(other), "difference": _differences(model, other)}
    return document


def named_baselines(named: Sequence[str]) -> dict[str, Path]:
    """The files that were given as NAME=SCORES.jsonl, by name.

    Raises:
        ConfigError: one is given otherwise, or a name twice.
    """
    found: dict[str, Path] = {}
    for each in named:
        name, equals, path = each.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--baseline is '{each}': expected NAME=SCORES.jsonl")
        if name in found:
            raise ConfigError(f"--baseline {name} is given twice: give each a name of its own")
        found[name] = Path(path)
    return found


def _judged(scores: Path, asked: Asked) -> Judged:
    header = read_header(scores)
    columns = read_columns(header, read_records(scores), asked.length_normalise)
    _require_kinds(columns, asked.kinds, scores)
    rows = resampling_of(columns, asked.draws, asked.seed)
    curve = next_answers(columns, asked.seed)
    statistics = {
        **row_statistics(columns, asked.kinds, asked.seed),
        **member_statistics(columns, asked.seed),
        **annotator_share(columns, asked.seed),
    }
    metrics = {name: (found, rows) for name, found in sample(statistics, rows).items()}
    if curve is not None:
        metrics |= _of_curve(curve, rows)
    kinds = {
        kind: {name: (found, rows) for name, found in sample(own, rows).items()}
        for kind, own in kind_statistics(columns).items()
    }
    return Judged(header, columns, rows, metrics, kinds)


def _of_curve(curve: NextAnswers, rows: Resampling) -> dict[str, tuple[Sampled, Resampling]]:
    resampling = curve.resampling(rows)
    return {name: (found, resampling) for name, found in sample(curve.statistics(), resampling).items()}


def _described(model: Judged) -> Document:
    header, matrix = model.header, responsibility_matrix(model.columns)
    found: Document = {
        "model": {
            "name": header.model,
            "kind": header.model_kind,
            "members": header.num_members,
            "digest": header.model_digest,
            "settings": header.settings,
        },
        "metrics": {name: _told(sampled, by, model.rows) for name, (sampled, by) in model.metrics.items()},
        "by_kind": {
            kind: {name: described(*each) for name, each in own.items()} for kind, own in model.kinds.items()
        },
    }
    if matrix is not None:
        found["responsibilities"] = asdict(matrix)
    if model.columns.divergence is not None and header.num_members > 1:
        found["divergence"] = model.columns.divergence.tolist()
    return found


def _told(sampled: Sampled, by: Resampling, rows: Resampling) -> Document:
    """As `described`, with what was resampled where it is not what the others have."""
    unit = {} if by.unit == rows.unit else {"resampled": {"unit": by.unit, "count": by.count}}
    return described(sampled, by) | unit


def _differences(model: Judged, other: Judged) -> Document:
    """Metric -> the model's minus the baseline's, on the same resampled data."""
    found = {}
    for name, (own, by) in model.metrics.items():
        if name in other.metrics and own.statistic.n == other.metrics[name][0].statistic.n:
            difference = own.minus(other.metrics[name][0])
            found[name] = _told(
                Sampled(_of_difference(own.statistic), difference.value, difference.draws), by, model.rows
            )
    return found


def _of_difference(statistic: Statistic) -> Statistic:
    return Statistic(
        f"the model's minus the baseline's, paired: {statistic.estimator}",
        statistic.evaluate,
        statistic.n,
        statistic.reason,
    )


def require_same_data(name: str, path: Path, header: Header) -> None:
    """Refuse scores of a baseline that are not of the header's data.

    Raises:
        ConfigError: they are of other data, or no scores.
    """
    try:
        other = read_header(path)
    except DataError as error:
        raise ConfigError(f"--baseline {name}: {error}") from error
    if (other.data_digest, other.num_rows) != (header.data_digest, header.num_rows):
        raise ConfigError(
            f"--baseline {name}: '{path}' has scores of other data ({other.data}, {other.num_rows} rows), not of "
            f"{header.data}: score the same file"
        )


def _require_kinds(columns: Columns, kinds: Kinds, scores: Path) -> None:
    """What is asked for by name must be there; the names by default need not."""
    for flag in ("conflict", "agreed", "ood"):
        wanted = getattr(kinds, flag)
        missing = [kind for kind in wanted if kind not in columns.kinds]
        if missing and wanted != getattr(Kinds(), flag):
            there = ", ".join(f"'{kind}'" for kind in columns.kinds) or "none"
            raise ConfigError(f"--{flag} is '{missing[0]}', but the kinds of rows in '{scores}' are: {there}")
