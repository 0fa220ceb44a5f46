"""Counters of a minute, in this process or in a Redis that several replicas share.

In: names of counters and what to add. Out: what is counted and when the minute ends. While Redis is away each replica
counts for itself: nobody is locked out, and limits hold in each. Counting is the `limits` library's.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.errors import ConfigurationError, StorageError

from softspec.errors import ConfigError
from softspec.server.access.settings import MEMORY

T = TypeVar("T")
WINDOW_S = 60
TIMEOUT_S = 0.5
"""How long Redis may take to answer; a request waits for it."""
CONNECT_S = 5.0
"""How long it may take when the server starts."""
AWAY_S = 5.0
"""How long Redis is left alone once it did not answer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Count:
    """What a counter has, and for how many seconds it goes on."""

    amount: int
    seconds_left: float


class Counts:
    """All counters; `address` is `memory`, or of a Redis such as `redis://host:6379/0`. `now` is a clock in seconds."""

    def __init__(self, address: str = MEMORY, now: Callable[[], float] = time.monotonic) -> None:
        """Connect to nothing yet.

        Raises:
            ConfigError: the package that asks Redis is not installed.
        """
        self._own = MemoryStorage()
        self._shared = None if address == MEMORY else _redis(address)
        self._place = _shown(address)
        self._now = now
        self._away_until: float | None = None

    async def require_reachable(self) -> None:
        """Raise unless Redis answers, if there is to be one.

        Raises:
            ConfigError: it does not.
        """
        if self._shared is not None and not await _answers(self._shared):
            raise ConfigError(
                f"access.storage: no Redis answers at {self._place}: start it, or give another address, or '{MEMORY}'"
            )

    async def add(self, name: str, amount: int) -> Count:
        """Add to a counter, whose minute begins now if it has none."""
        return await self._ask(lambda storage: _add(storage, name, amount))

    async def read(self, name: str) -> Count:
        """What a counter has."""
        return await self._ask(lambda storage: _read(storage, name))

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        if self._shared is not None:
            bridge: Any = self._shared.bridge  # the library has no way to close what it opened
            await bridge.get_connection().aclose()

    async def _ask(self, work: Callable[[Storage], Awaitable[T]]) -> T:
        """Ask Redis, or this process where there is none or it does not answer."""
        if self._shared is not None and (self._away_until is None or self._now() >= self._away_until):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    found = await work(self._shared)
            except (StorageError, TimeoutError):
                self._leave_alone()
            else:
                self._rely_on()
                return found
        return await work(self._own)

    def _leave_alone(self) -> None:
        if self._away_until is None:
            _log.error(
                "what API keys spend is counted in this replica alone: no Redis answers at %s", self._place
            )
        self._away_until = self._now() + AWAY_S

    def _rely_on(self) -> None:
        if self._away_until is not None:
            _log.warning(
                "what API keys spend is counted for all replicas again: Redis at %s is back", self._place
            )
        self._away_until = None


def _redis(address: str) -> RedisStorage:
    try:
        # Of the clients that `limits` knows, the one that most have.
        return RedisStorage(
            f"async+{address}", wrap_exceptions=True, implementation="redispy", key_prefix="softspec"
        )
    except ConfigurationError as error:
        raise ConfigError(
            f"access.storage needs a package that is not installed ({error}): pip install redis"
        ) from error


async def _answers(storage: RedisStorage) -> bool:
    try:
        async with asyncio.timeout(CONNECT_S):
            return await storage.check()
    except TimeoutError:
        return False


async def _add(storage: Storage, name: str, amount: int) -> Count:
    counted = await storage.incr(name, WINDOW_S, amount)
    return Count(counted, await _seconds_left(storage, name))


async def _read(storage: Storage, name: str) -> Count:
    return Count(await storage.get(name), await _seconds_left(storage, name))


async def _seconds_left(storage: Storage, name: str) -> float:
    return max(await storage.get_expiry(name) - time.time(), 0.0)


def _shown(address: str) -> str:
    """An address without the password that may be in it."""
    parts = urlsplit(address)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else address.partition("?")[0]
