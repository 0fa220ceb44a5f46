"""What may be asked of an `Ensemble`, what is refused before anything is computed, and how it tells."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import softspec
from softspec import Decided, Ensemble, UserError
from softspec.errors import ConfigError, DataError, ManifestError
from softspec.server.decisions.request import read_request
from tests.support.asked_ensemble import INPUT, QUESTIONS, user

YES_NO = {"type": "predicate", "instructions": "So?"}


@pytest.fixture(scope="module")
def ensemble(tiny_ensembles: dict[str, Path]) -> Iterator[Ensemble]:
    with softspec.load(tiny_ensembles["block-2"], backend="transformers") as loaded:
        yield loaded


def test_an_ensemble_knows_what_it_is(ensemble: Ensemble) -> None:
    assert ensemble.num_members == len(ensemble.log_weights) == 2
    assert ensemble.manifest.name == "block-2"


def test_nothing_asked_is_nothing_answered(ensemble: Ensemble) -> None:
    assert ensemble.generate([]) == ensemble.score([], []) == ensemble.decide([]) == []
    assert list(ensemble.scored_choices([])) == []
    assert ensemble.score(["x"], [[]]) == [[]]


def test_decisions_are_of_the_same_shape_as_at_the_route(ensemble: Ensemble) -> None:
    so, which, true, much = ensemble.decide(QUESTIONS, input=INPUT)

    assert (so.type, so.name, so.options) == ("predicate", "so", ("yes", "no"))
    assert so.probability == so.uncertainty.probabilities[0]
    assert which.choice == which.options[which.uncertainty.probabilities.index(which.confidence or 0)]
    assert true.options == (True, False)
    levels = much.uncertainty.probabilities
    assert much.score == pytest.approx(levels[1] + 2 * levels[2])
    for each in (so, which, true, much):
        assert sum(each.uncertainty.probabilities) == pytest.approx(1)
        assert len(each.uncertainty.member_probabilities) == 2


def test_a_question_may_be_an_object_and_has_its_own_input_before_the_shared_one(ensemble: Ensemble) -> None:
    as_object = read_request({"input": "", "questions": [YES_NO]}).questions[0]

    found: list[Decided] = ensemble.decide([YES_NO, as_object, {**YES_NO, "input": "a"}], input="b")
    (other,) = ensemble.decide([YES_NO], input="a")

    assert found[0] == found[1]
    assert found[2].uncertainty.probabilities == pytest.approx(other.uncertainty.probabilities, abs=1e-5)
    assert found[2] != found[0]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (lambda it: it.generate(["x", ""]), "prompt 1: empty prompt"),
        (lambda it: it.generate(["x", 5]), "prompt 1: is int: expected a text or a list of messages"),
        (lambda it: it.generate(user("x")), "prompt 0: is dict: expected a text or a list of messages"),
        (lambda it: it.generate(["x", ["y"]]), "prompt 1: has str among its messages: expected objects"),
        (lambda it: it.generate(["x", []]), "prompt 1: prompt"),
        (lambda it: it.generate(["x" * 1024]), "prompt 0: has 1024 tokens: expected less than"),
        (lambda it: it.generate(["x", [{"role": "user"}]]), "prompt 1: prompt.0: expected text as 'content'"),
        (lambda it: it.score(["x"], []), "found 1 prompts but 0 lists of answers"),
        (lambda it: it.score(["x", "y"], [["a"], "b"]), "prompt 1: its answers are one text"),
        (lambda it: it.score(["x", "y"], [["a"], [7]]), "prompt 1: an answer is int: expected text"),
        (lambda it: it.score(["x", "y"], [["a"], [""]]), "prompt 1: empty completion"),
        (lambda it: it.score(["x"], [["a" * 1024]]), "prompt 0: has 1026 tokens with its longest answer"),
        (lambda it: list(it.scored_choices([("x", ["a"]), ("y", [])])), "row 1: has no choices"),
        (lambda it: it.decide([YES_NO, {"type": "choice"}]), "question 1: instructions: missing"),
        (lambda it: it.decide([YES_NO, "So?"]), "question 1: is str: expected an object"),
        (lambda it: it.decide([YES_NO, {**YES_NO, "choice": 1}]), "question 1: unknown field 'choice'"),
        (lambda it: it.generate(["x"], max_tokens=0), "max_tokens is 0: expected a whole number from 1"),
        (lambda it: it.generate(["x"], temperature=-1), "temperature is -1: expected 0, or 0.01 or more"),
        (lambda it: it.generate(["x"], top_p=0), "top_p is 0: expected"),
        (lambda it: it.generate(["x"], top_k=-1), "top_k is -1: expected"),
        (lambda it: it.generate(["x"], min_p=2), "min_p is 2: expected"),
        (lambda it: it.generate(["x"], seed=-5), "seed is -5: expected"),
        (lambda it: it.generate(["x"], stop=[""]), "stop is ['']: expected texts"),
        (lambda it: it.generate(["x"], n=True), "n is True: expected a whole number"),
    ],
)
def test_what_cannot_be_asked_is_told_with_its_number(ensemble: Ensemble, asked: Any, told: str) -> None:
    with pytest.raises(UserError) as mistake:
        asked(ensemble)

    assert told in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"backend": "tgi"}, ConfigError, "backend is 'tgi': expected 'vllm' or 'transformers'"),
        (
            {"backend": "transformers", "vllm_args": ["--seed", "1"]},
            ConfigError,
            "vllm_args are for backend='vllm'",
        ),
        ({"vllm_args": "--seed 1"}, ConfigError, "vllm_args is one text: expected a list"),
        ({"dtype": "float32"}, ConfigError, "dtype is for backend='transformers'"),
        ({"vllm_args": ["--lora-modules", "a=b"]}, ConfigError, "cannot be given"),
        ({"base": "/nowhere"}, ConfigError, "base model '/nowhere' does not exist"),
        ({"path": "/nowhere"}, ManifestError, "no ensemble.json in '/nowhere'"),
    ],
)
def test_what_cannot_be_loaded_is_told_at_once(
    tiny_ensembles: dict[str, Path], options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told.replace("[", r"\[")):
        softspec.load(**{"path": tiny_ensembles["block-2"], **options})


def test_a_closed_ensemble_says_so(tiny_ensembles: dict[str, Path]) -> None:
    with softspec.load(tiny_ensembles["block-1"], backend="transformers") as ensemble:
        ensemble.close()

    with pytest.raises(ConfigError, match="ensemble 'block-1' is closed: load it again"):
        ensemble.generate(["x"])


def test_a_wrong_row_late_in_a_stream_comes_after_the_right_ones(ensemble: Ensemble) -> None:
    rows = [("x", ["a"])] * 70 + [("", ["a"])]

    with pytest.raises(DataError, match="row 70: empty prompt"):
        list(ensemble.scored_choices(iter(rows)))


def test_a_bar_is_only_for_a_terminal(ensemble: Ensemble, capsys: pytest.CaptureFixture[str]) -> None:
    ensemble.generate(["x"], max_tokens=1)

    assert capsys.readouterr() == ("", "")


def test_a_bar_counts_answers_at_a_terminal(
    ensemble: Ensemble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    ensemble.generate(["x", "y"], max_tokens=1)
    shown = capsys.readouterr().err
    ensemble.generate(["x"], max_tokens=1, progress=False)

    assert "answering: 100%" in shown
    assert "2/2" in shown
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_transformers_backend_needs_neither_server_nor_engine(tiny_ensembles: dict[str, Path]) -> None:
    code = (
        "import sys, softspec\n"
        f"with softspec.load({str(tiny_ensembles['block-1'])!r}, backend='transformers') as it:\n"
        f"    it.decide([{YES_NO}]), it.generate(['x'], max_tokens=1), it.score(['x'], [['y']])\n"
        "print(*({'vllm', 'fastapi', 'peft', 'starlette'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
