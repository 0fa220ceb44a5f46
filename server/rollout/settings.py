"""What an operator says of a rollout: `aliases` and `shadows` in the server's file, and the flags `--alias`.

In: YAML's values, and the text of flags. Out: weights by alias, checked as far as can be without knowing what is
served. Knows pydantic.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from softspec.artefact.validation import as_key, first_problem
from softspec.errors import ConfigError
from softspec.server.rollout.aliases import Weights

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _with_a_share(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError("expected ensembles with weights, at least one of them above 0")
    return weights


def require_alias_name(alias: str) -> str:
    """The name, if an alias may have it.

    Raises:
        ValueError: it may not.
    """
    if not _NAME.fullmatch(alias):
        raise ValueError(
            f"an alias is named '{as_key(alias)}': expected up to 64 letters, digits, '.', '_' and '-', the first of "
            "them a letter or a digit"
        )
    return alias


def _named(aliases: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    for alias in aliases:
        require_alias_name(alias)
    return aliases


Weight = Annotated[float, Field(strict=True, ge=0, le=1_000_000)]
WeightsField = Annotated[dict[str, Weight], AfterValidator(_with_a_share)]
AliasesField = Annotated[dict[str, WeightsField], AfterValidator(_named)]
_aliases = TypeAdapter(AliasesField)


class Shadow(BaseModel):
    """Whose requests an ensemble is asked too, an alias's or another ensemble's, and which share of them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    of: Annotated[str, Field(min_length=1)]
    share: Annotated[float, Field(ge=0, le=1)]


def with_aliases(aliases: Mapping[str, Weights], flags: Sequence[str]) -> dict[str, Weights]:
    """The aliases of the file, with those of flags such as `my=demo:90,demo-v2:10` in place of the file's.

    Raises:
        ConfigError: a flag cannot be read.
    """
    given: dict[str, Weights] = {}
    for flag in flags:
        alias, weights = _read(flag)
        if alias in given:
            raise ConfigError(
                f"--alias names '{as_key(alias)}' twice: expected all of its ensembles in one flag"
            )
        given[alias] = weights
    return {**aliases, **given}


def read_weights(parts: Sequence[str], separator: str) -> dict[str, float]:
    """Weights as they are typed: `demo:90` and `demo-v2:10`, with this separator.

    Raises:
        ValueError: there is a part that has no number, or a name that is there twice; says which.
    """
    weights: dict[str, float] = {}
    for part in parts:
        name, _, number = part.rpartition(separator)
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not name or weight != weight:
            raise ValueError(
                f"'{as_key(part)}': expected an ensemble and its weight, such as demo{separator}90"
            )
        if name in weights:
            raise ValueError(f"'{as_key(name)}' is there twice: keep one")
        weights[name] = weight
    return weights


def _read(flag: str) -> tuple[str, Weights]:
    alias, sign, rest = flag.partition("=")
    if not sign:
        raise ConfigError(
            f"--alias is '{as_key(flag)}': expected NAME=ENSEMBLE:WEIGHT,..., such as my=demo:90,demo-v2:10"
        )
    try:
        content = {alias: read_weights(rest.split(","), ":")}
    except ValueError as error:
        raise ConfigError(f"--alias {as_key(alias)}: {error}") from None
    try:
        return alias, _aliases.validate_python(content)[alias]
    except ValidationError as error:
        raise ConfigError(f"--alias {first_problem(error, content)}") from None
