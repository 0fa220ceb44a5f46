"""What lies in a device's memory, and for how many users and tokens it is enough.

In: a `Case`. Out: bytes, and the most that fits. What vLLM 0.32 allocates is counted, which is more than what is needed
in three places: slots of adapters in all layers, whole KV blocks, and KV of every member in every layer.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from softspec.app.plan.case import Case
from softspec.app.plan.device import GIB

UTILISATION = 0.92
"""vLLM's default of `--gpu-memory-utilization`."""
CPU_KV_BYTES = 4 * GIB
"""`VLLM_CPU_KVCACHE_SPACE` as `softspec serve` sets it."""
_RUNTIME = GIB
"""An allowance for what a GPU's libraries and captured graphs take."""
_LOGIT_COPIES = 3
"""Float32 copies of a step's logits while they are mixed."""
_MOST = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes. `kv` is the KV cache, `spare` what is left beside it; below 0 there is too little."""

    total: int
    weights: int
    slots: int
    workspace: int
    runtime: int
    kv: int
    spare: int

    def blocks(self, case: Case) -> int:
        """KV blocks that requests can have; one is vLLM's own."""
        return max(self.kv // (kv_block(case) * kv_token_bytes(case)) - 1, 0)


def adapter_weights(case: Case) -> int:
    """Weights of one member's adapter, as they lie in its file."""
    widths = sum(sum(case.base.linears[module]) for module in case.ensemble.modules)
    return case.ensemble.rank * widths * len(case.ensemble.layers)


def slot_weights(case: Case) -> int:
    """Weights of one slot for an adapter: all linear layers of all decoder layers, embeddings and vocabulary."""
    base = case.base
    layer = sum(sum(shape) for shape in base.linears.values())
    tables = 2 * (base.vocabulary + base.hidden)
    return case.ensemble.engine_rank * (base.layers * layer + tables)


def kv_token_bytes(case: Case) -> int:
    """KV cache of one token of one row: keys and values of every layer."""
    return 2 * case.base.kv_width * case.base.layers * case.device.number_bytes


def kv_block(case: Case) -> int:
    """Tokens of a KV block: `softspec serve` lets blocks end where the adapters begin."""
    return case.ensemble.block_size or case.device.kv_block


def user_blocks(case: Case) -> int:
    """KV blocks of one request at its end: the shared part of its prompt once, the rest for every member."""
    block = kv_block(case)
    own = -(-(case.load.context - case.shared_prompt) // block)
    return case.shared_prompt // block + case.ensemble.members * own


def user_kv_bytes(case: Case) -> int:
    """KV cache of one request at its end, in whole blocks."""
    return user_blocks(case) * kv_block(case) * kv_token_bytes(case)


def run_slots(case: Case) -> int:
    """What `--max-num-seqs` must be at least: every row, and one for a shared prompt that is being computed."""
    return case.rows + (1 if case.ensemble.block_size else 0)


@dataclass(frozen=True)
class Room:
    """Bytes of a device, and of its KV cache where that is given instead of what is left."""

    total: int
    kv: int | None = None


def memory_of(case: Case, room: Room) -> Memory:
    """How a device's memory is divided."""
    size, base = case.device.number_bytes, case.base
    weights = base.weights * size
    slots = case.ensemble.members * slot_weights(case) * size
    states = 3 * (base.hidden + base.intermediate) * case.device.batched_tokens * size
    workspace = states + run_slots(case) * base.vocabulary * 4 * _LOGIT_COPIES
    runtime = 0 if case.device.is_cpu else _RUNTIME
    left = int(room.total * UTILISATION) - weights - slots - workspace - runtime
    kv = left if room.kv is None else room.kv
    return Memory(room.total, weights, slots, workspace, runtime, kv, left - kv)


def fits(case: Case, room: Room) -> bool:
    """Whether all users have their KV cache at once, to the end of their answers."""
    memory = memory_of(case, room)
    return memory.spare >= 0 and case.load.users * user_blocks(case) <= memory.blocks(case)


@dataclass(frozen=True)
class Limits:
    """The most that fits, everything else being as planned; 0 is not even the least."""

    users: int
    context: int
    members: int


def limits_of(case: Case, room: Room) -> Limits:
    """How far each of them could be raised, or must be lowered; `context` in steps of a KV block."""
    load, block = case.load, kv_block(case)
    shortest = load.output + 1 + (load.prompt - 1) % block

    def with_users(users: int) -> Case:
        return replace(case, load=replace(load, users=users))

    def with_context(context: int) -> Case:
        return replace(case, load=replace(load, context=context))

    def with_members(members: int) -> Case:
        return replace(case, ensemble=replace(case.ensemble, members=members))

    return Limits(
        users=_most(range(1, _MOST), lambda users: fits(with_users(users), room)),
        context=_most(range(shortest, _MOST * block, block), lambda length: fits(with_context(length), room)),
        members=_most(range(1, _MOST), lambda members: fits(with_members(members), room)),
    )


def _most(candidates: range, fits: Callable[[int], bool]) -> int:
    """The largest that fits, of which all smaller ones do; 0 if none."""
    count = bisect_left(candidates, True, key=lambda value: not fits(value))
    return candidates[count - 1] if count else 0
