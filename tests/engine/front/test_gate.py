"""The gate before the engine: what numbers become, and which are refused, whatever model they are for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from softspec.engine.wire import KEY
from softspec.errors import ConfigError, FieldError

pytestmark = pytest.mark.vllm

LARGEST = 2**63 - 1
VOCAB_SIZE, LONGEST = 320, 1024


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from tests.support.scripted_vllm import FakeAsyncLLM

    return FakeAsyncLLM(AsyncEngineArgs(model=str(tiny_base), max_logprobs=28).create_engine_config())


@pytest.fixture(scope="module")
def gate(engine: Any) -> Any:
    from softspec.engine.front.gate import Gate

    return Gate(engine)


def params(**fields: Any) -> Any:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(**fields)


def slotted(engine: Any) -> Any:
    """The gate of an engine with model runner V2, as on GPUs."""
    from softspec.engine.front.gate import Gate

    config = engine.vllm_config
    seen = SimpleNamespace(
        model_config=config.model_config, speculative_config=None, use_v2_model_runner=True
    )
    return Gate(
        SimpleNamespace(vllm_config=seen, input_processor=engine.input_processor, renderer=engine.renderer)
    )


@pytest.mark.parametrize(
    ("fields", "admitted"),
    [
        ({"top_k": 2**63}, {"top_k": VOCAB_SIZE}),
        ({"top_k": 10**30}, {"top_k": VOCAB_SIZE}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"top_k": 7}, {"top_k": 7}),
        ({"top_p": 1e-300}, {"top_p": 2**-126}),
        ({"min_p": 5e-324}, {"min_p": 0.0}),
        ({"temperature": 1e-300}, {"temperature": 0.01}),
        ({"repetition_penalty": 1e308}, {"repetition_penalty": 2.0**64}),
        ({"repetition_penalty": 1e-320}, {"repetition_penalty": 2.0**-64}),
        ({"max_tokens": 2**80, "min_tokens": 2**79}, {"max_tokens": LONGEST, "min_tokens": LONGEST}),
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"stream_interval": 2**64}, {"stream_interval": LONGEST}),
        ({"thinking_token_budget": 2**64}, {"thinking_token_budget": LONGEST}),
        ({"allowed_token_ids": [5] * 2000 + [6]}, {"allowed_token_ids": [5, 6]}),
        ({"logit_bias": {5: 1e300, 6: -1e39}}, {"logit_bias": {5: 100.0, 6: -100.0}}),
    ],
    ids=str,
)
def test_numbers_beyond_their_bound_are_brought_to_it(
    gate: Any, fields: dict[str, Any], admitted: dict[str, Any]
) -> None:
    found = gate.admit(params(**fields))

    assert {name: getattr(found, name) for name in admitted} == admitted


@pytest.mark.parametrize("n", [1, 2, 3, 16384])
@pytest.mark.parametrize(
    "seed", [0, 42, -5, LARGEST, LARGEST - 1, LARGEST - 2, 2**63, 2**64, 10**30, -(2**63), -(2**63) - 1]
)
def test_every_sample_has_a_seed_of_64_bits(gate: Any, seed: int, n: int) -> None:
    """vLLM seeds sample i of n with `seed + i`."""
    first = gate.admit(params(seed=seed, n=n)).seed

    assert first >= -(2**63)
    assert first + n - 1 <= LARGEST
    if seed >= -(2**63) and seed + n - 1 <= LARGEST:
        assert first == seed


def test_drawn_seeds_leave_room_for_every_sample(gate: Any) -> None:
    from softspec.engine.front.translation import group_params
    from tests.engine.front.test_any_numbers import SPEC

    most = params(n=16384)

    assert group_params(gate.admit(most), SPEC).seed + most.n - 1 <= LARGEST


def test_parameters_of_the_caller_stay_as_they_are(gate: Any) -> None:
    asked = params(top_k=2**63, logit_bias={5: 1e300})

    gate.admit(asked)

    assert (asked.top_k, asked.logit_bias) == (2**63, {5: 1e300})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"logit_bias": {5: float("nan")}}, "logit_bias"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"extra_args": {KEY: "x"}}, f"vllm_xargs.{KEY}"),
        ({"extra_args": {KEY: None}}, f"vllm_xargs.{KEY}"),
        ({"extra_args": {"kv_transfer_params": "x"}}, "kv_transfer_params"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused_by_name(gate: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        gate.admit(params(**fields))

    assert refusal.value.field == field


def test_priority_has_64_bits(gate: Any) -> None:
    with pytest.raises(FieldError, match="'priority' is 9223372036854775808"):
        gate.admit(params(), priority=2**63)


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"allowed_token_ids": [2**63]},
        {"allowed_token_ids": []},
        {"stop_token_ids": [-(2**63)]},
        {"logprob_token_ids": [VOCAB_SIZE]},
        {"logprobs": -1},
    ],
    ids=str,
)
def test_vllms_own_checks_come_before_the_first_output(gate: Any, fields: dict[str, Any]) -> None:
    """vLLM itself checks when it takes the request: a stream has begun by then."""
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError):
        gate.admit(params(**fields))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stop_token_ids": list(range(200)), "min_tokens": 1}, "stop_token_ids"),
        ({"bad_words": [f"word {number}" * 40 for number in range(100)]}, "bad_words"),
    ],
    ids=["stop_token_ids", "bad_words"],
)
def test_what_a_slot_of_a_gpu_cannot_hold_is_refused(engine: Any, fields: dict[str, Any], field: str) -> None:
    """Model runner V2 raises in the worker, which ends the engine; V1 takes it."""
    from softspec.engine.front.gate import Gate

    Gate(engine).admit(params(**fields))
    with pytest.raises(FieldError, match="this engine takes at most") as refusal:
        slotted(engine).admit(params(**fields))

    assert refusal.value.field == field


def test_slots_of_a_gpu_hold_what_is_usual(engine: Any) -> None:
    slotted(engine).admit(
        params(stop_token_ids=list(range(20)), min_tokens=1, bad_words=["no", "never"], logit_bias={5: 1.0})
    )


def test_mistakes_of_callers_are_what_vllms_routes_answer_with_400() -> None:
    from vllm.entrypoints.serve import create_error_response

    assert create_error_response(FieldError("top_k", "no")).error.code == 400
    assert create_error_response(ConfigError("no")).error.code == 400
