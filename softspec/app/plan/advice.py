"""What to change, one line each, only where it holds.

In: a case and the room on its device. Out: sentences. Every number in them comes from planning the other case too.
"""

from collections.abc import Iterator
from dataclasses import replace

from softspec.app.plan.case import Case, chosen_layers
from softspec.app.plan.device import GIB
from softspec.app.plan.memory import Room, fits, limits_of, memory_of, user_kv_bytes
from softspec.app.plan.roofline import decode_tokens, times_of, work_of
from softspec.artefact.activation import DEFAULT_BLOCK_SIZE

_WORTH = 0.95
"""A change is told if it leaves less than this share."""


def advice(case: Case, room: Room) -> list[str]:
    """What to know and to change, the most urgent first."""
    return [*_too_large(case, room), *_limits(case, room), *_prompts(case), *_layers(case), *_cost(case)]


def _too_large(case: Case, room: Room) -> Iterator[str]:
    load, longest = case.load, case.base.longest
    if longest is not None and load.context > longest:
        yield f"the base reads {longest:,} tokens at most: {load.context:,} need another base"
    if fits(case, room):
        return
    memory, limits = memory_of(case, room), limits_of(case, room)
    most = {"user": limits.users, "member": limits.members, "token": limits.context}
    ways = [f"{count:,} {what}{'s' if count > 1 else ''}" for what, count in most.items() if count]
    if memory.spare < 0 or memory.kv <= 0 or not ways:
        needed = (memory.weights + memory.slots + memory.workspace + memory.runtime) / GIB
        yield (
            f"does not fit: {needed:.1f} GiB go before the KV cache, of {room.total / GIB:.1f}: "
            "a larger device, or a smaller base"
        )
        return
    yield f"does not fit: everything else as planned, at most {', or '.join(ways)}"
    if case.device.is_cpu:
        held = load.users * user_kv_bytes(case) / GIB
        yield f"the KV cache has {memory.kv / GIB:.1f} GiB and needs {held:.1f}: raise VLLM_CPU_KVCACHE_SPACE"


def _limits(case: Case, room: Room) -> Iterator[str]:
    if fits(case, room):
        limits = limits_of(case, room)
        longest = min(limits.context, case.base.longest or limits.context)
        yield f"fits: everything else as planned, up to {limits.users:,} users, or {longest:,} tokens of context"


def _prompts(case: Case) -> Iterator[str]:
    if case.ensemble.block_size is not None or case.ensemble.members == 1:
        return
    shared = replace(case, ensemble=replace(case.ensemble, block_size=DEFAULT_BLOCK_SIZE))
    before, after = user_kv_bytes(case), user_kv_bytes(shared)
    if after < _WORTH * before:
        yield (
            f"activation block would hold the prompt once: {after / 2**20:,.0f} MiB of KV cache a user instead of "
            f"{before / 2**20:,.0f}, first token {1e3 * times_of(shared).first:,.1f} ms instead of "
            f"{1e3 * times_of(case).first:,.1f}"
        )


def _layers(case: Case) -> Iterator[str]:
    if case.ensemble.members == 1:
        return
    if not case.device.shares_layers:
        if case.lowest:
            yield (
                f"layers below the adapters, {case.lowest} here, are computed for every member on a GPU: adapters in "
                "few layers save neither time nor memory there"
            )
        return
    top = replace(case.ensemble, layers=chosen_layers("top_third", case.base.layers))
    now, then = times_of(case), times_of(replace(case, ensemble=top))
    if then.token < _WORTH * now.token:
        yield (
            f"adapters in the top third of the layers: a token would take {1e3 * then.token:,.1f} ms instead of "
            f"{1e3 * now.token:,.1f}"
        )


def _cost(case: Case) -> Iterator[str]:
    if case.ensemble.members == 1:
        return
    ensemble, alone = (work_of(each, decode_tokens(each)) for each in (case, case.alone))
    more = {name: ensemble[name].seconds(case) - alone[name].seconds(case) for name in ensemble}
    part = max(more, key=more.__getitem__)
    ratio = times_of(case).token / times_of(case.alone).token
    bound = "memory" if ensemble[part].is_memory_bound(case) else "compute"
    remedies = {
        "attention": "fewer members, users or tokens",
        "layers": "fewer members or users",
        "layers below": "fewer members or users",
        "adapters": "fewer members or a smaller rank",
    }
    yield (
        f"a token costs {ratio:.2f} times one adapter's at this load, most of the difference being {part}, {bound} "
        f"bound: less with {remedies.get(part, 'fewer members')}"
    )
