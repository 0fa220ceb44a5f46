"""Who asks, while a request is answered, and what that key may do, wherever that turns out.

In: the key that the gate has found. Out: refusals where a model, a policy or a route is settled. Without a key file
nobody is known and everything is allowed. Knows no HTTP.
"""

from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass, replace

from softspec.artefact.validation import as_key
from softspec.errors import ForbiddenError
from softspec.server.access.keys import Key
from softspec.server.access.places import Place
from softspec.server.policy.policy import Policy


@dataclass(frozen=True)
class Caller:
    """The name of a key, and what it may do; `also` are models that it asks by another name."""

    name: str
    key: Key
    also: tuple[str, ...] = ()

    def may_ask(self, model: str) -> bool:
        """Whether it may ask the model of this name."""
        return model in self.also or self.key.may_ask(model)


current_caller: ContextVar[Caller | None] = ContextVar("softspec_caller", default=None)


def require_place(caller: Caller, place: Place) -> None:
    """Raise unless the caller's key may use a route.

    Raises:
        ForbiddenError: it may not.
    """
    if caller.key.admin or place.path is None:
        return
    if place.is_admins:
        raise ForbiddenError(
            f"the API key '{caller.name}' may not use {place.path}: it needs a key with 'admin: true'"
        )
    if not caller.key.may_use(place.path):
        raise ForbiddenError(
            f"the API key '{caller.name}' may not use {place.path}: its paths are "
            f"{', '.join(caller.key.paths or ()) or 'none'}"
        )


def may_ask(model: str) -> bool:
    """Whether whoever asks may ask the model of this name."""
    caller = current_caller.get()
    return caller is None or caller.may_ask(model)


def let_ask(model: str) -> None:
    """Let whoever asks ask this model too until their request ends, as what they asked stands for it."""
    if (caller := current_caller.get()) is not None:
        current_caller.set(replace(caller, also=(*caller.also, model)))


def require_model(names: Collection[str]) -> None:
    """Raise unless whoever asks may ask a model, by any of its names.

    Raises:
        ForbiddenError: they may not.
    """
    caller = current_caller.get()
    if caller is not None and not any(map(caller.may_ask, names)):
        raise ForbiddenError(
            f"the API key '{caller.name}' may not ask '{as_key(next(iter(names), ''))}': its models are "
            f"{', '.join(caller.key.models or ()) or 'none'}"
        )


def require_policy(policy: Policy) -> None:
    """Raise unless a policy may decide on the requests of whoever asks.

    Raises:
        ForbiddenError: it may not.
    """
    caller = current_caller.get()
    if caller is not None and not caller.key.may_follow(policy):
        also = (
            ", and on_failure 'answer'" if policy.action == "route" and policy.on_failure == "answer" else ""
        )
        raise ForbiddenError(
            f"the API key '{caller.name}' may not have policy action '{policy.action}'{also}: its actions are "
            f"{', '.join(caller.key.actions or ()) or 'none'}"
        )
