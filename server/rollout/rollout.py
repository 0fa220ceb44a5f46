"""What is rolled out in this process: aliases and shadows, held to the ensembles that come and go.

In: what the operator wants, at the start or while the server runs, and what is served. Out: changes, whole or not at
all. What was changed is lost with the process: the next one begins with its settings. Knows no HTTP.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from softspec.artefact.validation import as_key
from softspec.errors import ConfigError, ForbiddenError
from softspec.server.rollout.aliases import Aliases, Weights
from softspec.server.rollout.settings import Shadow
from softspec.server.rollout.shadows import Shadows


@dataclass(frozen=True)
class Rollout:
    """Aliases and shadows, over ensembles of which `ensembles` always shows those served now; `models` gives all names.

    `may_change` says whether whoever the gate lets in may change anything.
    """

    ensembles: Collection[str] = ()
    models: Callable[[], Collection[str]] = tuple
    aliases: Aliases = field(default_factory=Aliases)
    shadows: Shadows = field(default_factory=Shadows)
    may_change: bool = False
    _moving: set[str] = field(default_factory=set)

    def require_served(self) -> None:
        """Raise unless everything stands for what is served.

        Raises:
            ConfigError: an alias has the name of a model, or stands for what is no ensemble here.
        """
        for alias, weights in self.aliases.items():
            self._require_servable(alias, weights)
        self._require_followed(self.shadows, self.aliases)

    def told(self) -> dict[str, Any]:
        """All that holds now."""
        return {
            "aliases": {alias: dict(weights) for alias, weights in self.aliases.items()},
            "shadows": {shadow: wanted.model_dump() for shadow, wanted in self.shadows.items()},
        }

    def require_open(self) -> None:
        """Raise unless the rollout may be changed here.

        Raises:
            ForbiddenError: nobody would have to show a key for it, and the server was not told that this is well.
        """
        if not self.may_change:
            raise ForbiddenError(
                "aliases cannot be changed here: start the server with --keys, and use a key with 'admin: true', or "
                "with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, which lets everybody"
            )

    def change(self, aliases: Mapping[str, Weights], shadows: Mapping[str, Shadow]) -> None:
        """Let these aliases stand, and these shadows follow, as is said here from the next request on.

        Raises:
            ConfigError: what is no ensemble here would be asked, or an alias has a model's name; nothing has changed.
        """
        for alias, weights in aliases.items():
            self._require_servable(alias, weights)
        self._require_followed(shadows, {*self.aliases, *aliases})
        for alias, weights in aliases.items():
            self.aliases.put(alias, weights)
        self.shadows.put(shadows)

    @contextmanager
    def loading(self, ensemble: str) -> Iterator[None]:
        """While an ensemble comes; no alias gets its name meanwhile.

        Raises:
            ConfigError: an alias has it.
        """
        if ensemble in self.aliases:
            raise ConfigError(
                f"'{ensemble}' is an alias here: rename the ensemble in its ensemble.json, or the alias"
            )
        with self._in_motion(ensemble):
            yield

    @contextmanager
    def unloading(self, ensemble: str) -> Iterator[None]:
        """While an ensemble goes; no alias begins to stand for it meanwhile.

        Raises:
            ConfigError: an alias leads to it, or it is a shadow.
        """
        for alias, weights in self.aliases.items():
            if weights.get(ensemble):
                raise ConfigError(
                    f"the alias '{alias}' stands for '{ensemble}' too: give it weight 0 first, as in "
                    f"'softspec alias URL {alias} OTHER=1'"
                )
        if ensemble in self.shadows and self.shadows[ensemble].share:
            raise ConfigError(
                f"'{ensemble}' is the shadow of '{self.shadows[ensemble].of}': give it share 0 first"
            )
        with self._in_motion(ensemble):
            yield

    @contextmanager
    def _in_motion(self, ensemble: str) -> Iterator[None]:
        self._moving.add(ensemble)
        try:
            yield
        finally:
            self._moving.discard(ensemble)

    def _require_servable(self, alias: str, weights: Weights) -> None:
        asked = [name for name, weight in weights.items() if weight]
        self._require_settled(alias, *asked)
        if alias in self.models():
            raise ConfigError(f"'{alias}' is a model that is served: give the alias another name")
        absent = [name for name in asked if name not in self.ensembles]
        if absent:
            raise ConfigError(
                f"the alias '{alias}' stands for '{as_key(absent[0])}', which is no ensemble that is served: expected "
                f"{', '.join(self.ensembles) or 'one that is loaded'}; load it first, or give it weight 0"
            )

    def _require_followed(self, shadows: Mapping[str, Shadow], aliases: Collection[str]) -> None:
        for shadow, wanted in shadows.items():
            if not wanted.share:
                continue
            self._require_settled(shadow)
            if shadow not in self.ensembles:
                raise ConfigError(
                    f"the shadow '{as_key(shadow)}' is no ensemble that is served: expected "
                    f"{', '.join(self.ensembles) or 'one that is loaded'}; load it first, or give it share 0"
                )
            if wanted.of not in (*aliases, *self.ensembles):
                raise ConfigError(
                    f"the shadow '{as_key(shadow)}' follows '{as_key(wanted.of)}', which is neither an alias nor an "
                    f"ensemble that is served: expected one of {', '.join((*aliases, *self.ensembles))}"
                )

    def _require_settled(self, *names: str) -> None:
        moving = [name for name in names if name in self._moving]
        if moving:
            raise ConfigError(f"'{moving[0]}' is being loaded or unloaded: try again once that is done")
