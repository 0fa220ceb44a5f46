"""What vLLM's front end does with outputs of groups: it carries all columns of telemetry, and tells of preemptions.

In: vLLM's output processor, changed once at start-up. Out: outputs whose telemetry is whole, and a call per preemption.
Knows which requests are groups, and nothing of what their columns mean. The columns are numbers, yet vLLM takes them
for tokens: it decodes each, which costs more than everything else that the front end does for a token, and it keeps one
of each token id when it merges the outputs of a stream whose reader fell behind.

vLLM 0.32 place: `vllm.v1.engine.output_processor.OutputProcessor`: `add_request`, whose states hold the
log-probabilities, and `process_outputs`, which gets the engine's events.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from vllm.logprobs import FlatLogprobs, LogprobsOnePosition
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState

from softspec.engine.wire import KEY


def carry_telemetry(processor: OutputProcessor) -> None:
    """Let groups that arrive from now on keep all columns, and let none be decoded that its caller does not read."""
    add_request = processor.add_request

    def add(request: EngineCoreRequest, *args: object, **kwargs: object) -> None:
        add_request(request, *args, **kwargs)
        params = request.sampling_params
        wire = (params.extra_args or {}).get(KEY) if params else None
        logprobs = processor.request_states[request.request_id].logprobs_processor
        if not isinstance(wire, dict) or logprobs is None:
            return
        if not wire.get("is_traced", True):
            logprobs.logprobs, logprobs.update_from_output = None, _drop
            return
        logprobs.logprobs = _Columns()
        if not wire.get("has_readers"):
            logprobs.tokenizer = None

    processor.add_request = add


def _drop(_output: EngineCoreOutput) -> None:
    """In place of keeping an output's log-probabilities."""


def watch_preemptions(processor: OutputProcessor, observe: Callable[[str], None]) -> None:
    """Call `observe` with the model of a group for its every preemption from now on, when its next token comes.

    With --disable-log-stats the engine tells of none.
    """
    add_request, process_outputs = processor.add_request, processor.process_outputs
    models: WeakKeyDictionary[RequestState, str] = WeakKeyDictionary()

    def add(request: EngineCoreRequest, *args: object, **kwargs: object) -> None:
        add_request(request, *args, **kwargs)
        params = request.sampling_params
        wire = (params.extra_args or {}).get(KEY) if params else None
        if isinstance(wire, dict):
            models[processor.request_states[request.request_id]] = wire["model"]

    def process(outputs: list[EngineCoreOutput], *args: object, **kwargs: object) -> OutputProcessorOutput:
        for output in outputs:
            for event in output.events or ():
                state = processor.request_states.get(output.request_id)
                if event.type == EngineCoreEventType.PREEMPTED and state is not None and state in models:
                    observe(models[state])
        return process_outputs(outputs, *args, **kwargs)

    processor.add_request, processor.process_outputs = add, process


class _Columns(FlatLogprobs):
    """Log-probabilities that slice and merge column by column; vLLM's own merge by token id."""

    def __getitem__(self, index: int | slice) -> "LogprobsOnePosition | _Columns":
        found = super().__getitem__(index)
        return _Columns(**vars(found)) if isinstance(found, FlatLogprobs) else found

    def extend(self, others: FlatLogprobs) -> None:
        first = len(self.logprobs)
        self.start_indices += [first + start for start in others.start_indices]
        self.end_indices += [first + end for end in others.end_indices]
        self.token_ids += others.token_ids
        self.logprobs += others.logprobs
        self.ranks += others.ranks
        self.decoded_tokens += others.decoded_tokens
