"""Whether a run keeps what is frozen of its examples, and what that costs: decided once, and told in one line.

In: members, and the completions that a run will ask them about. Out: members that compute what is frozen once, or as
they were. Changes no number.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from softspec.artefact.activation import Activation
from softspec.artefact.cache import cache_folder
from softspec.console import tell
from softspec.train.config import TrainConfig
from softspec.train.data.units import Example
from softspec.train.members.frozen import Frozen
from softspec.train.members.kept import Kept
from softspec.train.members.likelihood import trunk_and_tail
from softspec.train.members.members import Members
from softspec.train.processes import Processes

GB = 1e9


def keep_frozen(
    config: TrainConfig, members: Members, processes: Processes, examples: Iterable[Example], base: str
) -> None:
    """Let the members keep what is frozen of these examples, if there is something, and room for it.

    Args:
        base: the fingerprint of the base, in the main process.
    """
    if members.sharing:
        if processes.is_main and config.frozen_cache_gb and _may_be_frozen(config, members.spec.layers[0]):
            tell("what is frozen is computed in every step: processes share the base (shard_base)")
        return
    frozen = Frozen(
        members.model, members.spec.layers[0], Kept(cache_folder("frozen")), processes.of_main(base)
    )
    keeps = False
    if processes.is_main:
        bar = tqdm(examples, desc="looking for what is frozen", unit="example", delay=2)
        keeps, line = make_room_for(frozen, bar, config)
        bar.close()
        if line:
            tell(line)
    members.frozen = frozen if processes.of_main(keeps) else None


def make_room_for(frozen: Frozen, examples: Iterable[Example], config: TrainConfig) -> tuple[bool, str]:
    """Look whether what is frozen of these examples fits into its folder, and make room for it there.

    Returns:
        Whether it does, and a line that says what it costs; the line is empty where nothing is frozen.
    """
    limit, folder = int(config.frozen_cache_gb * GB), frozen.kept.folder
    if not limit or not frozen.is_separable:
        return False, ""
    sizes = _sizes(frozen, examples, config.activation, limit)
    needed = sum(sizes.values())
    if not needed:
        return False, ""
    there = frozen.kept.use(sizes.keys())
    missing, free = max(0, needed - there), _free(folder)
    computed = "what is frozen is computed in every step: kept, it would take"
    if needed > limit:
        return False, f"{computed} more than frozen_cache_gb {config.frozen_cache_gb:g}"
    if missing > free / 2:
        return False, f"{computed} {missing / GB:.2f} GB of {free / GB:.2f} GB that are free in '{folder}'"
    frozen.kept.make_room(missing, limit, sizes.keys())
    return True, (
        f"what is frozen is computed once per example, in this run or an earlier one: {needed / GB:.2f} GB in "
        f"'{folder}', of which {min(there, needed) / GB:.2f} GB are there (frozen_cache_gb {config.frozen_cache_gb:g})"
    )


def _sizes(frozen: Frozen, examples: Iterable[Example], activation: Activation, limit: int) -> dict[str, int]:
    """The bytes of everything to keep, by key; not of all examples once it is more than `limit`."""
    has_trunks = activation.block_size is not None
    if not (has_trunks or frozen.first):
        return {}
    of_trunk, of_tail = frozen.bytes_per_token(has_trunks)
    sizes: dict[str, int] = {}
    total = 0
    for example in examples:
        trunk, tail = trunk_and_tail(example, activation)
        parts = {frozen.key(trunk): of_trunk * len(trunk), frozen.key(trunk, tail): of_tail * len(tail)}
        total += sum(size for key, size in parts.items() if key not in sizes)
        sizes |= parts
        if total > limit:
            break
    return sizes


def _may_be_frozen(config: TrainConfig, first: int) -> bool:
    """Whether there are tokens or layers on which no adapter acts."""
    return config.activation.block_size is not None or first > 0


def _free(folder: Path) -> int:
    """The free bytes of the disk that a folder, which need not be there, lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
