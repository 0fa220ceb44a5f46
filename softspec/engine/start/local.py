"""vLLM's engine behind this process's event loop: what `softspec serve` runs, without HTTP.

In: the arguments of `softspec serve` for vLLM, and loaded ensembles. Out: answers, of ensembles or, greedily, of single
adapters by vLLM's stock path, scores of known answers, and what the engine turned out to be. The engine core is a
process of its own, as there.

vLLM 0.32 place: `vllm.v1.engine.async_llm.AsyncLLM`.
"""

from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

import vllm
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.ensemble import Ensemble
from softspec.engine.front.handlers import token_decoder
from softspec.engine.front.scoring import ScoredOption, score_answers, score_options
from softspec.engine.front.sharing import LEAST_TOKENS, share_lower_layers
from softspec.engine.requirements import require_engine
from softspec.engine.start.arguments import USAGE, accepted_arguments, configure, engine_parser
from softspec.engine.trace import ChoiceTrace, tracing
from softspec.errors import ConfigError
from softspec.maths.sampling import SamplingSpec


@dataclass(frozen=True)
class EngineFacts:
    """What an engine runs with, in plain JSON types."""

    vllm: str
    device: str
    dtype: str
    enforce_eager: bool
    compilation: str
    threads: int
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_block_size: int
    kv_blocks: int


class LocalEngine:
    """An engine without HTTP, which answers as fast as it can; use `open_engine`."""

    def __init__(self, engine: AsyncLLM, ensembles: Collection[Ensemble]) -> None:
        self._engine = engine
        self._client = EnsembleClient(engine, ensembles)
        self._loras = self._client.registry.lora_requests
        self._requests = 0

    async def fill(self) -> None:
        """Read the weights of all members into the engine, and let them share what they can.

        Raises:
            UserError: an adapter is cut off, or belongs to another base.
        """
        await self._client.registry.fill()
        await share_lower_layers(self._client)

    def ask_ensemble(self, name: str, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[int]:
        """Greedy tokens of the mixture; yields how many arrived, whenever some do."""
        return self._ask(self._client, self._loras[name], prompt_ids, num_tokens)

    def ask_adapter(self, name: str, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[int]:
        """Greedy tokens of a single member by vLLM's stock path: an ordinary LoRA request, no group."""
        return self._ask(self._engine, self._loras[name], prompt_ids, num_tokens)

    async def score(
        self, name: str, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> list[ChoiceTrace]:
        """What an ensemble, or a member, thinks of answers that are known.

        Raises:
            FieldError: a token is not the model's, or an answer does not fit behind its prompt.
        """
        self._requests += 1
        return await score_answers(self._client, name, prompt_ids, answers, f"local-{self._requests}")

    async def score_options(
        self, name: str, prompt_ids: Sequence[int], options: Sequence[Sequence[int]]
    ) -> list[ScoredOption]:
        """How likely an ensemble finds each of several ways to go on after a prompt, without their tokens' numbers.

        Raises:
            FieldError: a token is not the model's, or an option does not fit behind its prompt.
        """
        self._requests += 1
        (scored,) = await score_options(
            self._client, name, [prompt_ids], [options], f"local-{self._requests}"
        )
        return scored

    async def draw(
        self,
        name: str,
        prompt_ids: Sequence[int],
        sampling: SamplingSpec,
        max_tokens: int,
        stop: Sequence[str],
    ) -> tuple[CompletionOutput, ChoiceTrace]:
        """One answer of an ensemble, as the server draws it, and its tokens' numbers.

        Args:
            sampling: temperature, top_p, top_k, min_p and seed.
        Raises:
            ConfigError, ValueError: the prompt is too long, or a setting means nothing.
        """
        self._requests += 1
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            max_tokens=max_tokens,
            stop=list(stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        with tracing() as trace:
            outputs = self._client.generate(
                prompt, params, f"local-{self._requests}", lora_request=self._loras[name]
            )
            async with aclosing(outputs):
                async for output in outputs:
                    found = output
        return found.outputs[0], trace.choices[0]

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self._engine.vllm_config.model_config.max_model_len

    @cached_property
    def decode(self) -> Callable[[int], tuple[str, list[int]]]:
        """Gives a token's text and its own bytes."""
        return token_decoder(self._engine)

    async def measure_uncertainty(self, on: bool) -> None:
        """Choose whether ensembles' tokens come with their uncertainty numbers, as they do when served."""
        await self._engine.collective_rpc("measure_uncertainty", args=(on,))

    async def share_lower_layers(self, on: bool) -> None:
        """Choose whether layers below the adapters are computed once for all members, as they are when served."""
        await self._engine.collective_rpc("share_lower_layers", args=(LEAST_TOKENS if on else None,))

    async def facts(self) -> EngineFacts:
        """What the engine turned out to run with."""
        config = self._engine.vllm_config
        return EngineFacts(
            vllm=vllm.__version__,
            device=config.device_config.device_type,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            enforce_eager=config.model_config.enforce_eager,
            compilation=config.compilation_config.mode.name,
            threads=(await self._engine.collective_rpc("num_threads"))[0],
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_block_size=config.cache_config.block_size,
            kv_blocks=config.cache_config.num_gpu_blocks,
        )

    async def _ask(
        self, client: EngineClient | EnsembleClient, lora: LoRARequest, prompt_ids: Sequence[int], count: int
    ) -> AsyncIterator[int]:
        self._requests += 1
        params = SamplingParams(
            temperature=0, max_tokens=count, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        with tracing():  # as for a caller who reads the numbers
            outputs: AsyncGenerator[RequestOutput, None] = client.generate(
                prompt, params, f"local-{self._requests}", lora_request=lora
            )
        async for output in outputs:
            yield len(output.outputs[0].token_ids)


@dataclass(frozen=True)
class Room:
    """What must fit into a KV cache at once: so many sequences of so many tokens."""

    rows: int
    tokens_per_row: int


@asynccontextmanager
async def open_engine(
    arguments: Sequence[str], ensembles: Collection[Ensemble], room: Room | None = None
) -> AsyncIterator[LocalEngine]:
    """Start an engine; it ends with the block.

    Args:
        arguments: the model, then vLLM's flags.
        room: on a CPU the cache is made just large enough for it; elsewhere, or with --num-gpu-blocks-override, it must
            be. None leaves its size to vLLM.
    Raises:
        ConfigError: vLLM refuses the flags, or the cache or the longest sequence is too small; the message says
            which flag helps.
        UnsupportedEngineError: an engine that was not tested with ensembles.
    """
    args = accepted_arguments(_parse(arguments))
    config = configure(args)
    cache = config.cache_config
    if room is not None:
        if cache.num_gpu_blocks_override is None and config.device_config.device_type == "cpu":
            cache.num_gpu_blocks_override = _blocks_for(room, config)
        _require_room(config, cache.num_gpu_blocks_override, room)
    require_engine(vllm.__version__, config, ensembles)
    engine = AsyncLLM.from_vllm_config(config, usage_context=USAGE, disable_log_stats=args.disable_log_stats)
    try:
        if room is not None:
            _require_room(config, cache.num_gpu_blocks, room)
        require_engine(vllm.__version__, config, ensembles)
        await engine.collective_rpc("install_ensemble_sampler")
        local = LocalEngine(engine, ensembles)
        await local.fill()
        yield local
    finally:
        engine.shutdown()
        # Its finaliser would do so again, at exit, when the modules that it needs are being taken apart.
        engine.shutdown = lambda timeout=None: None


def _parse(arguments: Sequence[str]) -> Namespace:
    options, unknown = engine_parser().parse_known_args(["--model", *arguments])
    if unknown:
        raise ConfigError(
            f"'{unknown[0]}' is no flag of ours or of vLLM's engine: see the command's --help, and vLLM's"
        )
    return options


def _blocks_for(room: Room, config: VllmConfig) -> int:
    # One block is vLLM's own.
    return room.rows * -(-room.tokens_per_row // config.cache_config.block_size) + 1


def _require_room(config: VllmConfig, blocks: int | None, room: Room) -> None:
    longest, needed = config.model_config.max_model_len, _blocks_for(room, config)
    if longest < room.tokens_per_row:
        raise ConfigError(
            f"sequences of {room.tokens_per_row} tokens are asked for but --max-model-len is {longest}: leave it out, "
            "or use shorter prompts"
        )
    if blocks is not None and blocks < needed:
        raise ConfigError(
            f"the KV cache has {blocks} blocks of {config.cache_config.block_size} tokens but {needed} are needed at "
            f"once: give --num-gpu-blocks-override {needed}, more memory, or fewer users or shorter prompts"
        )
