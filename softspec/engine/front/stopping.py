"""Ends a choice at the token to which its judge objects, as vLLM ends one at a stop string.

In: vLLM's output processor, changed once at start-up, and choices with their judges. Out: a choice whose last token is
the one that its judge objected to; the engine computes no other for it, whatever of the answer is sent when, while the
other choices of its request go on. Knows no policy.

vLLM 0.32 place: `vllm.v1.engine.output_processor.OutputProcessor`: `add_request`, which makes a request's state in the
task that asks, and `process_outputs`, which sees every token before any of it is handed out.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from vllm.outputs import RequestOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState

from softspec.engine.trace import ChoiceTrace, Judge
from softspec.engine.wire import KEY, GroupSpec, unpack
from softspec.maths.answer import TokenUncertainty

ABSTAINED = "abstained"
"""The `stop_reason` of a choice that its judge ended."""

_judges_of_request: ContextVar[Sequence[Judge]] = ContextVar("softspec_judges", default=())


def judged(
    outputs: AsyncGenerator[RequestOutput, None], choices: Sequence[ChoiceTrace]
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of a request whose choices end where their judges object; as they are if nobody judges."""
    judges = [choice.judge_of(choice) for choice in choices if choice.judge_of is not None]
    return _with_judges(outputs, judges) if judges else outputs


async def _with_judges(
    outputs: AsyncGenerator[RequestOutput, None], judges: Sequence[Judge]
) -> AsyncGenerator[RequestOutput, None]:
    async with aclosing(outputs):
        # The request is added to the output processor while its first output is waited for, in this very task.
        token = _judges_of_request.set(judges)
        try:
            first = await anext(outputs, None)
        finally:
            _judges_of_request.reset(token)
        if first is not None:
            yield first
            async for output in outputs:
                yield output


def end_judged(processor: OutputProcessor) -> None:
    """Let judges end the choices of requests that arrive from now on."""
    add_request, process_outputs = processor.add_request, processor.process_outputs
    judging: WeakKeyDictionary[RequestState, tuple[Judge, GroupSpec]] = WeakKeyDictionary()

    def add(request: EngineCoreRequest, *args: object, **kwargs: object) -> None:
        add_request(request, *args, **kwargs)
        judges, params = _judges_of_request.get(), request.sampling_params
        if judges and params is not None and params.extra_args:
            state = processor.request_states[request.request_id]
            spec = GroupSpec.from_wire(params.extra_args[KEY])
            judging[state] = judges[state.request_index], spec

    def objects(output: EngineCoreOutput) -> bool:
        """Whether a judge ends the choice with this output."""
        state = processor.request_states.get(output.request_id)
        if state is None or state not in judging or output.finish_reason == FinishReason.ERROR:
            return False
        judge, spec = judging[state]
        if not any(judge(token) for token in _tokens(output, spec)):
            return False
        del judging[state]
        return True

    def process(outputs: list[EngineCoreOutput], *args: object, **kwargs: object) -> OutputProcessorOutput:
        to_abort = []
        for output in outputs:
            if objects(output):
                if not output.finished:
                    to_abort.append(output.request_id)
                output.finish_reason, output.stop_reason = FinishReason.STOP, ABSTAINED
        processed = process_outputs(outputs, *args, **kwargs)
        processed.reqs_to_abort += to_abort
        return processed

    processor.add_request, processor.process_outputs = add, process


def _tokens(output: EngineCoreOutput, spec: GroupSpec) -> Iterator[TokenUncertainty]:
    """The new tokens of an output, read from the columns that the worker wrote."""
    if output.new_logprobs is None:
        return
    for ids, values in zip(output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs, strict=True):
        yield unpack(ids.tolist(), values.tolist(), spec.num_top, spec.num_members)
