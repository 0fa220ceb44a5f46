"""Scoring through vLLM's real front end, on a core that gives what is forced: groups, their order, their ends."""

import asyncio
import math
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from softspec.errors import FieldError, UnknownModelError

pytestmark = pytest.mark.vllm

PROMPT = list(range(20, 90))
OTHER = [*PROMPT[:64], *range(200, 230)]
"""Shares its first blocks with PROMPT."""


def belief(before: Sequence[int], token: int, member: int) -> float:
    """What member k thinks of a token after others; any function that tells them all apart."""
    seen = sum((place + 1) * each for place, each in enumerate(before))
    return -0.05 - (seen * 31 + token * 7 + member * 13) % 97 / 20


class Scripted:
    """The client on vLLM's front end, with an event loop of its own."""

    def __init__(self, base: Path, ensembles: Sequence[Path], **engine_args: Any) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs

        from softspec.engine.front.client import EnsembleClient
        from softspec.engine.front.ensemble import load_ensembles
        from tests.support.scripted_core import Said, ScriptedAsyncLLM

        args = AsyncEngineArgs(
            model=str(base), dtype="float32", max_model_len=256, enable_lora=True, **engine_args
        )
        self.runner = asyncio.Runner()
        self.engine = ScriptedAsyncLLM(args.create_engine_config(), [[Said("a")]])
        self.client: Any = EnsembleClient(self.engine, load_ensembles(ensembles))
        self.core = self.engine.engine_core
        self.core.believes = belief

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.core.said.clear()
        self.core.aborted.clear()
        return self.runner.run(work)


@pytest.fixture(scope="module")
def scripted(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> Iterator[Scripted]:
    names = ("always-4", "block-1")
    engine_args = {
        "max_logprobs": 64,
        "max_num_seqs": 16,
        "block_size": 32,
        "max_loras": 5,
        "max_lora_rank": 16,
    }
    found = Scripted(tiny_base, [tiny_ensembles[name] for name in names], **engine_args)
    yield found
    found.runner.close()
    # Its finaliser needs modules that the interpreter takes apart first at exit.
    del found.client, found.engine


def whole(prompt: Sequence[int], tokens: Sequence[int], member: int) -> float:
    return sum(belief([*prompt, *tokens[:step]], token, member) for step, token in enumerate(tokens))


def mixture(members: Sequence[float]) -> float:
    return math.log(sum(map(math.exp, members)) / len(members))


def test_answers_have_the_numbers_of_their_own_tokens(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_answers

    answers = [[7, 8, 9], [], [300], [7, 8, 9]]

    traces = scripted.run(score_answers(scripted.client, "always-4", PROMPT, answers, "s"))

    assert [[token.token_id for token in trace.tokens] for trace in traces] == answers
    for answer, trace in zip(answers, traces, strict=True):
        for step, token in enumerate(trace.tokens):
            before = [*PROMPT, *answer[:step]]
            assert token.member_log_probs == tuple(belief(before, token.token_id, k) for k in range(4))
        assert trace.log_weights == pytest.approx([-math.log(4)] * 4)


@pytest.mark.parametrize("model", ["always-4", "always-4/member-2", "block-1"])
def test_options_are_scored_by_all_their_tokens(scripted: Scripted, model: str) -> None:
    """Of one token and of several, prefixes of one another, two prompts; more than a step has columns for."""
    from softspec.engine.front.scoring import ScoredOption, score_options

    options = [[[5], [5, 6], [5, 6, 7], [5, 9], [8, 5]], [[token] for token in range(100, 140)]]

    found = scripted.run(score_options(scripted.client, model, [PROMPT, OTHER], options, "s"))

    size = 4 if model == "always-4" else 1
    for prompt, choices, scored in zip((PROMPT, OTHER), options, found, strict=True):
        for option, score in zip(choices, scored, strict=True):
            members = [whole(prompt, option, k) for k in range(size)]
            assert isinstance(score, ScoredOption)
            assert score.member_log_probs == pytest.approx(members)
            assert score.log_prob == pytest.approx(mixture(members))
            assert score.num_tokens == len(option)


def test_options_of_one_token_cost_one_group_and_one_step(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_options

    scripted.run(
        score_options(scripted.client, "always-4", [PROMPT], [[[token] for token in range(10)]], "s")
    )

    assert [state.said for state in scripted.core.said] == [1]


def test_a_prompts_first_group_goes_ahead_and_half_the_slots_stay_free(scripted: Scripted) -> None:
    """Groups of four: of sixteen run slots they take eight."""
    from softspec.engine.front.scoring import score_answers

    together: list[int] = []
    next_output = scripted.core._next

    def watched(state: Any) -> Any:
        together.append(len(scripted.core.running))
        return next_output(state)

    with patch.object(scripted.core, "_next", watched):
        scripted.run(score_answers(scripted.client, "always-4", PROMPT, [[], *[[1, 2, 3]] * 6], "s"))

    assert together[0] == 1
    assert max(together) == 2


def test_a_prompt_that_shares_no_block_with_the_first_does_not_wait_for_it(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_options

    prompts = [PROMPT, OTHER, [250, *PROMPT]]

    scripted.run(score_options(scripted.client, "block-1", prompts, [[[5], [6, 7]]] * 3, "s"))

    order = [list(state.request.prompt_token_ids) for state in scripted.core.said]
    assert order[:2] == [PROMPT, [250, *PROMPT]]
    assert sorted(order) == sorted(prompts)


def test_callers_who_leave_take_all_their_groups_along(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_answers

    async def leave() -> None:
        task = asyncio.create_task(
            score_answers(scripted.client, "always-4", PROMPT, [list(range(100))] * 5, "s")
        )
        while len(scripted.core.said) < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    scripted.run(leave())

    assert not scripted.core.running
    assert not scripted.engine.output_processor.request_states
    assert scripted.client.registry._holders[scripted.client.registry.ensembles["always-4"]] == 0
    # All places are free again.
    assert scripted.client.places_to_follow(4)._value == 2


@pytest.mark.parametrize("token", [-1, 320, 2**40])
def test_tokens_that_are_not_the_models_are_refused_before_the_engine(scripted: Scripted, token: int) -> None:
    from softspec.engine.front.scoring import score_answers, score_options

    with pytest.raises(FieldError, match=f"'answers.1' has tokens .*{token}.* expected 0 to 319"):
        scripted.run(score_answers(scripted.client, "always-4", PROMPT, [[5], [5, token]], "s"))
    with pytest.raises(FieldError, match=f"'options.0.0' has tokens .*{token}"):
        scripted.run(score_options(scripted.client, "always-4", [PROMPT], [[[token]]], "s"))
    assert not scripted.core.said


def test_what_does_not_fit_behind_its_prompt_is_refused(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_answers

    longest = [5] * (256 - len(PROMPT))

    scripted.run(score_answers(scripted.client, "always-4", PROMPT, [longest], "s"))
    with pytest.raises(FieldError, match="187 tokens and its prompt 70: expected at most 256"):
        scripted.run(score_answers(scripted.client, "always-4", PROMPT, [[*longest, 5]], "s"))


def test_a_prompt_without_tokens_is_refused_in_one_plain_error(scripted: Scripted) -> None:
    """By vLLM, as it refuses one that is to be answered."""
    from vllm.exceptions import VLLMClientError

    from softspec.engine.front.scoring import score_answers

    with pytest.raises(VLLMClientError, match="cannot be empty"):
        scripted.run(score_answers(scripted.client, "always-4", [], [[5], [6]], "s"))
    assert not scripted.core.said


def test_models_that_are_not_served_cannot_score(scripted: Scripted) -> None:
    from softspec.engine.front.scoring import score_answers

    with pytest.raises(UnknownModelError, match="nobody"):
        scripted.run(score_answers(scripted.client, "nobody", PROMPT, [[5]], "s"))


def test_an_ensemble_stays_until_what_it_scores_is_done(scripted: Scripted) -> None:
    """Groups that begin after it was unloaded are asked of the same members."""
    from softspec.engine.front.scoring import score_answers

    registry = scripted.client.registry
    ensemble = registry.ensembles["block-1"]

    async def unload_meanwhile() -> Any:
        task = asyncio.create_task(score_answers(scripted.client, "block-1", PROMPT, [[1, 2]] * 20, "s"))
        while not scripted.core.said:
            await asyncio.sleep(0)
        await registry.unload("block-1")
        assert not registry._leaving
        traces = await task
        await registry.settle()
        return traces

    try:
        traces = scripted.run(unload_meanwhile())
    finally:
        registry._holders[ensemble] = 0
        registry._publish(ensemble)

    assert [len(trace.tokens) for trace in traces] == [2] * 20
