"""Lower layers once: a model whose decoder layers below the adapters run one row of each group.

In: the seats of a step's rows. Out: the same hidden states and the same KV cache as without it. Knows vLLM's decoder
layers and attention; which row computes for which is in `spans.py`.

The states of the kept rows go through the lower layers alone. What they write into the KV cache is written for all rows
(*write-through*), so every row's cache is complete after every step: nothing is remembered from step to step, a row may
part from its group at any time, and prefix caching, preemption and single members need no rule of their own.

Layers in which no row of a step has an adapter are run without vLLM's LoRA wrappers, shared or not.

vLLM 0.32 places: `AttentionGroup.build_metadata` of the runner's `attn_groups`, called once in every step of either
model runner; decoder layers that take `(positions, hidden_states, residual)`; `do_kv_cache_update` of an attention
layer's `impl`; `ForwardContext.attn_metadata` by layer; `BaseLayerWithLoRA.base_layer`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm.config.compilation import CompilationMode
from vllm.forward_context import get_forward_context
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata

from softspec.engine.wire import Seat
from softspec.engine.worker.lower.kept import Kept
from softspec.engine.worker.lower.spans import Span, bare_depth, shared_depth, sources

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

_ARGUMENTS = ["positions", "hidden_states", "residual"]


@dataclass(frozen=True)
class _Layer:
    """One decoder layer: its attention, and its LoRA wrappers with the modules that hold them by these names."""

    module: nn.Module
    attention: Attention
    wrappers: tuple[tuple[nn.Module, str, BaseLayerWithLoRA], ...]

    def wrap(self, on: bool) -> None:
        """Run the layer's linear layers with their LoRA wrappers, or without."""
        for holder, name, wrapper in self.wrappers:
            holder._modules[name] = wrapper if on else wrapper.base_layer


@dataclass
class _Shared:
    """A step that is shared below layer `depth`; metadata and positions are those of the kept rows."""

    kept: Kept
    depth: int
    metadata: Any
    positions: Tensor | None = None


class LowerLayers:
    """The decoder layers of a model runner; those below all adapters run once for each group.

    `tokens` counts those of all steps, and those that went through the lowest layer.
    """

    def __init__(
        self, runner: "RunnerV1 | RunnerV2", seats: Callable[[CommonAttentionMetadata], list[Seat | None]]
    ) -> None:
        """Hook into the runner's model, once.

        Args:
            seats: tells the seats of a step's rows, in the order of its metadata.
        """
        self.tokens = [0, 0]
        self._least: int | None = None
        self._seats = seats
        (self._lora,) = _wrappers(runner)
        self._layers = _layers_of(runner)
        self._bare = 0
        self._shared: _Shared | None = None
        self._known: tuple[list[Seat | None], list[int], list[int]] = [], [], []
        self._plan: tuple[Kept, int] | None = None
        ((group,),) = runner.attn_groups
        self._build = group.build_metadata
        group.build_metadata = self._build_metadata
        for number, layer in enumerate(self._layers):
            layer.module.register_forward_pre_hook(partial(self._enter, number))
            impl = layer.attention.impl
            impl.do_kv_cache_update = partial(self._write, number, impl.do_kv_cache_update)

    def share(self, least: int | None) -> None:
        """Keep at least so many tokens of a step from now on; None is as without this class."""
        self._least = least
        self._known = [], [], []

    def _build_metadata(self, step: CommonAttentionMetadata, *args: Any, **kwargs: Any) -> Any:
        """Prepare a step before it runs; returns vLLM's own metadata of all its rows."""
        seats = self._seats(step)
        ends = step.query_start_loc_cpu.tolist()
        counts = [end - begin for begin, end in pairwise(ends)]
        assert step.seq_lens_cpu_upper_bound is not None
        firsts = [
            end - count for end, count in zip(step.seq_lens_cpu_upper_bound.tolist(), counts, strict=False)
        ]
        self._shared = None
        if not self._goes_on(seats, counts, firsts):
            self._plan_step([Span(*span) for span in zip(seats, firsts, counts, strict=True)])
        self._known = seats, counts, firsts
        if self._plan is not None:
            kept, depth = self._plan
            self._shared = _Shared(kept, depth, self._build(kept.narrowed(step), *args, **kwargs))
        return self._build(step, *args, **kwargs)

    def _goes_on(self, seats: list[Seat | None], counts: list[int], firsts: list[int]) -> bool:
        """Whether the same rows draw their next token: then the plan of the last step holds."""
        known_seats, known_counts, known_firsts = self._known
        return (
            seats == known_seats
            and counts == known_counts
            and firsts == [first + count for first, count in zip(known_firsts, known_counts, strict=True)]
        )

    def _plan_step(self, spans: Sequence[Span]) -> None:
        self._plan = None
        is_on = self._least is not None
        self._run_bare(min(bare_depth(spans), len(self._layers)) if is_on else 0)
        chosen = sources(spans, self._least or 0) if is_on else range(len(spans))
        # What is shared must be one row per token again when the last layer runs.
        if depth := min(shared_depth(spans, chosen), len(self._layers) - 1):
            self._plan = Kept.of(spans, chosen), depth

    def _run_bare(self, depth: int) -> None:
        """Run the layers below `depth` without LoRA wrappers, all others with them."""
        for number in range(min(depth, self._bare), max(depth, self._bare)):
            self._layers[number].wrap(number >= depth)
        self._bare = depth

    def _enter(self, number: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What a decoder layer gets: below the depth the kept rows, then all of them again."""
        shared = self._shared
        if number == 0:
            self.tokens[0] += args[1].shape[0]
            self.tokens[1] += args[1].shape[0] if shared is None else len(shared.kept.tokens)
        if shared is None or number > shared.depth:
            return None
        positions, hidden, residual = args
        if number == shared.depth:
            self._shared = None
            self._narrow_lora(shared, None)
            return positions, hidden[shared.kept.spread], residual[shared.kept.spread]
        if number == 0:
            metadata = get_forward_context().attn_metadata
            for layer in self._layers[: shared.depth]:
                metadata[layer.attention.layer_name] = shared.metadata
            self._narrow_lora(shared, shared.kept.tokens)
            shared.positions = positions.index_select(-1, shared.kept.tokens)
            hidden = hidden[shared.kept.tokens]
        return shared.positions, hidden, residual

    def _narrow_lora(self, shared: _Shared, tokens: Tensor | None) -> None:
        if self._bare < shared.depth:
            self._lora.narrow(tokens)

    def _write(
        self,
        number: int,
        write: Callable[..., None],
        layer: nn.Module,
        key: Tensor,
        value: Tensor,
        *rest: Any,
    ) -> None:
        """Write keys and values into the cache: those of kept rows for all rows that they compute for."""
        if self._shared is not None and number < self._shared.depth:
            key, value = key[self._shared.kept.spread], value[self._shared.kept.spread]
        write(layer, key, value, *rest)


def why_not(runner: "RunnerV1 | RunnerV2") -> str | None:
    """Why the lower layers of this runner's model cannot be shared; None if they can."""
    if runner.device.type != "cpu":
        return (
            f"not tried on '{runner.device.type}', where LoRA kernels and CUDA graphs want all rows of a step"
        )
    if runner.vllm_config.compilation_config.mode != CompilationMode.NONE:
        return "the model is compiled"
    if len(runner.attn_groups) != 1 or len(runner.attn_groups[0]) != 1:
        return "its layers attend in several ways"
    if len(_wrappers(runner)) != 1:
        return "its adapters are added by several wrappers"
    layers = _decoder_layers(runner.model)
    if layers is None:
        return f"{type(runner.model).__name__} has no list of decoder layers where it was looked for"
    for layer in layers:
        name = type(layer).__name__
        if _arguments_of(layer) != _ARGUMENTS:
            return f"{name} takes other arguments than {', '.join(_ARGUMENTS)}"
        attentions = [module for module in layer.modules() if isinstance(module, Attention)]
        if len(attentions) != 1 or not hasattr(attentions[0].impl, "do_kv_cache_update"):
            return f"{name} does not write to the KV cache once"
    return None


def _wrappers(runner: "RunnerV1 | RunnerV2") -> set[Any]:
    """What adds adapters to a step's rows: one for a language model, more beside towers for images."""
    return set(runner.lora_manager._adapter_manager.punica_wrapper_mapping.values())


def _arguments_of(layer: nn.Module) -> list[str]:
    parameters = inspect.signature(layer.forward).parameters.values()
    return [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]


def _decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    found = getattr(getattr(model, "model", None), "layers", None)
    return found if isinstance(found, nn.ModuleList) else None


def _layers_of(runner: "RunnerV1 | RunnerV2") -> list[_Layer]:
    layers = _decoder_layers(runner.model)
    assert layers is not None
    return [_layer_of(layer) for layer in layers]


def _layer_of(layer: nn.Module) -> _Layer:
    (attention,) = (module for module in layer.modules() if isinstance(module, Attention))
    wrappers = tuple(
        (holder, name, child)
        for holder in layer.modules()
        for name, child in holder.named_children()
        if isinstance(child, BaseLayerWithLoRA)
    )
    return _Layer(layer, attention, wrappers)
