"""The engine against the reference decoder, token by token, with everything in flight at once.

The engine has so few KV blocks and so small a token budget that groups are preempted and prompts are chunked.
"""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from softspec.errors import ConfigError
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import TOLERANCE, base_greedy, largest_difference, prompt, reference_of

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness

pytestmark = pytest.mark.vllm

PROMPT_LENGTHS = (1, 2, 31, 32, 33, 34, 64, 65, 97, 130)


@pytest.fixture(scope="module")
def references(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> dict[str, ReferenceEnsemble]:
    return {name: ReferenceEnsemble.load(tiny_base, path) for name, path in tiny_ensembles.items()}


def test_model_runner_is_the_one_that_was_asked_for(tiny_engine: "EngineHarness") -> None:
    """V1, or V2 when `tests/interpreted` runs this file."""
    version = {"0": "v1", "1": "v2"}[os.environ["VLLM_USE_V2_MODEL_RUNNER"]]

    assert tiny_engine.adapters == [f"softspec.engine.worker.runner_{version}"]


def test_engine_equals_the_reference_around_block_borders(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    """Both activations, K of 1, 2 and 4, greedy and seeded, all at once; prompts are chunked."""
    cases = [
        (name, length, temperature)
        for length in PROMPT_LENGTHS
        for name in references
        for temperature in (0.0, 1.0)
    ]

    assert_parity(tiny_engine, references, cases, max_tokens=8)


@pytest.mark.parametrize(
    ("model", "rows", "shared"),
    [("always-2", 2, 2), ("block-4", 4, 4), ("always-1", 1, 1), ("block-1", 1, 1)],
)
def test_layers_below_the_adapters_run_one_row_of_a_group(
    tiny_engine: "EngineHarness", model: str, rows: int, shared: int
) -> None:
    """Ten tokens of a prompt and three more that are drawn, in a step of all rows each."""
    from tests.support.engine_harness import Question, SamplingParams

    (before,) = tiny_engine.call_workers("lower_layer_tokens")
    tiny_engine.ask(Question(model, prompt(10, seed=9), SamplingParams(max_tokens=4, ignore_eos=True)))
    (after,) = tiny_engine.call_workers("lower_layer_tokens")

    computed, lowest = (now - then for now, then in zip(after, before, strict=True))
    assert tiny_engine.shares_layers
    assert computed == 13 * rows
    assert lowest == computed // shared


def test_engine_equals_the_reference_when_groups_are_preempted(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    """Answers grow far beyond the KV blocks that their prompts needed."""
    cases = [
        (name, length, temperature)
        for length in (20, 40)
        for name in ("always-4", "block-4", "block-2")
        for temperature in (0.0, 1.0)
    ]
    before, groups_before = tiny_engine.preemptions.count, len(tiny_engine.group_preemptions)

    assert_parity(tiny_engine, references, cases, max_tokens=110)

    assert tiny_engine.preemptions.count > before
    told = tiny_engine.group_preemptions[groups_before:]
    assert len(told) == tiny_engine.preemptions.count - before
    assert set(told) <= {name for name, _, _ in cases}


def assert_parity(
    engine: "EngineHarness",
    references: dict[str, ReferenceEnsemble],
    cases: list[tuple[str, int, float]],
    max_tokens: int,
) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    questions = [
        Question(
            name,
            prompt(length),
            SamplingParams(temperature=temperature, seed=number, max_tokens=max_tokens, ignore_eos=True),
        )
        for number, (name, length, temperature) in enumerate(cases)
    ]

    replies = engine.ask(*questions)

    for number, ((name, length, temperature), reply) in enumerate(zip(cases, replies, strict=True)):
        expected = references[name].decode(
            prompt(length), SamplingSpec(temperature=temperature, seed=number), max_tokens
        )
        assert largest_difference(reply.choices[0].tokens, expected) < TOLERANCE, (name, length, temperature)
        assert reply.token_ids[0] == [token.token_id for token in expected]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_p": 0.7, "temperature": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    ],
    ids=lambda settings: "+".join(settings),
)
@pytest.mark.parametrize("name", ["always-4", "block-2"])
def test_sampling_settings_act_on_the_mixture(
    tiny_engine: "EngineHarness",
    references: dict[str, ReferenceEnsemble],
    name: str,
    settings: dict[str, Any],
) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    settings = {"temperature": 1.0, **settings}
    params = SamplingParams(seed=7, max_tokens=24, ignore_eos=True, **settings)

    reply = tiny_engine.ask(Question(name, prompt(40), params))[0]

    expected = references[name].decode(prompt(40), SamplingSpec(seed=7, **settings), max_tokens=24)
    assert largest_difference(reply.choices[0].tokens, expected) < TOLERANCE


def test_logprobs_are_those_of_the_mixture(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)

    reply = tiny_engine.ask(Question("always-4", prompt(20), params))[0]

    assert reply.last is not None
    logprobs = reply.last.outputs[0].logprobs
    steps = list(references["always-4"].steps(prompt(20), SamplingSpec(temperature=0), max_tokens=6))
    for found, (_, mixture) in zip(logprobs, steps, strict=True):
        expected = mixture.topk(5)
        assert list(found) == expected.indices.tolist()
        values = torch.tensor([entry.logprob for entry in found.values()])
        torch.testing.assert_close(values, expected.values, atol=TOLERANCE, rtol=0)


def test_usage_counts_as_cached_what_an_earlier_request_computed(tiny_engine: "EngineHarness") -> None:
    """Not what this request's own members read after its prompt was computed for all of them."""
    from tests.support.engine_harness import Question, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    ids = prompt(100, seed=9)

    outputs = [tiny_engine.ask(Question("block-4", ids, params))[0].last for _ in range(2)]

    assert [output.num_cached_tokens for output in outputs if output] == [0, 96]


def test_uncertainty_can_be_left_out_and_changes_no_token(tiny_engine: "EngineHarness") -> None:
    """What a benchmark of its cost needs."""
    from tests.support.engine_harness import Question, SamplingParams

    question = Question("always-4", prompt(9), SamplingParams(seed=1, max_tokens=4, ignore_eos=True))

    tiny_engine.call_workers("measure_uncertainty", False)
    bare = tiny_engine.ask(question)[0].choices[0].tokens
    tiny_engine.call_workers("measure_uncertainty", True)
    full = tiny_engine.ask(question)[0].choices[0].tokens

    assert [token.token_id for token in bare] == [token.token_id for token in full]
    assert [token.member_log_probs for token in bare] == [token.member_log_probs for token in full]
    assert all(math.isnan(token.epistemic) and math.isfinite(token.log_prob) for token in bare)
    assert all(math.isfinite(token.epistemic) for token in full)


def test_without_logprobs_the_caller_sees_none(tiny_engine: "EngineHarness") -> None:
    """The telemetry travels as log-probabilities, and must not show."""
    from tests.support.engine_harness import Question, SamplingParams

    reply = tiny_engine.ask(Question("always-2", prompt(9), SamplingParams(max_tokens=3)))[0]

    assert reply.last is not None
    assert reply.last.outputs[0].logprobs is None
    assert reply.last.outputs[0].cumulative_logprob is None
    assert reply.choices[0].tokens


def test_each_of_n_answers_is_replayed_by_its_own_seed(tiny_engine: "EngineHarness") -> None:
    from tests.support.engine_harness import Question, SamplingParams

    many = SamplingParams(n=3, temperature=1, max_tokens=10, ignore_eos=True)
    reply = tiny_engine.ask(Question("block-2", prompt(50), many))[0]
    again = [
        Question(
            "block-2",
            prompt(50),
            SamplingParams(seed=choice.seed, temperature=1, max_tokens=10, ignore_eos=True),
        )
        for choice in reply.choices
    ]

    replays = tiny_engine.ask(*again)

    assert len({tuple(ids) for ids in reply.token_ids}) == 3
    assert [replay.token_ids[0] for replay in replays] == reply.token_ids


def test_masks_act_on_the_members_and_biases_on_the_mixture(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    allowed = [50, 60, 70, 80]
    only = SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=allowed)
    biased = SamplingParams(temperature=0, max_tokens=1, logit_bias={99: 100.0})

    replies = tiny_engine.ask(
        Question("always-4", prompt(12), only), Question("always-4", prompt(12), biased)
    )

    scores = [references["always-4"].score(prompt(12), [token]) for token in allowed]
    members = torch.cat(scores, -1).log_softmax(-1)
    mixture = members.logsumexp(0) - math.log(4)
    best = int(mixture.argmax())
    assert replies[0].token_ids == [[allowed[best]]]
    token = replies[0].choices[0].tokens[0]
    assert token.log_prob == pytest.approx(float(mixture[best]), abs=TOLERANCE)
    assert token.member_log_probs == pytest.approx(members[:, best].tolist(), abs=TOLERANCE)
    assert replies[1].token_ids == [[99]]


def test_structured_output_holds_for_the_mixture(tiny_engine: "EngineHarness") -> None:
    from vllm.sampling_params import StructuredOutputsParams

    from tests.support.engine_harness import Question, SamplingParams

    params = SamplingParams(
        temperature=1,
        max_tokens=20,
        structured_outputs=StructuredOutputsParams(regex="[0-9]{3}-[a-c]{2}"),
    )

    models = ("always-4", "block-4", "block-1", None)
    replies = tiny_engine.ask(*(Question(model, range(30, 70), params) for model in models))

    for reply in replies:
        assert reply.last is not None
        assert re.fullmatch("[0-9]{3}-[a-c]{2}", reply.last.outputs[0].text)


def test_base_members_and_ensembles_do_not_disturb_each_other(
    tiny_engine: "EngineHarness", references: dict[str, ReferenceEnsemble]
) -> None:
    """A shared prompt is computed without adapters in the very step in which others use theirs."""
    from tests.support.engine_harness import Question, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ids = prompt(70, seed=1)
    models = [None, "block-4", "block-4/member-2", "always-4/member-2", "always-2", None]

    replies = tiny_engine.ask(*(Question(model, ids, params) for model in models))

    assert replies[0].token_ids == replies[5].token_ids == [base_greedy(references["always-1"], ids, 12)]
    for model, reply in zip(models[1:5], replies[1:5], strict=True):
        expected = reference_of(references, str(model)).decode(ids, SamplingSpec(temperature=0), 12)
        assert reply.token_ids == [[token.token_id for token in expected]], model


def test_clients_that_leave_take_their_whole_group_along(tiny_engine: "EngineHarness") -> None:
    """Aborts in every state: the engine is far too small for these requests, so many still wait when they go."""
    from vllm.sampling_params import RequestOutputKind

    from tests.support.engine_harness import Question, SamplingParams

    stream = SamplingParams(
        temperature=1, max_tokens=60, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    questions = [
        Question(
            ("always-4", "block-4", "block-2", None)[number % 4], prompt(20 + number), stream, number % 5 + 1
        )
        for number in range(32)
    ]

    tiny_engine.ask(*questions)
    after = tiny_engine.ask(
        *(
            Question(name, prompt(100), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
            for name in ("block-4", "always-4")
        )
    )

    assert [len(reply.token_ids[0]) for reply in after] == [100, 100]


@pytest.mark.parametrize(
    ("field", "settings"),
    [("prompt_logprobs", {"prompt_logprobs": 1}), ("logprob_token_ids", {"logprob_token_ids": [5]})],
)
def test_what_a_mixture_cannot_give_is_refused_by_name(
    tiny_engine: "EngineHarness", field: str, settings: dict[str, Any]
) -> None:
    from tests.support.engine_harness import Question, SamplingParams

    with pytest.raises(ConfigError, match=f"'{field}'"):
        tiny_engine.ask(Question("always-2", prompt(5), SamplingParams(max_tokens=1, **settings)))


def test_a_seed_that_would_end_the_whole_engine_is_refused(tiny_engine: "EngineHarness") -> None:
    """vLLM's own seeded draws on a CPU; ensembles and members do not use them."""
    from tests.support.engine_harness import Question, SamplingParams

    with pytest.raises(ConfigError, match="'seed' is not available for the base model on a CPU"):
        tiny_engine.ask(Question(None, prompt(5), SamplingParams(seed=1, max_tokens=1)))
