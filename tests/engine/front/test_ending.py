"""The end of an engine, as vLLM's own output processor tells it to those who wait."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from tests.support.processor import core_request

pytestmark = pytest.mark.vllm


def test_what_an_engine_gives_up_is_an_error_and_no_answer(tiny_base: Path) -> None:
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    from softspec.engine.front.ending import ending_of

    processor = OutputProcessor(AutoTokenizer.from_pretrained(tiny_base), log_stats=False)
    engine = SimpleNamespace(output_processor=processor, errored=False, shutdown=lambda timeout: None)
    collector = RequestOutputCollector(RequestOutputKind.DELTA, "group")

    async def end() -> None:
        ending = ending_of(engine)
        params = SamplingParams(output_kind=RequestOutputKind.DELTA)
        processor.add_request(core_request(params), None, queue=collector)
        processor.process_outputs(
            [EngineCoreOutput(request_id="group", new_token_ids=[], finish_reason=FinishReason.ABORT)]
        )
        assert collector.get_nowait() is None
        ending()

    asyncio.run(end())

    with pytest.raises(EngineDeadError, match=r"^the server is shutting down and waits no longer: "):
        collector.get_nowait()


def test_whoever_waits_when_an_engine_dies_hears_it_in_words() -> None:
    """vLLM tells its own callers first, and speaks of a stack trace that they do not see."""
    from vllm.v1.engine.exceptions import EngineDeadError

    from softspec.engine.front.ending import ending_of

    told: list[str] = []
    processor = SimpleNamespace(propagate_error=lambda error: told.append(str(error)), process_outputs=None)
    engine = SimpleNamespace(output_processor=processor, errored=True, shutdown=lambda timeout: None)

    async def end() -> None:
        ending_of(engine)
        processor.propagate_error(EngineDeadError())
        processor.propagate_error(ValueError("of another kind"))

    asyncio.run(end())

    died, other = told
    assert died == "the engine has died: there is no whole answer; send the request again"
    assert other == "of another kind"
