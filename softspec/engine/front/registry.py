"""Which ensembles an engine serves now, and how many requests hold the members of each.

In: ensembles at start-up, and directories while serving. Out: what a model name stands for at this moment. An ensemble
that is replaced or unloaded stays in the engine until its last request is done; then its adapters leave. Knows no HTTP.

vLLM 0.32 place: `add_lora` and `remove_lora` of `vllm.engine.protocol.EngineClient`.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import vllm
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from softspec.engine.front.ensemble import Ensemble, lora_request_of, next_id, read_ensemble
from softspec.engine.requirements import require_engine
from softspec.engine.wire import GroupSpec
from softspec.errors import ConfigError, UnknownModelError


class Registry:
    """Loads and unloads ensembles, one at a time; requests see a change all at once or not at all.

    `ensembles` (by name) and `lora_requests` (by model name, as vLLM's front end wants them) always show what is
    served. Numbers of adapters are never used again.
    """

    def __init__(
        self, engine: EngineClient, ensembles: Collection[Ensemble], base_names: Collection[str] = ()
    ) -> None:
        """Serve the ensembles to start with.

        Raises:
            ConfigError: two of the base, the ensembles and their members have one name.
        """
        self.ensembles: dict[str, Ensemble] = {}
        self.lora_requests: dict[str, LoRARequest] = {}
        self._engine = engine
        self._base_names = base_names
        # Whoever started the server vouches for its base; later ensembles must be of the same.
        bases = (ensemble.manifest.base_model for ensemble in ensembles)
        self._fingerprints = {base.fingerprint for base in bases if base.fingerprint}
        self._next_id = next_id(ensembles)
        self._specs: dict[str, tuple[Ensemble, GroupSpec]] = {}
        # Every ensemble with adapters in the engine, and how many unfinished requests hold them there.
        self._holders: dict[Ensemble, int] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        for ensemble in ensembles:
            self._refuse_taken_names(ensemble)
            self._holders[ensemble] = 0
            self._publish(ensemble)

    @contextmanager
    def holding(self, model: str) -> Iterator[GroupSpec]:
        """What `model` stands for now; its adapters stay in the engine until the context is left.

        Raises:
            UnknownModelError: no such ensemble or member is served.
        """
        if model not in self._specs:
            raise UnknownModelError(f"The model `{model}` does not exist.")
        ensemble, spec = self._specs[model]
        self._holders[ensemble] += 1
        try:
            yield spec
        finally:
            self._holders[ensemble] -= 1
            self._leave_when_done(ensemble)

    async def load(self, directory: Path, replace: bool = False) -> Ensemble:
        """Serve an ensemble from now on; with `replace` in place of the one that has its name, if any.

        Raises:
            UserError: it cannot be served; nothing has changed.
        """
        async with self._changing:
            await self.settle()  # the room of those that leave may be needed
            ensemble = await asyncio.to_thread(read_ensemble, directory, self._next_id)
            self._require_servable(ensemble, replace)
            self._next_id += len(ensemble.adapters)
            await self._add(ensemble)
            if ensemble.name in self.ensembles:
                self._withdraw(ensemble.name)
            self._publish(ensemble)
            return ensemble

    async def unload(self, name: str) -> None:
        """Serve an ensemble and its members no longer; requests that have begun are answered.

        Raises:
            UnknownModelError: no ensemble of that name is served.
        """
        async with self._changing:
            if name not in self.ensembles:
                raise UnknownModelError(f"The ensemble '{name}' cannot be found.")
            self._withdraw(name)

    async def settle(self) -> None:
        """Wait until no adapters are on their way out; those that unfinished requests hold stay."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _require_servable(self, ensemble: Ensemble, replace: bool) -> None:
        name, fingerprint = ensemble.name, ensemble.manifest.base_model.fingerprint
        if name in self.ensembles and not replace:
            raise ConfigError(
                f"The ensemble '{name}' has already been loaded. If you want to replace it, set 'replace' to true."
            )
        self._refuse_taken_names(ensemble)
        if fingerprint and self._fingerprints and fingerprint not in self._fingerprints:
            raise ConfigError(
                f"ensemble '{name}' was trained on a base with fingerprint {fingerprint[:12]} but this server started "
                f"with {', '.join(sorted(known[:12] for known in self._fingerprints))}: serve it on its own base"
            )
        try:
            require_engine(vllm.__version__, self._engine.vllm_config, [*self._holders, ensemble])
        except ConfigError as error:
            draining = len(self._holders) - len(self.ensembles)
            hint = f"; or try again later: {draining} replaced or unloaded still answer" if draining else ""
            raise ConfigError(f"ensemble '{name}' was not loaded: {error}{hint}") from error

    def _refuse_taken_names(self, ensemble: Ensemble) -> None:
        replaced = self.ensembles.get(ensemble.name)
        for model in ensemble.specs():
            owner = self._specs[model][0] if model in self._specs else None
            if model in self._base_names or (owner is not None and owner is not replaced):
                raise ConfigError(
                    f"model name '{model}' is taken by the base or another ensemble: rename the ensemble in its "
                    "ensemble.json, or the base with --served-model-name"
                )

    async def _add(self, ensemble: Ensemble) -> None:
        """Read the weights of all members into the engine, or of none."""
        self._holders[ensemble] = 0
        try:
            for adapter in ensemble.adapters:
                await self._engine.add_lora(lora_request_of(adapter))
        except BaseException as error:
            await self._remove(ensemble)
            if not isinstance(error, Exception):
                raise
            raise ConfigError(f"ensemble '{ensemble.name}' was not loaded: {error}") from error

    def _publish(self, ensemble: Ensemble) -> None:
        self.ensembles[ensemble.name] = ensemble
        for model, spec in ensemble.specs().items():
            self._specs[model] = ensemble, spec
            self.lora_requests[model] = lora_request_of(spec.adapters[0], model)

    def _withdraw(self, name: str) -> None:
        ensemble = self.ensembles.pop(name)
        for model in ensemble.specs():
            del self._specs[model], self.lora_requests[model]
        self._leave_when_done(ensemble)

    def _leave_when_done(self, ensemble: Ensemble) -> None:
        if self._holders[ensemble] or self.ensembles.get(ensemble.name) is ensemble:
            return
        task = asyncio.create_task(self._remove(ensemble))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _remove(self, ensemble: Ensemble) -> None:
        for adapter in ensemble.adapters:
            await self._engine.remove_lora(adapter.int_id)
        del self._holders[ensemble]
