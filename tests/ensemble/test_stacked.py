"""The transformers backend against stock PEFT: the reference decoder asks one member and one prompt at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import softspec
from softspec import Ensemble, ReferenceEnsemble
from softspec.ensemble.texts import Prompt
from softspec.maths.answer import summarise

TOLERANCE = 1e-4
"""Nats."""
ANSWERS = ["yes", "no", "it depends on whom you ask", "yes"]
ROWS: list[tuple[Prompt, list[str]]] = [
    ("Colour? ", ANSWERS),
    ([{"role": "user", "content": "word " * 20}], ["a"]),
    ([{"role": "user", "content": "word " * 20}], ["a", "longer"]),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], ["b", "c"]),
    ("x", ["y"]),
    ("x" * 33, ["y", "z" * 40]),
]


@pytest.fixture(scope="module", params=["block-4", "always-2", "block-1"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def ensemble(tiny_ensembles: dict[str, Path], name: str) -> Iterator[Ensemble]:
    with softspec.load(tiny_ensembles[name], backend="transformers") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference(tiny_base: Path, tiny_ensembles: dict[str, Path], name: str) -> ReferenceEnsemble:
    return ReferenceEnsemble.load(tiny_base, tiny_ensembles[name])


def test_choices_are_as_likely_as_under_stock_peft(ensemble: Ensemble, reference: ReferenceEnsemble) -> None:
    found = list(ensemble.scored_choices(iter(ROWS)))

    assert len(found) == len(ROWS)
    for (prompt, answers), scored in zip(ROWS, found, strict=True):
        asked = ensemble.texts.asked(prompt, answers, "row")
        for number, ids in enumerate(asked.answers):
            expected = summarise(reference.replay(asked.prompt_ids, ids), ensemble.log_weights)
            assert scored.num_tokens[number] == len(ids)
            assert ids[-1] in ensemble.texts.stop_ids
            assert scored.log_probs[number] == pytest.approx(expected.log_prob, abs=TOLERANCE)
            members = [member[number] for member in scored.member_log_probs]
            assert members == pytest.approx(expected.member_log_probs, abs=TOLERANCE)
