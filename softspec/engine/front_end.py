"""Spares vLLM's front end the work of turning telemetry into text.

The log-probability columns of a group are numbers, yet vLLM decodes a token for each. Nobody reads that text when the
caller asked for no log-probabilities, and it costs more than everything else the front end does for a token.

vLLM 0.32 place: `vllm.v1.engine.output_processor.OutputProcessor.add_request`, whose states hold a tokenizer each.
"""

from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor

from softspec.engine.group import KEY


def leave_telemetry_undecoded(processor: OutputProcessor) -> None:
    """From now on, groups whose caller wants no log-probabilities have theirs passed on as numbers only."""
    add_request = processor.add_request

    def add(request: EngineCoreRequest, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        params = request.sampling_params
        wire = (params.extra_args or {}).get(KEY) if params else None
        state = processor.request_states[request.request_id]
        if wire is not None and not wire["num_top"] and state.logprobs_processor is not None:
            state.logprobs_processor.tokenizer = None

    processor.add_request = add
