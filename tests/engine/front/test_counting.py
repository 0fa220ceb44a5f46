"""What a request cost, counted in vLLM's own output processor: prompts once, and every token that was drawn."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from softspec.engine.meter import Meter, current_meter
from tests.support.processor import core_request

pytestmark = pytest.mark.vllm


@contextmanager
def metered() -> Iterator[Meter]:
    meter = Meter()
    token = current_meter.set(meter)
    try:
        yield meter
    finally:
        current_meter.reset(token)


class Counted:
    """An output processor that counts, and what it is given."""

    def __init__(self, base: Path) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        from softspec.engine.front.counting import count_tokens

        self.processor = OutputProcessor(AutoTokenizer.from_pretrained(base), log_stats=False)
        count_tokens(self.processor)

    def ask(self, name: str, n: int = 1, prompt: int = 3, stream: bool = False) -> list[str]:
        """Ask for n choices as `AsyncLLM` does; returns their names in the engine."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.output_processor import RequestOutputCollector
        from vllm.v1.engine.parallel_sampling import ParentRequest

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(n=n, max_tokens=9, output_kind=kind)
        request = _named(core_request(params), name, prompt)
        queue = RequestOutputCollector(kind, name)
        if n == 1:
            self.processor.add_request(request, None, queue=queue)
            return [name]
        parent, names = ParentRequest(request), []
        for index in range(n):
            child_id, child_params = parent.get_child_info(index)
            child = _named(core_request(child_params), child_id, prompt)
            self.processor.add_request(child, None, parent, index, queue)
            names.append(child_id)
        return names

    def draw(self, name: str, *tokens: int, ends: bool = False) -> None:
        """Give the processor tokens of a choice, as they come from the engine's core."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        reason = FinishReason.LENGTH if ends else None
        self.processor.process_outputs([EngineCoreOutput(name, list(tokens), finish_reason=reason)])


def _named(request: Any, name: str, prompt: int) -> Any:
    request.request_id = request.external_req_id = name
    request.prompt_token_ids = [5] * prompt
    return request


@pytest.fixture
def counted(tiny_base: Path) -> Counted:
    return Counted(tiny_base)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_prompt_and_tokens_are_counted(counted: Counted, stream: bool) -> None:
    with metered() as meter:
        (name,) = counted.ask("a", prompt=4, stream=stream)
    counted.draw(name, 40)
    counted.draw(name, 41, 42)
    counted.draw(name, 43, ends=True)

    assert (meter.prompt_tokens, meter.completion_tokens) == (4, 4)


def test_prompt_of_several_choices_is_counted_once(counted: Counted) -> None:
    with metered() as meter:
        names = counted.ask("a", n=3, prompt=4)
    for number, name in enumerate(names, start=1):
        counted.draw(name, *range(40, 40 + number), ends=True)

    assert (meter.prompt_tokens, meter.completion_tokens) == (4, 1 + 2 + 3)


def test_several_prompts_of_one_request_are_all_counted(counted: Counted) -> None:
    with metered() as meter:
        counted.ask("a", prompt=4)
        counted.ask("b", n=2, prompt=7)

    assert meter.prompt_tokens == 4 + 7


def test_moments_are_those_of_the_first_and_the_last_token(counted: Counted) -> None:
    with metered() as meter:
        (name,) = counted.ask("a")
    assert meter.first_token_at is None
    before = time.monotonic()
    counted.draw(name, 40)
    between = time.monotonic()
    counted.draw(name, 41, ends=True)

    assert meter.first_token_at is not None
    assert meter.last_token_at is not None
    assert before <= meter.first_token_at <= between <= meter.last_token_at


def test_answer_that_is_aborted_cost_what_was_drawn_until_then(counted: Counted) -> None:
    with metered() as meter:
        (name,) = counted.ask("a")
    counted.draw(name, 40, 41)
    counted.processor.abort_requests([name], internal=True)
    counted.draw(name, 42)

    assert meter.completion_tokens == 2


def test_each_request_pays_for_itself(counted: Counted) -> None:
    with metered() as first:
        (one,) = counted.ask("a", prompt=2)
    with metered() as second:
        (other,) = counted.ask("b", prompt=3)
    counted.draw(other, 40, 41)
    counted.draw(one, 42)

    assert (first.prompt_tokens, first.completion_tokens) == (2, 1)
    assert (second.prompt_tokens, second.completion_tokens) == (3, 2)


def test_what_nobody_pays_for_passes_too(counted: Counted) -> None:
    """A canary step, say, beside a request."""
    (name,) = counted.ask("a")
    with metered() as meter:
        counted.ask("b", prompt=3)
    counted.draw(name, 40, ends=True)

    assert (meter.prompt_tokens, meter.completion_tokens) == (3, 0)
