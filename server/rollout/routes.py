"""The routes that show a rollout and change it while the server runs.

In: `app.state.softspec_rollout`. Out: `GET /v1/aliases` and `POST /v1/aliases`, which the gate leaves to admin keys.
Knows FastAPI.
"""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.params import Depends

from softspec.server.observe.account import current_account
from softspec.server.rollout.aliases import Weights
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.wire import read_change

PATH = "/v1/aliases"
_log = logging.getLogger(__name__)


def add_rollout_routes(app: FastAPI, checks: Sequence[Depends]) -> None:
    """Add the routes; `checks` are made of every body."""
    app.add_api_route(PATH, show, methods=["GET"])
    app.add_api_route(PATH, change, methods=["POST"], dependencies=checks)


async def show(raw_request: Request) -> dict[str, Any]:
    """What every alias stands for now, and whom shadows follow."""
    return _rollout(raw_request).told()


async def change(content: Annotated[Any, Body()], raw_request: Request) -> dict[str, Any]:
    """Change what an alias stands for, or a shadow; with an admin key, or `VLLM_ALLOW_RUNTIME_LORA_UPDATING`."""
    rollout = _rollout(raw_request)
    rollout.require_open()
    wanted = read_change(content)
    before = {alias: rollout.aliases.get(alias) for alias in wanted.aliases}
    rollout.change(wanted.aliases, wanted.shadows)
    changes = [
        f"alias '{alias}' stands for {_in_words(weights)} now{_was(before[alias])}"
        for alias, weights in wanted.aliases.items()
    ]
    changes += [
        f"shadow '{shadow}' follows {each.share:g} of '{each.of}' now"
        for shadow, each in wanted.shadows.items()
    ]
    _log.info("%s%s", "; ".join(changes), _changed_by())
    return rollout.told()


def _in_words(weights: Weights) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def _was(weights: Weights | None) -> str:
    return f", before for {_in_words(weights)}" if weights else ""


def _changed_by() -> str:
    account = current_account.get()
    return f" (API key '{account.key}')" if account is not None and account.key else ""


def _rollout(raw_request: Request) -> Rollout:
    rollout: Rollout = raw_request.app.state.softspec_rollout
    return rollout
