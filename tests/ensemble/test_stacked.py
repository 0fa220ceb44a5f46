"""The transformers backend against stock PEFT: the reference decoder asks one member and one prompt at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import softspec
from softspec import Ensemble, ReferenceEnsemble, SamplingSpec
from softspec.ensemble.texts import Prompt
from softspec.maths.answer import summarise
from tests.support.parity import largest_difference

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


def test_answers_have_the_numbers_of_stock_peft(ensemble: Ensemble, reference: ReferenceEnsemble) -> None:
    prompts, answers = [prompt for prompt, _ in ROWS], [own for _, own in ROWS]

    found = ensemble.score(prompts, answers, detail="tokens")

    for (prompt, own), scored in zip(ROWS, found, strict=True):
        asked = ensemble.texts.asked(prompt, own, "row")
        assert [each.text for each in scored] == own
        for ids, score in zip(asked.answers, scored, strict=True):
            expected = reference.replay(asked.prompt_ids, ids)
            assert largest_difference(list(score.tokens), expected) < TOLERANCE
            assert score.uncertainty == summarise(score.tokens, ensemble.log_weights)


@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.8}, {"top_k": 5, "min_p": 0.02}]
)
def test_answers_are_those_of_the_reference_decoder(
    ensemble: Ensemble, reference: ReferenceEnsemble, how: dict[str, Any]
) -> None:
    """Prompts of all lengths at once, each answered twice; some end before the others."""
    prompts = [prompt for prompt, _ in ROWS]

    found = ensemble.generate(prompts, max_tokens=12, seed=5, n=2, detail="tokens", **how)

    assert [answer.prompt for answer in found] == [number for number in range(len(ROWS)) for _ in range(2)]
    for number, answer in enumerate(found):
        assert answer.seed == 5 + number
        ids = ensemble.texts.prompt_ids(prompts[answer.prompt], "prompt")
        spec = SamplingSpec(seed=answer.seed, **how)
        expected = reference.decode(ids, spec, 12, ensemble.texts.stop_ids)
        assert largest_difference(list(answer.tokens), expected) < TOLERANCE
        ended = answer.token_ids[-1] in ensemble.texts.stop_ids
        assert answer.finish_reason == ("stop" if ended else "length")
