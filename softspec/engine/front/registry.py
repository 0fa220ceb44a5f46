"""Which ensembles an engine serves now, and how many requests hold the members of each.

In: ensembles at start-up, and directories while serving. Out: what a model name stands for at this moment. An ensemble
that is replaced or unloaded stays in the engine until its last request is done; then its adapters leave. Knows no HTTP.

vLLM 0.32 place: `add_lora` and `remove_lora` of `vllm.engine.protocol.EngineClient`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import vllm
from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from softspec.artefact.calibration import Calibration
from softspec.artefact.fit import require_fit
from softspec.engine.front.ensemble import Ensemble, lora_request_of, next_id, read_ensemble
from softspec.engine.requirements import require_base, require_engine
from softspec.engine.wire import Adapter, GroupSpec
from softspec.errors import ConfigError, EngineError, SoftspecError, UnknownModelError

Canary = Callable[[str], Awaitable[None]]
"""Lets a model answer once, and raises if it cannot."""

_log = logging.getLogger(__name__)


class Registry:
    """Loads and unloads ensembles, one at a time; requests see a change all at once or not at all.

    `ensembles` (by name) and `lora_requests` (by model name, as vLLM's front end wants them) always show what is
    served. Numbers of adapters are never used again. `base_fingerprint` is that of the base that is served, None if
    nobody may ask.
    """

    base_fingerprint: str | None = None

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
        self._next_id = next_id(ensembles)
        self._specs: dict[str, tuple[Ensemble, GroupSpec]] = {}
        # Every ensemble with adapters in the engine, and how many unfinished requests hold them there.
        self._holders: dict[Ensemble, int] = {}
        self._leaving: dict[Ensemble, asyncio.Task[None]] = {}
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

    def spec_of(self, model: str) -> GroupSpec | None:
        """What `model` stands for now, without holding it; None if it is no ensemble and no member."""
        return self._specs[model][1] if model in self._specs else None

    def calibration_of(self, model: str) -> Calibration | None:
        """What an ensemble knows of its confidence; None if nothing, or if it is none."""
        spec = self.spec_of(model)
        return None if spec is None else spec.calibration

    async def fill(self) -> None:
        """Read the weights of the ensembles to start with into the engine.

        Raises:
            UserError: an adapter is cut off, or belongs to another base.
        """
        for ensemble in self.ensembles.values():
            await self._add(ensemble)

    async def load(self, directory: Path, replace: bool = False, canary: Canary | None = None) -> Ensemble:
        """Serve an ensemble from now on; with `replace` in place of the one that has its name, if any.

        Args:
            canary: tries the ensemble before it is served, under a name that no caller knows.
        Raises:
            UserError: it cannot be served; nothing has changed.
        """
        async with self._changing:
            await self.settle()  # the room of those that leave may be needed
            ensemble = await asyncio.to_thread(read_ensemble, directory, self._next_id)
            self._require_servable(ensemble, replace)
            self._next_id += len(ensemble.adapters)
            try:
                with self._kept(ensemble):
                    await self._add(ensemble)
                    if canary is not None:
                        await self._try_out(ensemble, canary)
                    if ensemble.name in self.ensembles:
                        self._withdraw(ensemble.name)
                    self._publish(ensemble)
            except BaseException:
                await self.settle()
                raise
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
        """Wait until no adapters are on their way out; those that unfinished requests hold stay.

        What could not leave before tries again.
        """
        for ensemble in tuple(self._holders):
            self._leave_when_done(ensemble)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    def _require_servable(self, ensemble: Ensemble, replace: bool) -> None:
        name = ensemble.name
        if name in self.ensembles and not replace:
            raise ConfigError(
                f"The ensemble '{name}' has already been loaded. If you want to replace it, set 'replace' to true."
            )
        self._refuse_taken_names(ensemble)
        require_base(self.base_fingerprint, [ensemble.manifest])
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
        """Read the weights of all members into the engine."""
        for adapter in ensemble.adapters:
            try:
                await self._add_adapter(adapter)
            except SoftspecError as error:
                raise type(error)(f"ensemble '{ensemble.name}' was not loaded: {error}") from error

    async def _add_adapter(self, adapter: Adapter) -> None:
        await asyncio.to_thread(
            require_fit, Path(adapter.path), Path(self._engine.vllm_config.model_config.model)
        )
        try:
            await self._engine.add_lora(lora_request_of(adapter))
        except Exception as error:
            reason = " ".join(str(error).split())
            if self._engine.errored:
                raise EngineError(f"the engine died of '{adapter.path}': {reason}") from error
            raise ConfigError(f"the engine refuses '{adapter.path}': {reason}") from error

    async def _try_out(self, ensemble: Ensemble, canary: Canary) -> None:
        """Let an ensemble answer once that nobody else can ask yet."""
        secret = f"{ensemble.name}\0"
        self._specs[secret] = ensemble, ensemble.specs()[ensemble.name]
        try:
            await canary(secret)
        except Exception as error:
            if self._engine.errored:
                raise EngineError(
                    f"the engine died when ensemble '{ensemble.name}' was tried: {error}"
                ) from error
            raise ConfigError(
                f"ensemble '{ensemble.name}' was not loaded: its trial failed: {error}"
            ) from error
        finally:
            del self._specs[secret]

    @contextmanager
    def _kept(self, ensemble: Ensemble) -> Iterator[None]:
        """Keep an ensemble in the engine while it is loaded; it leaves unless it is served by then."""
        self._holders[ensemble] = 1
        try:
            yield
        finally:
            self._holders[ensemble] -= 1
            self._leave_when_done(ensemble)

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
        is_served = self.ensembles.get(ensemble.name) is ensemble
        if self._holders[ensemble] or is_served or ensemble in self._leaving:
            return
        self._leaving[ensemble] = asyncio.create_task(self._remove(ensemble))

    async def _remove(self, ensemble: Ensemble) -> None:
        """Take an ensemble out of the engine; until that succeeds it takes its room."""
        try:
            for adapter in ensemble.adapters:
                # False where the engine has no such adapter, which is as well.
                await self._engine.remove_lora(adapter.int_id)
            del self._holders[ensemble]
        except Exception as error:
            _log.warning(
                "adapters of ensemble '%s' did not leave the engine (%s): the next load tries again",
                ensemble.name,
                " ".join(str(error).split()),
            )
        finally:
            del self._leaving[ensemble]
