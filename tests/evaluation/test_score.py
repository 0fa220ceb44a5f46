"""From rows to a scores file: with a real ensemble, gone on with where it was interrupted."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

import softspec
from softspec.artefact.manifest import load_manifest, save_manifest
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.results import ScoredChoices
from softspec.errors import DataError
from softspec.evaluation.records import ScoresWriter, read_records
from softspec.evaluation.rows import read_questions
from softspec.evaluation.score import ensemble_digest, header_of, normalised, records, score, survey
from tests.evaluation.test_rows import USER, written

ROWS = [
    {"prompt": "Colour? ", "choices": ["red", "dark blue"], "answer": 1, "source": "A", "kind": "conflict"},
    {"messages": [USER], "choices": ["ja", "nein", "größer"], "votes": {"ja": 2, "nein": 1}, "group": "g"},
]
"""Of both sorts of prompts."""


class Counting:
    """An ensemble that counts what it is asked and breaks off after some rows."""

    def __init__(self, most: int) -> None:
        self.asked = 0
        self.most = most

    def scored_choices(self, rows: Iterable, *, progress: bool) -> Iterator[ScoredChoices]:
        for _, choices in rows:
            if self.asked == self.most:
                raise KeyboardInterrupt
            self.asked += 1
            yield ScoredChoices((-1.0,) * len(choices), ((-1.0,) * len(choices),), (1,) * len(choices))


@pytest.fixture(scope="module")
def directory(tiny_ensembles: dict[str, Path]) -> Path:
    return tiny_ensembles["block-4"]


@pytest.fixture(scope="module")
def ensemble(directory: Path) -> Iterator[Ensemble]:
    with softspec.load(directory, backend="transformers") as loaded:
        yield loaded


def test_records_have_the_numbers_of_the_ensemble(tmp_path: Path, ensemble: Ensemble) -> None:
    path = written(tmp_path, ROWS)

    first, second = records(ensemble, read_questions(path), max_tokens=1)

    scored = ensemble.score([ROWS[0]["prompt"]], [ROWS[0]["choices"]])[0]  # type: ignore[list-item]
    assert first.log_probs == pytest.approx([each.uncertainty.log_prob for each in scored], abs=1e-4)
    members = list(zip(*first.member_log_probs, strict=True))
    assert members[1] == pytest.approx(scored[1].uncertainty.member_log_probs, abs=1e-4)
    assert first.num_tokens == tuple(each.uncertainty.num_tokens for each in scored)
    assert (first.answer, first.source, first.kind) == (1, "A", "conflict")
    assert (second.row, second.votes, second.group) == (1, (2.0, 1.0, 0.0), "g")


def test_an_answer_is_drawn_greedily_and_compared(tmp_path: Path, ensemble: Ensemble) -> None:
    (answer,) = ensemble.generate(["Colour? "], max_tokens=3, temperature=0, progress=False)
    rows = [{"prompt": "Colour? ", "answers": ["another"]}, {"prompt": "Colour? ", "answers": [answer.text]}]

    wrong, right = records(ensemble, read_questions(written(tmp_path, rows)), max_tokens=3)

    assert wrong.generated is not None
    assert right.generated is not None
    assert (wrong.generated.text, wrong.generated.exact, wrong.generated.normalised) == (
        answer.text,
        False,
        False,
    )
    assert (right.generated.exact, right.generated.normalised) == (True, True)
    assert right.generated.uncertainty.log_prob == pytest.approx(answer.uncertainty.log_prob, abs=1e-4)


def test_what_was_scored_is_not_scored_again(tmp_path: Path, directory: Path, ensemble: Ensemble) -> None:
    path = written(tmp_path, [{**ROWS[0], "prompt": f"Colour {n}? "} for n in range(9)])
    manifest = load_manifest(directory).model_copy(update={"log_weights": (0.0,)})
    header = header_of(directory, manifest, "base", path, survey(path, ensemble.texts), {})
    scores = tmp_path / "scores.jsonl"

    with pytest.raises(KeyboardInterrupt), ScoresWriter(scores, header) as writer:
        score(Counting(4), path, writer, 1)  # type: ignore[arg-type]
    rest = Counting(99)
    with ScoresWriter(scores, header) as writer:
        score(rest, path, writer, 1)  # type: ignore[arg-type]

    assert rest.asked == 5
    assert [each.row for each in read_records(scores)] == list(range(9))


def test_the_digest_is_of_what_decides_answers(tmp_path: Path, directory: Path) -> None:
    manifest = load_manifest(directory)
    own = ensemble_digest(directory, manifest, "base")

    calibrated = manifest.model_copy(update={"calibration": {"metric": "epistemic"}, "name": "other"})
    other = manifest.model_copy(update={"weights_rule": "fixed"})
    assert ensemble_digest(directory, calibrated, "base") == own
    assert ensemble_digest(directory, other, "base") != own


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROWS[0], {"prompt": "a" * 2000, "choices": ["b", "c"]}], "data.jsonl:2: has 20"),
        ([ROWS[0], {"prompt": "a", "answers": ["b"]}], "data.jsonl:2: a row of generation"),
        ([ROWS[0], {"prompt": "a", "choices": ["b", " "]}], "data.jsonl:2: empty completion"),
    ],
)
def test_what_is_wrong_in_the_last_row_is_told_before_anything(
    tmp_path: Path, ensemble: Ensemble, rows: Sequence[dict], told: str
) -> None:
    with pytest.raises(DataError) as mistake:
        survey(written(tmp_path, rows), ensemble.texts)

    assert told in str(mistake.value)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  ÉCOLE， a ", "école"),
        ("well-known", "wellknown"),
        ("...", ""),
    ],
)
def test_normalised_texts_have_no_case_punctuation_and_articles(text: str, plain: str) -> None:
    assert normalised(text) == plain


def test_an_ensemble_that_is_saved_again_is_the_same(tmp_path: Path, directory: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in directory.glob("member-*"):
        (copy / path.name).symlink_to(path)
    save_manifest(copy, load_manifest(directory))

    assert ensemble_digest(copy, load_manifest(copy), "b") == ensemble_digest(
        directory, load_manifest(directory), "b"
    )
