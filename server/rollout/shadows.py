"""Shadows: ensembles that are asked what others are asked, in the background, to be measured and not heard.

In: which ensemble follows whom with what share, and a way to ask it. Out: counts of how that ended. Whoever is followed
does not wait and does not learn of it. Knows neither HTTP nor the engine.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from itertools import product
from typing import Any, Literal, get_args

from softspec.server.rollout.settings import Shadow

MOST_AT_ONCE = 4
"""So many are asked at the same time, all shadows together; the engine's room belongs to whoever waits."""
ENDING_S = 1
"""How long those that go on may take to notice that the server ends."""
ShadowOutcome = Literal["answered", "failed", "dropped"]
Count = Callable[[str, str, ShadowOutcome, int], None]
"""Is told of the shadow, of whom it follows, how it ended and how often: never yet, so that it begins at 0, or once.

`dropped`, where too many went on, it was not asked.
"""
AskShadow = Callable[[str], Coroutine[Any, Any, None]]
"""Asks the shadow of this name, measures its answer and drops it; raises where there is none."""
_log = logging.getLogger(__name__)


class Shadows(Mapping[str, Shadow]):
    """Whom each shadow follows now. `gone` is set once the server ends: nobody needs them any more."""

    def __init__(
        self,
        shadows: Mapping[str, Shadow] | None = None,
        count: Count = lambda *_: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.gone = asyncio.Event()
        self._shadows: dict[str, Shadow] = {}
        self._count, self._draw = count, draw
        self._asking: set[asyncio.Task[None]] = set()
        self._failing: set[str] = set()
        self.put(shadows or {})

    def __getitem__(self, shadow: str) -> Shadow:
        return self._shadows[shadow]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shadows)

    def __len__(self) -> int:
        return len(self._shadows)

    def put(self, shadows: Mapping[str, Shadow]) -> None:
        """Let shadows follow whom this says from the next request on; those that it does not name stay."""
        self._shadows |= shadows
        for (shadow, wanted), outcome in product(shadows.items(), get_args(ShadowOutcome)):
            self._count(shadow, wanted.of, outcome, 0)

    def follow(self, name: str, model: str, ask: AskShadow) -> None:
        """Ask the shadows whose turn it is, after `model` was asked by `name`; returns at once."""
        for shadow, wanted in self._shadows.items():
            follows = wanted.of in (name, model) and shadow != model
            if follows and not self.gone.is_set() and self._draw() < wanted.share:
                self._begin(shadow, wanted.of, ask)

    def end(self) -> None:
        """Ask nobody any more, and let those that go on know."""
        self.gone.set()

    async def aclose(self) -> None:
        """End all that goes on."""
        self.end()
        if self._asking:
            _, late = await asyncio.wait(self._asking, timeout=ENDING_S)
            for task in late:
                task.cancel()

    def _begin(self, shadow: str, of: str, ask: AskShadow) -> None:
        if len(self._asking) >= MOST_AT_ONCE:
            self._count(shadow, of, "dropped", 1)
            return
        # In a context of its own, which knows nothing of who asked: no account, no key, no meter, no span.
        task = asyncio.create_task(self._ask(shadow, of, ask), context=Context())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, shadow: str, of: str, ask: AskShadow) -> None:
        try:
            await ask(shadow)
        except Exception as error:
            if self.gone.is_set():
                return
            self._count(shadow, of, "failed", 1)
            if shadow not in self._failing:  # what it says may quote the request
                kind = type(error).__name__
                _log.warning("the shadow '%s' of '%s' fails (%s); nobody who asks notices", shadow, of, kind)
            self._failing.add(shadow)
        else:
            self._count(shadow, of, "answered", 1)
            self._failing.discard(shadow)
