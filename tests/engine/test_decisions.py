"""Decisions of the real engine against the reference decoder, which scores every option by itself."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

import softspec
from softspec.reference import ReferenceEnsemble
from softspec.server.chat.service import Service
from softspec.server.decisions.engine import DecisionEngine
from softspec.server.decisions.request import read_request
from softspec.server.decisions.service import decide
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.rules import PolicyRules
from tests.support import oracle
from tests.support.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-4
NAMES = ("always-1", "always-4", "block-1", "block-4")
TOKENIZER = tiny_tokenizer()
QUESTIONS: dict[str, tuple[Any, list[str]]] = {
    "single tokens": (
        {
            "type": "choice",
            "instructions": "Which letter?",
            "choices": [{"value": letter} for letter in "abcde"],
        },
        list("abcde"),
    ),
    "prefixes": (
        {
            "type": "choice",
            "instructions": "Which?",
            "choices": [{"value": text} for text in ("no", "no idea", "n", "yes", "ü🦊")],
        },
        ["no|", "no idea", "n|", "yes", "ü🦊"],
    ),
    "predicate": ({"type": "predicate", "instructions": "It is so."}, ["yes", "no"]),
    "score": (
        {
            "type": "score",
            "instructions": "How much?",
            "levels": [{"label": "0"}, {"label": "1"}, {"label": "10"}],
        },
        ["0", "1|", "10"],
    ),
}
"""Name -> a question, and what the assistant says for each option; a bar ends its turn."""
INPUT = "A text that is longer than a block."


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def chat(messages: Any) -> list[int]:
    text = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return ids_of(str(text))


@pytest.fixture(scope="module")
def references(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> dict[str, ReferenceEnsemble]:
    return {name: ReferenceEnsemble.load(tiny_base, tiny_ensembles[name]) for name in NAMES}


def answers_of(harness: "EngineHarness", model: str, length_normalise: bool = False) -> list[dict[str, Any]]:
    """The answers to all questions, from the request's body on."""
    from softspec.engine.front.scoring import score_options

    async def chat_prompt_ids(messages: Any, **_: Any) -> list[int]:
        return chat(messages)

    async def chat_end_id(**_: Any) -> int:
        assert TOKENIZER.eos_token_id is not None
        return int(TOKENIZER.eos_token_id)

    engine = DecisionEngine(
        mixture_of=harness.client.registry.spec_of,
        chat_prompt_ids=chat_prompt_ids,
        chat_end_id=chat_end_id,
        answer_ids=ids_of,
        score_options=partial(score_options, harness.client),
        max_model_len=256,
    )
    service = Service(
        ensembles=NAMES,
        models=lambda: NAMES,
        rules=PolicyRules(),
        decode=lambda _: ("", []),
        metrics=Metrics(CollectorRegistry()),
    )
    body = {
        "model": model,
        "input": INPUT,
        "questions": [question for question, _ in QUESTIONS.values()],
        "list_options": False,
        "length_normalise": length_normalise,
    }
    found = harness.run(decide(read_request(body), f"decide-{model}-{length_normalise}", engine, service))
    return list(found["answers"])


def probabilities_of(answer: dict[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [each["probability"] for each in answer["probabilities"]]


@pytest.mark.parametrize("length_normalise", [False, True], ids=["whole options", "mean of a token"])
@pytest.mark.parametrize("model", NAMES)
def test_decisions_equal_the_reference(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble], model: str, length_normalise: bool
) -> None:
    answers = answers_of(tiny_engine, model, length_normalise)

    for (question, said), answer in zip(QUESTIONS.values(), answers, strict=True):
        prompt = chat([{"role": "user", "content": f"{INPUT}\n\n{question['instructions']}"}])
        spoken = [ids_of(text.replace("|", str(TOKENIZER.eos_token))) for text in said]
        scores = [references[model].score(prompt, ids).double().sum(1).tolist() for ids in spoken]
        lengths = [len(ids) if length_normalise else 1 for ids in spoken]
        members = [
            [math.exp(score[k] / length) for score, length in zip(scores, lengths, strict=True)]
            for k in range(len(scores[0]))
        ]
        weights = references[model].prior.exp().tolist()
        mixture = oracle.mix(members, weights)
        mass = [w * sum(member) for w, member in zip(weights, members, strict=True)]
        behind = [each / sum(mass) for each in mass]
        inside = [[p / sum(member) for p in member] for member in members]
        expected = [p / sum(mixture) for p in mixture]
        told = answer["uncertainty"]
        assert probabilities_of(answer) == pytest.approx(expected, abs=TOLERANCE)
        assert told["epistemic"] == pytest.approx(oracle.mutual_information(inside, behind), abs=TOLERANCE)
        assert told["total_entropy"] == pytest.approx(oracle.entropy(expected), abs=TOLERANCE)
        for found, truth in zip(told["member_probabilities"], inside, strict=True):
            assert found == pytest.approx(truth, abs=TOLERANCE)
        whole = sum(w * math.exp(score[k]) for k, w in enumerate(weights) for score in scores)
        assert told["label_mass"] == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("length_normalise", [False, True], ids=["whole options", "mean of a token"])
def test_decisions_of_the_library_are_those_of_the_route(
    tiny_engine: "EngineHarness", tiny_ensembles: dict[str, Path], length_normalise: bool
) -> None:
    answers = answers_of(tiny_engine, "block-4", length_normalise)

    with softspec.load(tiny_ensembles["block-4"], backend="transformers") as ensemble:
        decided = ensemble.decide(
            [question for question, _ in QUESTIONS.values()],
            input=INPUT,
            list_options=False,
            length_normalise=length_normalise,
        )

    for answer, found in zip(answers, decided, strict=True):
        told = answer["uncertainty"]
        probabilities = found.uncertainty.probabilities
        assert probabilities == pytest.approx(probabilities_of(answer), abs=TOLERANCE)
        for name in ("probability", "choice", "score", "confidence"):
            assert getattr(found, name) == pytest.approx(answer.get(name), abs=TOLERANCE)
        for name in ("total_entropy", "epistemic", "disagreement", "label_mass"):
            assert getattr(found.uncertainty, name) == pytest.approx(told[name], abs=TOLERANCE)


def test_hundreds_of_questions_come_through_a_small_engine(tiny_engine: "EngineHarness") -> None:
    """More than it has room for at once, so that groups wait, and prompts are computed again."""
    from softspec.engine.front.scoring import score_options

    prompts = [chat([{"role": "user", "content": f"{INPUT}\n\nNumber {number}?"}]) for number in range(400)]
    options = [[ids_of("yes"), ids_of("no")]] * 400

    found = tiny_engine.run(score_options(tiny_engine.client, "always-1", prompts, options, "many"))

    assert len(found) == 400
    assert all(option.log_prob < 0 for each in found for option in each)
