"""vLLM's engine client, with ensembles among the models.

In: a request for a LoRA model name. If the name is an ensemble's, the request goes to the engine as a group, and its
outputs come back with the telemetry taken out of the log-probabilities and put into the request's trace. Everything
else passes through.

vLLM 0.32 place: `vllm.engine.protocol.EngineClient`.
"""

import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from softspec.engine.group import KEY, Adapter, GroupSpec
from softspec.engine.telemetry import num_columns, unpack
from softspec.engine.trace import ChoiceTrace, RequestTrace, current_trace
from softspec.errors import ConfigError
from softspec.manifest import AlwaysActivation, Manifest, load_manifest, member_dir, member_rank
from softspec.uncertainty import TokenUncertainty


@dataclass(frozen=True)
class Ensemble:
    """A loaded ensemble directory with the LoRA ids that the engine knows its members by."""

    manifest: Manifest
    rank: int
    adapters: tuple[Adapter, ...]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def lora_request(self) -> LoRARequest:
        """The model name under which vLLM's front end knows the ensemble; the engine never loads it as such."""
        return _lora_request(replace(self.adapters[0], name=self.name))

    def group_spec(self) -> GroupSpec:
        activation = self.manifest.activation
        return GroupSpec(
            adapters=self.adapters,
            log_weights=self.manifest.log_weights,
            weights_rule=self.manifest.weights_rule,
            block_size=0 if isinstance(activation, AlwaysActivation) else activation.block_size,
            num_top=0,
        )

    def member_specs(self) -> Iterator[GroupSpec]:
        """Every member as an ensemble of one, so that it too sees its prompt as it did in training."""
        spec = self.group_spec()
        for adapter in self.adapters:
            yield replace(spec, adapters=(adapter,), log_weights=(0.0,))


def load_ensembles(directories: Iterable[Path]) -> dict[str, Ensemble]:
    """Ensembles by name, their members numbered through.

    Raises:
        ManifestError: a directory is not a complete ensemble.
        ConfigError: two directories hold ensembles of one name.
    """
    ensembles: dict[str, Ensemble] = {}
    next_id = 1
    for directory in directories:
        manifest = load_manifest(directory)
        if manifest.name in ensembles:
            raise ConfigError(f"two ensembles are named '{manifest.name}': rename one in its ensemble.json")
        adapters = tuple(
            Adapter(f"{manifest.name}/member-{k}", next_id + k, str(member_dir(directory, k).resolve()))
            for k in range(manifest.num_members)
        )
        next_id += manifest.num_members
        ensembles[manifest.name] = Ensemble(manifest, member_rank(directory, manifest), adapters)
    return ensembles


class EnsembleClient:
    """An `EngineClient` that answers for ensembles and their members too."""

    def __init__(self, engine: EngineClient, ensembles: Mapping[str, Ensemble]) -> None:
        self._engine = engine
        self.ensembles = dict(ensembles)
        self._specs = {ensemble.name: ensemble.group_spec() for ensemble in ensembles.values()}
        for ensemble in ensembles.values():
            self._specs |= {spec.adapters[0].name: spec for spec in ensemble.member_specs()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def lora_requests(self) -> dict[str, LoRARequest]:
        """The model names to register with vLLM's front end: ensembles and members."""
        ensembles = {ensemble.name: ensemble.lora_request for ensemble in self.ensembles.values()}
        members = {
            adapter.name: _lora_request(adapter)
            for ensemble in self.ensembles.values()
            for adapter in ensemble.adapters
        }
        return ensembles | members

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `EngineClient.generate`; a plain function, so that the caller's trace is taken when it is called.

        Raises:
            ConfigError: the request asks for what a mixture cannot give.
        """
        spec = self._specs.get(lora_request.lora_name) if lora_request else None
        if spec is None:
            self._refuse_seed_on_cpu(sampling_params)
            return self._engine.generate(
                prompt, sampling_params, request_id, lora_request=lora_request, **kwargs
            )
        _refuse_unsupported(sampling_params)
        params = group_params(sampling_params, spec)
        choices = _open_choices(current_trace.get(), spec, params)
        outputs = self._engine.generate(
            prompt, params, request_id, lora_request=_lora_request(spec.adapters[0]), **kwargs
        )
        return _untangle(outputs, sampling_params, spec, choices)

    def _refuse_seed_on_cpu(self, params: SamplingParams) -> None:
        """Ensembles and members draw with noise of our own; the base has vLLM's generators.

        In model runner V1 a chunked prompt rewinds a seeded request's generator, which CPU generators cannot do: the
        whole engine would end.
        """
        if params.seed is not None and self._engine.vllm_config.device_config.device_type == "cpu":
            raise ConfigError(
                "'seed' is not available for the base model on a CPU: ask an ensemble or a member, or leave it out"
            )


def group_params(params: SamplingParams, spec: GroupSpec) -> SamplingParams:
    """The parameters that carry a group to the scheduler; `seed` is drawn if the caller gave none."""
    num_top = params.logprobs or 0
    group = copy(params)
    group.extra_args = {**(params.extra_args or {}), KEY: replace(spec, num_top=num_top).to_wire()}
    group.logprobs = num_top + num_columns(spec.num_members)
    group.flat_logprobs = True
    group.seed = secrets.randbelow(2**53) if params.seed is None else params.seed
    return group


def split_position(
    logprobs: FlatLogprobs, position: int, spec: GroupSpec, num_top: int
) -> tuple[TokenUncertainty, dict[int, Logprob]]:
    """One token's telemetry, and the mixture log-probabilities that the caller asked for."""
    start = logprobs.start_indices[position]
    end = start + 1 + num_top
    token = unpack(
        logprobs.token_ids[start],
        logprobs.logprobs[start],
        logprobs.logprobs[end : end + num_columns(spec.num_members)],
    )
    top = {
        logprobs.token_ids[i]: Logprob(logprobs.logprobs[i], logprobs.ranks[i], logprobs.decoded_tokens[i])
        for i in range(start, end)
    }
    return token, top


def _lora_request(adapter: Adapter) -> LoRARequest:
    return LoRARequest(adapter.name, adapter.int_id, adapter.path)


def _refuse_unsupported(params: SamplingParams) -> None:
    found = {
        "prompt_logprobs": params.prompt_logprobs is not None,
        "logprob_token_ids": bool(params.logprob_token_ids),
        "logprobs": params.logprobs == -1,
    }
    for field, asked in found.items():
        if asked:
            raise ConfigError(
                f"'{field}' is not available for an ensemble: ask a base model, or leave it out"
            )


def _open_choices(trace: RequestTrace | None, spec: GroupSpec, params: SamplingParams) -> list[ChoiceTrace]:
    """One trace per sample; vLLM seeds sample i of n with `seed + i`."""
    assert params.seed is not None
    choices = [ChoiceTrace(spec.log_weights, spec.weights_rule, params.seed + i) for i in range(params.n)]
    if trace is not None:
        trace.choices |= dict(enumerate(choices, start=len(trace.choices)))
    return choices


async def _untangle(
    outputs: AsyncGenerator[RequestOutput, None],
    params: SamplingParams,
    spec: GroupSpec,
    choices: list[ChoiceTrace],
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs that the caller would have had from one model; telemetry goes into `choices`."""
    try:
        async for output in outputs:
            for completion in output.outputs:
                _record(completion, params, spec, choices[completion.index])
            yield output
    finally:
        await outputs.aclose()


def _record(
    completion: CompletionOutput, params: SamplingParams, spec: GroupSpec, choice: ChoiceTrace
) -> None:
    logprobs = completion.logprobs
    assert isinstance(logprobs, FlatLogprobs)
    split = [split_position(logprobs, i, spec, params.logprobs or 0) for i in range(len(logprobs))]
    seen = 0 if params.output_kind == RequestOutputKind.DELTA else len(choice.tokens)
    choice.tokens += [token for token, _ in split[seen:]]
    if params.logprobs is None:
        completion.logprobs = completion.cumulative_logprob = None
        return
    completion.logprobs = FlatLogprobs() if params.flat_logprobs else []
    completion.logprobs.extend([top for _, top in split])
