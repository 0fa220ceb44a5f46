"""What is rolled out in this process: the aliases, held to the ensembles that come and go.

In: what the operator wants, at the start or while the server runs, and what is served. Out: changes, whole or not at
all. What was changed is lost with the process: the next one begins with its settings. Knows no HTTP.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from softspec.artefact.validation import as_key
from softspec.errors import ConfigError, ForbiddenError
from softspec.server.rollout.aliases import Aliases, Weights


@dataclass(frozen=True)
class Rollout:
    """The aliases, over ensembles of which `ensembles` always shows those served now; `models` gives all names.

    `may_change` says whether whoever the gate lets in may change anything.
    """

    ensembles: Collection[str] = ()
    models: Callable[[], Collection[str]] = tuple
    aliases: Aliases = field(default_factory=Aliases)
    may_change: bool = False
    _moving: set[str] = field(default_factory=set)

    def require_served(self) -> None:
        """Raise unless everything stands for what is served.

        Raises:
            ConfigError: an alias has the name of a model, or stands for what is no ensemble here.
        """
        for alias, weights in self.aliases.items():
            self._require_servable(alias, weights)

    def told(self) -> dict[str, Any]:
        """All that holds now."""
        return {"aliases": {alias: dict(weights) for alias, weights in self.aliases.items()}}

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

    def change_alias(self, alias: str, weights: Weights) -> None:
        """Let an alias stand for this from the next request on.

        Raises:
            ConfigError: it has the name of a model, or would stand for what is no ensemble here; nothing has changed.
        """
        self._require_servable(alias, weights)
        self.aliases.put(alias, weights)

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
            ConfigError: an alias leads to it.
        """
        for alias, weights in self.aliases.items():
            if weights.get(ensemble):
                raise ConfigError(
                    f"the alias '{alias}' stands for '{ensemble}' too: give it weight 0 first, as in "
                    f"'softspec alias URL {alias} OTHER=1'"
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
        moving = [name for name in (alias, *weights) if name in self._moving]
        if moving:
            raise ConfigError(f"'{moving[0]}' is being loaded or unloaded: try again once that is done")
        if alias in self.models():
            raise ConfigError(f"'{alias}' is a model that is served: give the alias another name")
        absent = [name for name, weight in weights.items() if weight and name not in self.ensembles]
        if absent:
            raise ConfigError(
                f"the alias '{alias}' stands for '{as_key(absent[0])}', which is no ensemble that is served: expected "
                f"{', '.join(self.ensembles) or 'one that is loaded'}; load it first, or give it weight 0"
            )
