"""vLLM's own output processor with a group's columns in it: what reaches the reader of a stream."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from softspec.engine.front.translation import group_params, split_position
from softspec.engine.wire import COLUMNS, KEY, Adapter, GroupSpec, num_columns
from tests.support.processor import core_request

pytestmark = pytest.mark.vllm

SPEC = GroupSpec((Adapter("a", 1, "a"), Adapter("b", 2, "b")), (-0.7, -0.7), "prefix_posterior", None, 0)


@pytest.fixture
def stream(tiny_base: Path) -> Callable[[int, int | None], Any]:
    """Sends `count` tokens of a group to a reader that comes only then; returns what it finds."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.outputs import LogprobsLists

    from softspec.engine.front.output import carry_telemetry

    def send(count: int, num_top: int | None) -> Any:
        processor = OutputProcessor(AutoTokenizer.from_pretrained(tiny_base), log_stats=False)
        carry_telemetry(processor)
        kind = RequestOutputKind.DELTA
        params = group_params(
            SamplingParams(max_tokens=count, logprobs=num_top, output_kind=kind, seed=1), SPEC
        )
        request = core_request(params)
        collector = RequestOutputCollector(kind, "group")
        processor.add_request(request, None, queue=collector)
        for token in range(count):
            top = [40 + token, 40 + token, 50][: 1 + (num_top or 0)]
            ids = np.array([top + [0] * len(COLUMNS) + [60 + token, 70]])
            columns = np.array([[-1.0] * len(top) + [float(token)] * num_columns(2)])
            row = LogprobsLists(ids, columns, np.array([1]))
            processor.process_outputs(
                [EngineCoreOutput(request_id="group", new_token_ids=[40 + token], new_logprobs=row)]
            )
        return collector.get_nowait().outputs[0].logprobs

    return send


@pytest.mark.parametrize("num_top", [None, 2])
def test_reader_that_falls_behind_loses_no_column(stream: Any, num_top: int | None) -> None:
    """vLLM merges what waits; telemetry has one id, and the drawn token may be among the likeliest."""
    merged = stream(4, num_top)

    tokens = [split_position(merged, position, SPEC, num_top or 0)[0] for position in range(4)]
    assert len(merged) == 4
    assert [token.token_id for token in tokens] == [40, 41, 42, 43]
    assert [token.total_entropy for token in tokens] == [0.0, 1.0, 2.0, 3.0]
    assert [token.member_log_probs for token in tokens] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [token.member_choices for token in tokens] == [(60, 70), (61, 70), (62, 70), (63, 70)]


def test_telemetry_of_an_answer_without_a_reader_is_dropped(tiny_base: Path) -> None:
    """A single member's answer, of which no route tells the numbers."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.outputs import LogprobsLists

    from softspec.engine.front.output import carry_telemetry

    processor = OutputProcessor(AutoTokenizer.from_pretrained(tiny_base), log_stats=False)
    carry_telemetry(processor)
    params = group_params(SamplingParams(seed=1), SPEC, is_traced=False)
    collector = RequestOutputCollector(params.output_kind, "group")
    processor.add_request(core_request(params), None, queue=collector)
    columns = 1 + num_columns(2)
    row = LogprobsLists(np.zeros((1, columns), int), np.zeros((1, columns)), np.array([1]))
    processor.process_outputs(
        [
            EngineCoreOutput(
                request_id="group", new_token_ids=[40], new_logprobs=row, finish_reason=FinishReason.STOP
            )
        ]
    )

    completion = collector.get_nowait().outputs[0]
    assert (completion.token_ids, completion.logprobs) == ([40], None)


def test_log_probabilities_are_told_without_a_trace() -> None:
    from vllm.sampling_params import SamplingParams

    wire = group_params(SamplingParams(logprobs=0, seed=1), SPEC, is_traced=False).extra_args[KEY]

    assert wire["is_traced"]


def test_telemetry_that_nobody_reads_is_not_decoded(stream: Any) -> None:
    assert set(stream(2, None).decoded_tokens) == {None}


def test_log_probabilities_of_the_drawn_token_alone_have_its_text_too(stream: Any) -> None:
    """0 asks for the drawn token's; None asks for none."""
    _, top = split_position(stream(2, 0), 1, SPEC, 0)

    assert [(token, bool(entry.decoded_token)) for token, entry in top.items()] == [(41, True)]


@pytest.mark.parametrize("value", ["x", 1, None, [], {}], ids=str)
def test_key_of_a_stranger_loses_no_request(tiny_base: Path, value: object) -> None:
    """The gate refuses it; an output processor that met it all the same must go on."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.output_processor import OutputProcessor

    from softspec.engine.front.output import carry_telemetry

    processor = OutputProcessor(AutoTokenizer.from_pretrained(tiny_base), log_stats=False)
    carry_telemetry(processor)
    processor.add_request(core_request(SamplingParams(logprobs=1, extra_args={KEY: value})), None)

    assert list(processor.request_states) == ["group"]


def test_log_probabilities_that_were_asked_for_have_their_text(stream: Any) -> None:
    _, top = split_position(stream(2, 2), 1, SPEC, 2)

    assert {token: entry.decoded_token for token, entry in top.items()}.keys() == {41, 50}
    assert all(entry.decoded_token for entry in top.values())


@pytest.mark.parametrize("model", ["jurists", "jurists/member-1"])
def test_preemption_is_told_with_the_model_that_was_asked(tiny_base: Path, model: str) -> None:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput
    from vllm.v1.engine.output_processor import OutputProcessor

    from softspec.engine.front.output import carry_telemetry, watch_preemptions

    processor = OutputProcessor(AutoTokenizer.from_pretrained(tiny_base), log_stats=False)
    carry_telemetry(processor)
    told: list[str] = []
    watch_preemptions(processor, told.append)
    processor.add_request(
        core_request(group_params(SamplingParams(seed=1), replace(SPEC, model=model))), None
    )
    other = core_request(SamplingParams())
    other.request_id = other.external_req_id = "base"
    processor.add_request(other, None)
    event = EngineCoreEvent.new_event(EngineCoreEventType.PREEMPTED)

    for request_id in ("group", "base", "left"):
        processor.process_outputs([EngineCoreOutput(request_id, [], events=[event])])

    assert told == [model]
