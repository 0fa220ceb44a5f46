"""Who may ask this server, and how much: the parts that decide it, put together once at start-up.

In: settings. Out: one object in the app's state, which the gate asks. Knows no HTTP.
"""

import math
import time
from collections.abc import Mapping

from softspec.engine.asked import Asked
from softspec.errors import OverloadedError
from softspec.server.access.budget import Budget
from softspec.server.access.callers import require_model
from softspec.server.access.counts import Counts
from softspec.server.access.key_ring import KeyRing
from softspec.server.access.queue import Queue
from softspec.server.access.request_limits import most_tokens
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.account import current_account

STATE = "softspec_access"
"""Where the app's state has it."""


class Access:
    """What the gate needs to know of this server, which listens at `host`; `ring` is None where nobody needs a key."""

    def __init__(
        self, settings: AccessSettings, environment: Mapping[str, str], host: str | None = None
    ) -> None:
        """Read the keys, and where they are counted; nobody is asked yet.

        Raises:
            ConfigError: the key file cannot be read, or is wrong, or there is no such place to count.
        """
        self.settings = settings
        self.host = host
        self.ring = None if settings.keys is None else KeyRing(settings.keys)
        self._counts = Counts(settings.storage_in(environment))
        self.budget = Budget(self._counts)
        self.queue = Queue(time.monotonic)

    def require_short_wait(self) -> None:
        """Raise where a newcomer would wait too long for a first token.

        Raises:
            OverloadedError: they would.
        """
        most, wait = self.settings.max_wait_s, self.queue.wait()
        if most is not None and wait > most:
            raise OverloadedError(
                f"a request would wait {wait:.0f} s for its first token, and {most:g} s are allowed here: send it "
                "again later, or elsewhere",
                {"Retry-After": str(math.ceil(wait))},
            )

    def may_ask(self, asked: Asked) -> int | None:
        """Called with what every request asks of the engine: the most tokens that each choice may have, if limited.

        What the server asks for itself, to see that it works, is nobody's request.

        Raises:
            ForbiddenError: whoever asks may not ask this model.
            FieldError: it is too much.
        """
        if current_account.get() is None:
            return None
        require_model(asked.models)
        return most_tokens(self.settings.limits, asked)

    async def require_ready(self) -> None:
        """Raise unless everything that was configured answers.

        Raises:
            ConfigError: Redis does not.
        """
        await self._counts.require_reachable()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._counts.aclose()


async def require_ready(settings: AccessSettings, environment: Mapping[str, str]) -> None:
    """Raise unless a server with these settings could begin to let requests in.

    Raises:
        ConfigError: it could not; says why.
    """
    access = Access(settings, environment)
    try:
        await access.require_ready()
    finally:
        await access.aclose()
