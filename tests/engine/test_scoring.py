"""What the engine says of known answers and options, against the reference decoder and against stock vLLM.

The engine is that of the parity tests: so few KV blocks and so small a token budget that groups are preempted and
prompts are chunked.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from softspec.artefact.manifest import WeightsRule
from softspec.reference import ReferenceEnsemble
from tests.support.parity import largest_difference, prompt

if TYPE_CHECKING:
    from softspec.engine.trace import ChoiceTrace
    from tests.support.engine_harness import EngineHarness

pytestmark = pytest.mark.vllm

TOLERANCE = 2e-4
"""Nats."""
RULES: tuple[WeightsRule, ...] = ("prefix_posterior", "fixed")
MODELS = ("always-1", "always-4", "block-1", "block-4")


@pytest.fixture(scope="module")
def references(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> dict[str, ReferenceEnsemble]:
    return {name: ReferenceEnsemble.load(tiny_base, path) for name, path in tiny_ensembles.items()}


@contextmanager
def by_rule(engine: "EngineHarness", model: str, rule: WeightsRule) -> Iterator[None]:
    """Let a model weigh its members by a rule, as its manifest could have said."""
    specs = engine.client.registry._specs
    ensemble, spec = specs[model]
    specs[model] = ensemble, replace(spec, weights_rule=rule)
    try:
        yield
    finally:
        specs[model] = ensemble, spec


def ruled(reference: ReferenceEnsemble, rule: WeightsRule) -> ReferenceEnsemble:
    return ReferenceEnsemble(reference.model, reference.manifest.model_copy(update={"weights_rule": rule}))


def answers_of(engine: "EngineHarness", model: str, ids: Sequence[int], answers: Any) -> "list[ChoiceTrace]":
    from softspec.engine.front.scoring import score_answers

    return engine.run(score_answers(engine.client, model, ids, answers, "answers"))


def random_ids(length: int, seed: int) -> list[int]:
    """Of the whole vocabulary, special tokens and unused ones too."""
    return torch.randint(0, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", MODELS)
def test_answers_have_the_numbers_of_the_reference(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble], model: str, rule: WeightsRule
) -> None:
    """Prompts around a block's border, the longest in chunks; answers that end in one and go beyond."""
    from softspec.engine.front.scoring import score_answers

    reference = ruled(references[model], rule)
    # The first holds the token that ends answers.
    answers = [[7, 2, 0, 2], *(random_ids(length, seed=length) for length in (1, 31, 40))]
    prompts = [prompt(length, seed=3) for length in (1, 32, 33, 97)]

    async def all_at_once() -> Any:
        asked = [
            score_answers(tiny_engine.client, model, ids, answers, f"a{i}") for i, ids in enumerate(prompts)
        ]
        return await asyncio.gather(*asked)

    with by_rule(tiny_engine, model, rule):
        found = tiny_engine.run(all_at_once())

    for ids, traces in zip(prompts, found, strict=True):
        for answer, trace in zip(answers, traces, strict=True):
            expected = reference.replay(ids, answer)
            assert largest_difference(trace.tokens, expected) < TOLERANCE
            assert [token.member_choices for token in trace.tokens] == [e.member_choices for e in expected]
            assert trace.weights_rule == rule


def test_answers_are_scored_the_same_when_their_groups_are_preempted(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    """A hundred random tokens: their roundings add up in the posterior, so the numbers are further apart."""
    from softspec.engine.front.scoring import score_answers

    answers = [random_ids(110, seed) for seed in range(3)]
    models = ("always-4", "block-4", "always-2", "block-2")
    before = len(tiny_engine.group_preemptions)

    async def all_at_once() -> Any:
        asked = [score_answers(tiny_engine.client, each, prompt(40), answers, each) for each in models]
        return await asyncio.gather(*asked)

    found = tiny_engine.run(all_at_once())

    assert len(tiny_engine.group_preemptions) > before
    for model, traces in zip(models, found, strict=True):
        for answer, trace in zip(answers, traces, strict=True):
            expected = references[model].replay(prompt(40), answer)
            assert largest_difference(trace.tokens, expected) < 5 * TOLERANCE


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_that_was_drawn_is_scored_as_it_was_drawn(tiny_engine: "EngineHarness", model: str) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    ids = prompt(70, seed=5)
    drawn = SamplingParams(seed=4, temperature=1, max_tokens=20, ignore_eos=True, presence_penalty=0.5)

    (reply,) = tiny_engine.ask(Question(model, ids, drawn))
    (trace,) = answers_of(tiny_engine, model, ids, reply.token_ids)

    assert largest_difference(trace.tokens, reply.choices[0].tokens) < TOLERANCE
    assert [t.member_choices for t in trace.tokens] == [t.member_choices for t in reply.choices[0].tokens]


@pytest.mark.parametrize("member", range(4))
def test_a_members_numbers_are_those_of_an_ordinary_lora_request(
    tiny_engine: "EngineHarness", member: int
) -> None:
    """Stock vLLM's own log-probabilities of the same tokens as a prompt: no group, no decoding, none of our code."""
    from vllm import SamplingParams

    from softspec.engine.front.ensemble import lora_request_of

    ids, answer = prompt(45, seed=6), random_ids(12, 9)
    adapter = tiny_engine.client.registry.ensembles["always-4"].adapters[member]

    async def prompt_logprobs() -> Any:
        outputs = tiny_engine.engine.generate(
            {"prompt_token_ids": [*ids, *answer]},
            SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
            f"stock-{member}",
            lora_request=lora_request_of(adapter),
        )
        return [output async for output in outputs][-1].prompt_logprobs

    stock = tiny_engine.run(prompt_logprobs())[len(ids) :]
    (ensemble,) = answers_of(tiny_engine, "always-4", ids, [answer])
    (alone,) = answers_of(tiny_engine, f"always-4/member-{member}", ids, [answer])

    expected = [position[token].logprob for position, token in zip(stock, answer, strict=True)]
    assert [t.member_log_probs[member] for t in ensemble.tokens] == pytest.approx(expected, abs=TOLERANCE)
    assert [t.log_prob for t in alone.tokens] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", MODELS)
def test_options_have_the_probabilities_of_the_reference(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble], model: str, rule: WeightsRule
) -> None:
    """Of one token and of several, prefixes of one another, of several prompts; more than one step may watch."""
    from softspec.engine.front.scoring import score_options

    reference = ruled(references[model], rule)
    prompts = [prompt(length, seed=7) for length in (5, 64, 90)]
    path = random_ids(6, seed=11)
    options = [
        [path[:1], path[:2], path[:5], path, [*path[:3], 7], [9, 2], [2]],
        [[token] for token in range(100, 120)],
        [random_ids(3, seed) for seed in range(4)],
    ]

    with by_rule(tiny_engine, model, rule):
        found = tiny_engine.run(score_options(tiny_engine.client, model, prompts, options, "options"))

    for ids, choices, scored in zip(prompts, options, found, strict=True):
        for option, score in zip(choices, scored, strict=True):
            steps = reference.score(ids, option).double()
            members = steps.sum(-1)
            mixed = (reference.prior[:, None] + steps).logsumexp(0).sum()
            if rule == "prefix_posterior":
                mixed = (reference.prior + members).logsumexp(0)
            assert score.member_log_probs == pytest.approx(members.tolist(), abs=TOLERANCE)
            assert score.log_prob == pytest.approx(float(mixed), abs=TOLERANCE)
            assert score.num_tokens == len(option)


def test_the_probabilities_of_all_tokens_add_up_to_one(tiny_engine: "EngineHarness") -> None:
    from softspec.engine.front.scoring import score_options

    options = [[[token] for token in range(320)]]

    (scored,) = tiny_engine.run(
        score_options(tiny_engine.client, "block-4", [prompt(40)], options, "everything")
    )

    assert math.fsum(math.exp(option.log_prob) for option in scored) == pytest.approx(1, abs=1e-5)
    for member in range(4):
        total = math.fsum(math.exp(option.member_log_probs[member]) for option in scored)
        assert total == pytest.approx(1, abs=1e-5)


def test_whoever_leaves_while_answers_are_scored_leaves_nothing_behind(tiny_engine: "EngineHarness") -> None:
    """The two requests after that fit only into an engine in which nothing else is left."""
    from softspec.engine.front.scoring import score_answers
    from tests.support.engine_harness import Question, SamplingParams

    async def leave(seconds: float) -> None:
        work = score_answers(tiny_engine.client, "block-4", prompt(100), [random_ids(80, 1)] * 5, "left")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work, seconds)

    for seconds in (0.0, 0.03, 0.2):
        tiny_engine.run(leave(seconds))
    assert not tiny_engine.engine.output_processor.request_states
    after = tiny_engine.ask(
        *(
            Question(name, prompt(100), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
            for name in ("block-4", "always-4")
        )
    )

    assert [len(reply.token_ids[0]) for reply in after] == [100, 100]
