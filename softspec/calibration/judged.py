"""Rows with a truth, as an ensemble answers them and a policy judges them.

In: an ensemble and questions. Out: `Outcomes`. Rows of choices are decided as at `/v1/decisions`, rows with reference
answers are answered as at `/v1/chat/completions`, prefix by prefix. Knows no curve and no threshold.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm import tqdm

from softspec.calibration.outcomes import Numbers, Outcomes
from softspec.console import tell, unbroken_stderr
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.results import Answer
from softspec.errors import DataError
from softspec.evaluation.rows import Question
from softspec.evaluation.score import normalised
from softspec.maths.running import RunningMetric

AT_ONCE = 64
"""Rows that are asked for together."""


@dataclass(frozen=True)
class Asking:
    """How an ensemble is asked: as it is served. `list_options` is of decisions, the others are of answers."""

    list_options: bool = False
    max_tokens: int = 64
    min_tokens: int = 1
    temperature: float = 0.0
    seed: int = 0
    exact: bool = False


@dataclass(frozen=True)
class _Row:
    """One row: its metrics as a whole (M,) and at every judged prefix (T, M), and what became of it."""

    whole: Numbers
    prefixes: Numbers
    is_correct: bool
    raw: float


def outcomes_of(
    ensemble: Ensemble, questions: Sequence[Question], metrics: tuple[str, ...], asking: Asking
) -> Outcomes:
    """What became of every row with a truth.

    Raises:
        DataError: a row cannot be asked, or counts more than others.
    """
    kept = _with_truth(questions)
    rows = list(_rows(ensemble, kept, metrics, asking))
    return Outcomes(
        metrics=metrics,
        whole=np.array([row.whole for row in rows]).reshape(len(rows), len(metrics)),
        prefixes=[row.prefixes for row in rows],
        correct=np.array([row.is_correct for row in rows], dtype=bool),
        raw=np.array([row.raw for row in rows]),
        groups=[question.group for question in kept],
    )


def truth_of(question: Question) -> int | None:
    """The right choice: the answer, or else the one that most voted for or picked; None where there is not one."""
    if question.answer is not None:
        return question.answer
    counts = [0.0] * len(question.choices)
    for place, votes in enumerate(question.votes or ()):
        counts[place] += votes
    if question.votes is None:
        for picked in (question.ratings or {}).values():
            for place in picked:
                counts[place] += 1 / len(picked)
    most = max(counts)
    return counts.index(most) if most > 0 and counts.count(most) == 1 else None


def _with_truth(questions: Sequence[Question]) -> list[Question]:
    """The rows that have a truth; the others are told of."""
    for question in questions:
        if question.weight != 1:
            raise DataError(
                f"{question.place}: found weight {question.weight:g}: every row counts once in a guarantee; leave "
                "weights out"
            )
    kept = [each for each in questions if each.form == "generation" or truth_of(each) is not None]
    if left := len(questions) - len(kept):
        tell(f"{left} of {len(questions)} rows have no choice that is right, or several: they are left out")
    if repeated := len(kept) - len({question.item for question in kept}):
        tell(
            f"{repeated} of {len(kept)} rows ask what another row asks: a guarantee takes rows for independent "
            "draws of what will be asked, so leave copies out"
        )
    return kept


def _rows(
    ensemble: Ensemble, questions: Sequence[Question], metrics: tuple[str, ...], asking: Asking
) -> Iterator[_Row]:
    ask = _decided if questions and questions[0].form == "choices" else _answered
    left = iter(questions)
    with tqdm(
        total=len(questions), desc="asking", unit="row", mininterval=1.0, file=unbroken_stderr()
    ) as bar:
        while chunk := list(islice(left, AT_ONCE)):
            for row in ask(ensemble, chunk, metrics, asking):
                yield row
                bar.update()


def _decided(
    ensemble: Ensemble, questions: Sequence[Question], metrics: tuple[str, ...], asking: Asking
) -> Iterator[_Row]:
    """Choices, each a question of `/v1/decisions` whose input is the row's prompt."""
    asked = [
        {
            "type": "choice",
            "instructions": "",
            "choices": [{"value": choice} for choice in question.choices],
            "input": question.prompt,
        }
        for question in questions
    ]
    decided = ensemble.decide(asked, list_options=asking.list_options, progress=False)
    for question, found in zip(questions, decided, strict=True):
        probabilities = found.uncertainty.probabilities
        likeliest = max(probabilities)
        metrics_of_it = np.array([getattr(found.uncertainty, name) for name in metrics])
        yield _Row(
            whole=metrics_of_it,
            prefixes=metrics_of_it[None],
            is_correct=probabilities.index(likeliest) == truth_of(question),
            raw=likeliest,
        )


def _answered(
    ensemble: Ensemble, questions: Sequence[Question], metrics: tuple[str, ...], asking: Asking
) -> Iterator[_Row]:
    """Answers that the ensemble gives by itself, judged at every prefix as a policy does."""
    answers = ensemble.generate(
        [question.prompt for question in questions],
        max_tokens=asking.max_tokens,
        temperature=asking.temperature,
        seed=asking.seed + questions[0].row,
        detail="tokens",
        progress=False,
    )
    for question, answer in zip(questions, answers, strict=True):
        yield _Row(
            whole=np.array([getattr(answer.uncertainty, name) for name in metrics]),
            prefixes=prefixes_of(ensemble, answer, metrics, asking.min_tokens),
            is_correct=_is_right(answer.text, question.choices, asking.exact),
            raw=math.exp(min(answer.uncertainty.log_prob, 0.0)),
        )


def prefixes_of(ensemble: Ensemble, answer: Answer, metrics: tuple[str, ...], min_tokens: int) -> Numbers:
    """(T, M): the metrics after every token from `min_tokens` on; what a policy compares while the answer grows."""
    rule = ensemble.manifest.weights_rule
    running = [RunningMetric(name, ensemble.log_weights, rule) for name in metrics]
    values = [[each.add(token) for each in running] for token in answer.tokens]
    return np.array(values[min_tokens - 1 :]).reshape(-1, len(metrics))


def _is_right(text: str, references: Sequence[str], exact: bool) -> bool:
    if exact:
        return text.strip() in {reference.strip() for reference in references}
    return normalised(text) in {normalised(reference) for reference in references}
