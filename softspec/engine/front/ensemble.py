"""One load of an ensemble directory, as the engine and its front end know it: adapters with numbers and names.

In: an ensemble directory, and the first free number. Out: what each model name of it asks of the engine. Knows files
and vLLM's word for an adapter; not which ensembles are served.

vLLM 0.32 place: `vllm.lora.request.LoRARequest`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vllm.lora.request import LoRARequest

from softspec.artefact.fit import lowest_layer
from softspec.artefact.manifest import Manifest, load_manifest, member_dir, member_rank
from softspec.engine.wire import Adapter, GroupSpec
from softspec.errors import ManifestError


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One load of an ensemble directory; loading it again makes another one, with other adapters.

    first_layer: the lowest decoder layer in which an adapter acts.
    """

    manifest: Manifest
    rank: int
    first_layer: int
    adapters: tuple[Adapter, ...]

    @property
    def name(self) -> str:
        """The model name under which it is served."""
        return self.manifest.name

    def specs(self) -> dict[str, GroupSpec]:
        """What each model name of this load asks of the engine: the ensemble's, and every member's.

        Every member is an ensemble of one, so that it too sees its prompt as it did in training.
        """
        whole = GroupSpec(
            adapters=self.adapters,
            log_weights=self.manifest.log_weights,
            weights_rule=self.manifest.weights_rule,
            block_size=self.manifest.activation.block_size,
            num_top=0,
            first_layer=self.first_layer,
            model=self.name,
            calibration=self.manifest.calibration,
        )
        members = {
            name: replace(whole, adapters=(adapter,), log_weights=(0.0,), model=name, calibration=None)
            for k, adapter in enumerate(self.adapters)
            if (name := f"{self.name}/member-{k}")
        }
        return {self.name: whole} | members


def read_ensemble(directory: Path, first_id: int) -> Ensemble:
    """An ensemble whose members have the LoRA ids from `first_id` on.

    The id is part of an adapter's name, by which vLLM's prefix cache tells weights apart: the same path may hold others
    next time.

    Raises:
        ManifestError: the directory is not a complete ensemble, or a file of weights is cut off.
    """
    manifest = load_manifest(directory)
    adapters = tuple(
        Adapter(f"{manifest.name}/member-{k}#{int_id}", int_id, str(member_dir(directory, k).resolve()))
        for k, int_id in enumerate(range(first_id, first_id + manifest.num_members))
    )
    try:
        first_layer = min(lowest_layer(Path(adapter.path)) for adapter in adapters)
    except ManifestError as error:
        raise ManifestError(f"ensemble '{manifest.name}' was not loaded: {error}") from error
    return Ensemble(manifest, member_rank(directory, manifest), first_layer, adapters)


def load_ensembles(directories: Iterable[Path]) -> list[Ensemble]:
    """Read the ensembles to start with, their members numbered through from 1."""
    ensembles: list[Ensemble] = []
    for directory in directories:
        ensembles.append(read_ensemble(directory, next_id(ensembles)))
    return ensembles


def lora_request_of(adapter: Adapter, model: str | None = None) -> LoRARequest:
    """vLLM's word for an adapter: for the engine, or, with a model's name, for vLLM's front end."""
    return LoRARequest(model or adapter.name, adapter.int_id, adapter.path)


def next_id(ensembles: Collection[Ensemble]) -> int:
    """The first LoRA id that these ensembles, numbered through from 1, leave free."""
    return 1 + sum(len(ensemble.adapters) for ensemble in ensembles)
