"""vLLM's engine client, with ensembles among the models.

In: a request for a LoRA model name, which is an ensemble's or a member's. It goes to the engine as a group, and its
outputs come back with the telemetry taken out of the log-probabilities and put into the request's trace. Requests for
the base pass the same gate, and nothing else of it is touched.

vLLM 0.32 place: `vllm.engine.protocol.EngineClient`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.inputs import PromptType, tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from softspec.engine.asked import Asked, MayAsk
from softspec.engine.front.asking import asked_of
from softspec.engine.front.counting import count_tokens
from softspec.engine.front.ensemble import Ensemble, lora_request_of
from softspec.engine.front.gate import Gate
from softspec.engine.front.grammar import Grammars
from softspec.engine.front.output import carry_telemetry, watch_preemptions
from softspec.engine.front.registry import Registry
from softspec.engine.front.stopping import end_judged, judged
from softspec.engine.front.translation import (
    describe,
    failure_of,
    group_params,
    open_choices,
    record,
    refuse_unsupported,
)
from softspec.engine.trace import ChoiceTrace, current_trace
from softspec.engine.wire import GroupSpec
from softspec.errors import ConfigError, EngineError, FieldError


class EnsembleClient:
    """An `EngineClient` that answers for ensembles and their members too."""

    def __init__(
        self,
        engine: EngineClient,
        ensembles: Collection[Ensemble],
        base_names: Collection[str] = (),
        *,
        may_run: Callable[[str], None] | None = None,
        may_ask: MayAsk | None = None,
        on_failed: Callable[[str, EngineError], None] | None = None,
        on_preemption: Callable[[str], None] | None = None,
    ) -> None:
        """Serve `ensembles` on `engine`, beside its base.

        Args:
            may_run: called with the name of the ensemble that a request asks, before anything else; raises to refuse.
            may_ask: called with what every request asks, also of the base, before anything is computed.
            on_failed: called with the model's name and the reason when a group had to be ended.
            on_preemption: called with the model's name for every preemption of a group, with the group's next token.
        """
        self._engine = engine
        self._may_run = may_run
        self._may_ask = may_ask
        self._base_names = tuple(base_names)
        self._on_failed = on_failed
        self._gate, self._grammars = Gate(engine), Grammars(engine)
        self._places: dict[int, asyncio.Semaphore] = {}
        self.registry = Registry(engine, ensembles, base_names)
        processor = getattr(engine, "output_processor", None)
        if processor is not None:
            carry_telemetry(processor)
            end_judged(processor)
            count_tokens(processor)
            if on_preemption is not None:
                watch_preemptions(processor, on_preemption)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Refuse single adapters: one number would mean two of them, and one could push a member out.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"adapter '{lora_request.lora_name}' cannot be loaded beside ensembles: load an ensemble instead"
        )

    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **kwargs: object,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer as `EngineClient.generate` does, from the base, an ensemble or a member.

        Not a coroutine, so that the caller's trace is the one at the time of the call.

        Raises:
            ConfigError, VLLMClientError: see `admit`.
            UnknownModelError: while iterating, if the model was unloaded meanwhile.
            LockstepError, MixingError: while iterating, if a group had to be ended.
            ConfigError: while iterating, if the request's own constraints leave no token.
        """
        model = lora_request.lora_name if lora_request is not None else None
        params = self.admit(model, sampling_params, kwargs.get("priority", 0), prompt)
        if model is None:
            outputs = self._engine.generate(prompt, params, request_id, **kwargs)
        else:
            trace = current_trace.get()
            choices = open_choices(trace, params.n)
            outputs = self._answer(model, prompt, params, request_id, choices, trace is not None, **kwargs)
        return self._compiled(outputs, params) if params.structured_outputs else outputs

    def follow(
        self,
        spec: GroupSpec,
        prompt_ids: Sequence[int],
        request_id: str,
        choice: ChoiceTrace,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Go along the tokens that `spec` forces; their numbers come into `choice`, token by token.

        No judge is asked and no policy applies: nothing is answered. The caller holds the model whose `spec` it is, and
        has checked that the tokens are the model's and that they fit behind the prompt.

        Raises:
            FieldError, VLLMClientError: the priority or the prompt cannot be.
            UserError: see `may_ask`.
            LockstepError, MixingError: while iterating, if the group had to be ended.
        """
        params = SamplingParams(
            temperature=0,
            seed=0,
            max_tokens=len(spec.forced),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        params = self._gate.admit(params, priority)
        if self._may_ask is not None:
            self._may_ask(Asked((spec.model,), len(prompt_ids) + len(spec.forced)))
        prompt = tokens_input(list(prompt_ids))
        return self._ask(spec, prompt, params, request_id, [choice], priority=priority)

    def places_to_follow(self, num_members: int) -> asyncio.Semaphore:
        """As many places as groups of known tokens may be in the engine at once: they take half of its run slots.

        All who score share them, so that whoever wants an answer meanwhile finds the other half.
        """
        if num_members not in self._places:
            rows = self._engine.vllm_config.scheduler_config.max_num_seqs // 2
            self._places[num_members] = asyncio.Semaphore(max(rows // num_members, 1))
        return self._places[num_members]

    def admit(
        self,
        model: str | None,
        params: SamplingParams,
        priority: object = 0,
        prompt: PromptType | None = None,
    ) -> SamplingParams:
        """What the engine gets for a request with these parameters; `model` None is the base.

        Raises:
            ConfigError: this model, or this server's policy, cannot honour the request.
            VLLMClientError: vLLM's own checks say so.
            UserError: `may_ask` says so of this prompt.
        """
        if model is None:
            self._refuse_seed_on_cpu(params)
        else:
            if model in self.registry.ensembles and self._may_run is not None:
                self._may_run(model)
            refuse_unsupported(params)
        admitted = self._gate.admit(params, priority)
        if self._may_ask is not None and prompt is not None:
            names = self._base_names if model is None else (model,)
            most = self._may_ask(asked_of(names, prompt, params))
            if most is not None:
                admitted.max_tokens = min(admitted.max_tokens or most, most)
        return admitted

    async def _answer(
        self,
        model: str,
        prompt: PromptType,
        params: SamplingParams,
        request_id: str,
        choices: list[ChoiceTrace],
        is_traced: bool,
        **kwargs: object,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs that the caller would have had from one model; telemetry goes into `choices`.

        The request begins, and its members are chosen, with the first output that is asked for: a caller may leave
        before, and then nothing must be waited for.
        """
        with self.registry.holding(model) as spec:
            outputs = self._ask(spec, prompt, params, request_id, choices, is_traced, **kwargs)
            async with aclosing(outputs):
                async for output in outputs:
                    yield output

    async def _ask(
        self,
        spec: GroupSpec,
        prompt: PromptType,
        params: SamplingParams,
        request_id: str,
        choices: list[ChoiceTrace],
        is_traced: bool = True,
        **kwargs: object,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The same from members whose adapters stay in the engine for as long as this is iterated."""
        group = group_params(params, spec, is_traced)
        describe(choices, spec, group)
        lora_request = lora_request_of(spec.adapters[0])
        outputs = self._engine.generate(prompt, group, request_id, lora_request=lora_request, **kwargs)
        async with aclosing(judged(outputs, choices)) as outputs:
            async for output in outputs:
                for completion in output.outputs:
                    record(completion, params, spec, choices[completion.index])
                    self._raise_if_ended(completion, spec.model, request_id)
                yield output

    async def _compiled(
        self, outputs: AsyncGenerator[RequestOutput, None], params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of a request whose grammar is known to compile."""
        async with aclosing(outputs):
            await self._grammars.check(params)
            async for output in outputs:
                yield output

    def _raise_if_ended(self, completion: CompletionOutput, model: str, request_id: str) -> None:
        """Raise if this output says that its group had to be ended."""
        failure = failure_of(completion, request_id)
        if failure is not None:
            if self._on_failed is not None and isinstance(failure, EngineError):
                self._on_failed(model, failure)
            raise failure

    def _refuse_seed_on_cpu(self, params: SamplingParams) -> None:
        """Refuse a seed for the base on a CPU; ensembles and members draw with noise of our own instead.

        In model runner V1 a chunked prompt rewinds a seeded request's generator, which CPU generators cannot do: the
        whole engine would end.
        """
        if params.seed is not None and self._engine.vllm_config.device_config.device_type == "cpu":
            raise FieldError(
                "seed",
                "'seed' is not available for the base model on a CPU: ask an ensemble or a member, or leave it out",
            )
