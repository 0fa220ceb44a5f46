"""A plan as a page for the terminal, and as plain numbers.

In: a case and the room on its device. Out: text, or JSON types.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from softspec.app.plan.advice import advice
from softspec.app.plan.case import Case
from softspec.app.plan.device import GIB
from softspec.app.plan.memory import (
    Room,
    adapter_weights,
    fits,
    kv_token_bytes,
    limits_of,
    memory_of,
    run_slots,
    slot_weights,
    user_kv_bytes,
)
from softspec.app.plan.roofline import Times, decode_tokens, prompt_tokens, times_of, work_of

_MIB = 2**20


def format_plan(case: Case, room: Room) -> str:
    """The page."""
    parts = (_head(case), _memory(case, room), _kv(case), _times(case), _parts(case), _advice(case, room))
    return "\n\n".join("\n".join(part) for part in parts)


def plan_document(case: Case, room: Room) -> dict[str, Any]:
    """The same as JSON types: bytes, and seconds."""
    memory, size = memory_of(case, room), case.device.number_bytes
    return {
        "case": asdict(case),
        "memory_bytes": {**asdict(memory), "adapter_slot": slot_weights(case) * size},
        "adapter_weights": adapter_weights(case),
        "kv_bytes": {
            "token of a row": kv_token_bytes(case),
            "user": user_kv_bytes(case),
            **dict(_kv_of(case)),
        },
        "fits": fits(case, room),
        "limits": asdict(limits_of(case, room)),
        "max_num_seqs": run_slots(case),
        "seconds": {"ensemble": asdict(times_of(case)), "one_adapter": asdict(times_of(case.alone))},
        "work": {
            "token": {name: asdict(work) for name, work in work_of(case, decode_tokens(case)).items()},
            "first": {name: asdict(work) for name, work in work_of(case, prompt_tokens(case, 1)).items()},
        },
        "advice": advice(case, room),
    }


def _head(case: Case) -> Iterator[str]:
    base, ensemble, load = case.base, case.ensemble, case.load
    where = f"{len(ensemble.layers)} of {base.layers} layers"
    yield f"{base.name}, {base.weights / 1e9:.2f} billion weights, on {case.device.name}"
    yield f"members: {ensemble.members} of rank {ensemble.rank} in {where}"
    yield f"users: {load.users}, with prompts of {load.prompt:,} tokens and answers of {load.output:,}"
    yield f"flags: --max-model-len {load.context} --max-num-seqs {run_slots(case)}"


def _memory(case: Case, room: Room) -> Iterator[str]:
    memory, members = memory_of(case, room), case.ensemble.members
    slot = slot_weights(case) * case.device.number_bytes / _MIB
    rest = room.total - memory.weights - memory.slots - memory.workspace - memory.runtime - memory.kv
    rows = {
        f"of {room.total / GIB:.1f}: weights": memory.weights,
        f"{members} adapters, {slot:.0f} MiB a slot": memory.slots,
        "workspace and runtime": memory.workspace + memory.runtime,
        "KV cache": memory.kv,
        f"  {case.load.users} users hold of it": case.load.users * user_kv_bytes(case),
        "not used": rest,
    }
    yield f"{'memory':40}{'GiB':>10}"
    yield from (f"{name:40}{each / GIB:10.2f}" for name, each in rows.items())


def _kv(case: Case) -> Iterator[str]:
    yield f"{'KV cache of a user':40}{'MiB':>10}"
    for name, held in _kv_of(case):
        yield f"{name:40}{held / _MIB:10.1f}"
    if case.lowest and case.ensemble.members > 1:
        yield "Of the layers below the adapters too every member keeps its own."


def _kv_of(case: Case) -> Iterator[tuple[str, int]]:
    """Bytes of one request at its end: as planned, and beside it what sharing saves and members cost."""
    yield "one adapter", user_kv_bytes(case.alone)
    if case.ensemble.members > 1 and case.ensemble.block_size is not None:
        yield "prompt shared by all members", user_kv_bytes(case)
    if case.ensemble.members > 1:
        apart = replace(case, ensemble=replace(case.ensemble, block_size=None))
        yield "a prompt for every member", user_kv_bytes(apart)


def _times(case: Case) -> Iterator[str]:
    ensemble, alone = times_of(case), times_of(case.alone)
    yield f"{'at best':40}{'ensemble':>10}{'one adapter':>14}{'ratio':>8}"
    rows = {
        f"ms a token, {case.load.users} users": ("token", 1e3),
        "ms to the first token, alone": ("first", 1e3),
        f"ms to the first token, {case.load.users} at once": ("first_of_all", 1e3),
        "requests a minute": ("requests_per_s", 60),
    }
    for name, (field, factor) in rows.items():
        ours, theirs = _field(ensemble, field), _field(alone, field)
        yield f"{name:40}{factor * ours:10.2f}{factor * theirs:14.2f}{ours / theirs:8.2f}"


def _field(times: Times, name: str) -> float:
    return float(getattr(times, name))


def _parts(case: Case) -> Iterator[str]:
    ensemble = work_of(case, decode_tokens(case))
    alone = work_of(case.alone, decode_tokens(case.alone))
    yield f"{'where a token goes, ms':40}{'ensemble':>10}{'one adapter':>14}  bound by"
    for name, work in ensemble.items():
        bound = "memory" if work.is_memory_bound(case) else "compute"
        yield f"{name:40}{1e3 * work.seconds(case):10.2f}{1e3 * alone[name].seconds(case):14.2f}  {bound}"


def _advice(case: Case, room: Room) -> Iterator[str]:
    for line in advice(case, room):
        yield textwrap.fill(line, 80, initial_indent="- ", subsequent_indent="  ")
