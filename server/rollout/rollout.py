"""What is rolled out in this process: the aliases, held to the ensembles that come and go.

In: what the operator wants, at the start or while the server runs, and what is served. Out: changes, whole or not at
all. What was changed is lost with the process: the next one begins with its settings. Knows no HTTP.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from softspec.artefact.validation import as_key
from softspec.errors import ConfigError
from softspec.server.rollout.aliases import Aliases, Weights


@dataclass(frozen=True)
class Rollout:
    """The aliases, over ensembles of which `ensembles` always shows those served now; `models` gives all names."""

    ensembles: Collection[str] = ()
    models: Callable[[], Collection[str]] = tuple
    aliases: Aliases = field(default_factory=Aliases)

    def require_served(self) -> None:
        """Raise unless everything stands for what is served.

        Raises:
            ConfigError: an alias has the name of a model, or stands for what is no ensemble here.
        """
        for alias, weights in self.aliases.items():
            self._require_servable(alias, weights)

    def require_loadable(self, ensemble: str) -> None:
        """Raise where an ensemble of this name would take an alias's.

        Raises:
            ConfigError: it would.
        """
        if ensemble in self.aliases:
            raise ConfigError(
                f"'{ensemble}' is an alias here: rename the ensemble in its ensemble.json, or the alias"
            )

    def require_unneeded(self, ensemble: str) -> None:
        """Raise where an alias would lead to an ensemble that is about to go.

        Raises:
            ConfigError: it would.
        """
        for alias, weights in self.aliases.items():
            if weights.get(ensemble):
                raise ConfigError(
                    f"the alias '{alias}' stands for '{ensemble}' too: give it weight 0 first, as in "
                    f"'softspec alias URL {alias} OTHER=1'"
                )

    def _require_servable(self, alias: str, weights: Weights) -> None:
        if alias in self.models():
            raise ConfigError(f"'{alias}' is a model that is served: give the alias another name")
        absent = [name for name, weight in weights.items() if weight and name not in self.ensembles]
        if absent:
            raise ConfigError(
                f"the alias '{alias}' stands for '{as_key(absent[0])}', which is no ensemble that is served: expected "
                f"{', '.join(self.ensembles) or 'one that is loaded'}; load it first, or give it weight 0"
            )
