"""Every token that vLLM's front end receives, counted for the HTTP request that pays for it.

In: vLLM's output processor, changed once at start-up. Out: counts on the meter that is current where a request arrives.

vLLM 0.32 place: `vllm.v1.engine.output_processor.OutputProcessor`: `add_request`, which makes a request's state in the
task that asks, and `process_outputs`, which sees every token before any of it is handed out.
"""

import time
from weakref import WeakKeyDictionary

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState

from softspec.engine.meter import Meter, current_meter


def count_tokens(processor: OutputProcessor) -> None:
    """Count for the requests that arrive from now on."""
    add_request, process_outputs = processor.add_request, processor.process_outputs
    meters: WeakKeyDictionary[RequestState, Meter] = WeakKeyDictionary()

    def add(request: EngineCoreRequest, *args: object, **kwargs: object) -> None:
        add_request(request, *args, **kwargs)
        if (meter := current_meter.get()) is not None:
            state = processor.request_states[request.request_id]
            meters[state] = meter
            if state.request_index == 0:
                meter.prompt_tokens += state.prompt_len

    def process(outputs: list[EngineCoreOutput], *args: object, **kwargs: object) -> OutputProcessorOutput:
        now = time.monotonic()
        for output in outputs:
            state = processor.request_states.get(output.request_id)
            if state is not None and output.new_token_ids and (meter := meters.get(state)) is not None:
                meter.count(len(output.new_token_ids), now)
        return process_outputs(outputs, *args, **kwargs)

    processor.add_request, processor.process_outputs = add, process
