"""The rows about which members differ most: what each of them picks, and which words differ.

In: a scores file, what is known of its rows, and the data if they are at hand. Out: `ContestedRow`s. Holds a few rows.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from softspec.app.report.differences import Piece, pieces
from softspec.errors import ConfigError
from softspec.evaluation.columns import Columns, label_shares
from softspec.evaluation.records import Header, Record, read_records
from softspec.evaluation.rows import Prompt, file_digest, read_questions
from softspec.maths.options import option_distributions

MOST = 12
MOST_REFERENCES = 4


@dataclass(frozen=True)
class Voice:
    """What the mixture (member None) or a member picks, and the probability it gives to that."""

    member: int | None
    answer: list[Piece]
    probability: float


@dataclass(frozen=True)
class Reference:
    """An answer to a generation row, the model's own or a reference, with log P of it under each member (K,), nats."""

    is_own: bool
    answer: list[Piece]
    log_prob: float
    members: tuple[float, ...]


@dataclass(frozen=True)
class ContestedRow:
    """One row. `uncertainty` is epistemic, nats; `truth` the labels with their shares, as far as they are known.

    Of choices `voices` are the mixture and its members with the probabilities of their picks. Of generation
    `references` are the mixture's greedy answer, where there is one, and the answers that were given to compare with.
    """

    row: int
    kind: str | None
    source: str | None
    prompt: Prompt | None
    uncertainty: float
    truth: list[tuple[str, float]]
    voices: list[Voice]
    references: list[Reference]


def uncertainty_name(columns: Columns) -> str | None:
    """What rows are ranked by: I(member; choice), or of generation I(member; answer), where it was measured."""
    name = "epistemic" if columns.form == "choices" else "mutual_information"
    return name if name in columns.values else None


def contested_rows(
    scores: Path, header: Header, columns: Columns, data: Path | None, most: int = MOST
) -> list[ContestedRow]:
    """The most contested rows, first the one that is most so; none that all members see alike.

    Raises:
        ConfigError: the data are not those of the scores.
    """
    name = uncertainty_name(columns)
    if name is None or header.num_members == 1:
        return []
    values = columns.values[name]
    order = values.nan_to_num(-1).argsort(descending=True, stable=True)[:most].tolist()
    ranked = [row for row in order if float(values[row]) > 1e-9]
    wanted = set(ranked)
    prompts = _prompts(data, header, wanted) if data is not None else {}
    found = {
        record.row: _row(record, header, float(values[record.row]), prompts.get(record.row))
        for record in read_records(scores)
        if record.row in wanted
    }
    return [found[row] for row in ranked]


def require_data(data: Path, header: Header) -> None:
    """Raise unless the file is the one that was scored."""
    if not data.is_file():
        raise ConfigError(f"--data: there is no file '{data}': name the file that was scored")
    if file_digest(data) != header.data_digest:
        raise ConfigError(f"--data is '{data}', but the scores are of {header.data}, or it has changed since")


def _prompts(data: Path, header: Header, wanted: set[int]) -> dict[int, Prompt]:
    require_data(data, header)
    return {question.row: question.prompt for question in read_questions(data) if question.row in wanted}


def _row(record: Record, header: Header, uncertainty: float, prompt: Prompt | None) -> ContestedRow:
    is_choice = record.form == "choices"
    return ContestedRow(
        row=record.row,
        kind=record.kind,
        source=record.source,
        prompt=prompt,
        uncertainty=uncertainty,
        truth=_truth(record) if is_choice else [],
        voices=_voices(record, header) if is_choice else [],
        references=[] if is_choice else _references(record),
    )


def _voices(record: Record, header: Header) -> list[Voice]:
    found = option_distributions(
        torch.tensor(record.member_log_probs, dtype=torch.float64),
        torch.tensor(header.log_weights, dtype=torch.float64),
        mixture_log_probs=torch.tensor(record.log_probs, dtype=torch.float64)
        if header.weights_rule == "fixed"
        else None,
    )
    mixture = record.choices[int(found.probabilities.argmax())]

    def voice(member: int | None, probabilities: torch.Tensor) -> Voice:
        pick = int(probabilities.argmax())
        return Voice(member, pieces(record.choices[pick], mixture), float(probabilities[pick]))

    members = [voice(member, own) for member, own in enumerate(found.member_probabilities)]
    return [voice(None, found.probabilities), *members]


def _references(record: Record) -> list[Reference]:
    given = record.generated
    own, found = record.choices[0], []
    if given is not None:
        own, numbers = given.text, given.uncertainty
        answer = pieces(own, record.choices[0])
        found.append(Reference(True, answer, numbers.log_prob, numbers.member_log_probs))
    for number, choice in enumerate(record.choices[:MOST_REFERENCES]):
        members = tuple(each[number] for each in record.member_log_probs)
        found.append(Reference(False, pieces(choice, own), record.log_probs[number], members))
    return found


def _truth(record: Record) -> list[tuple[str, float]]:
    """The choices that somebody called right, with how much of the row they have."""
    shares = label_shares(record) or []
    return [(choice, share) for choice, share in zip(record.choices, shares, strict=False) if share > 0]
