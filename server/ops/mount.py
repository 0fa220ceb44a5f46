"""softspec's HTTP app inside somebody else's HTTP server, such as a replica of Ray Serve; a replica is one engine.

In: settings, a base model and the user's vLLM flags, as for `softspec serve`. Out: the ASGI app, once every ensemble
has answered. Knows neither who serves it nor that there are others like it.
"""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from softspec.engine.start.flags import refuse_listening_flags
from softspec.server.access.access import require_ready
from softspec.server.ops.launch import prepared_arguments
from softspec.server.ops.settings import Settings


@asynccontextmanager
async def mounted(
    settings: Settings,
    base: str | None,
    vllm_args: Sequence[str],
    address: tuple[str, int],
    leave: Callable[[], None],
) -> AsyncIterator[Starlette]:
    """Start an engine in this process, and its app; both end with the block.

    Args:
        address: host and port at which the HTTP server around the app is found.
        leave: ends this process; called soon after the engine has died.
    Raises:
        UserError: an ensemble, the base model, a variable or a flag is wrong.
        EngineError: an option was not tested, or the engine did not start, or an ensemble does not answer.
    """
    refuse_listening_flags(vllm_args)
    found = ["--host", address[0], "--port", str(address[1])]
    # Whoever drains is the HTTP server around the app.
    arguments = prepared_arguments(settings, base, [*vllm_args, *found], drain_timeout_s=0, verbose=False)
    await require_ready(settings.access, os.environ)
    # Imported here: takes many seconds, and must see the environment.
    from softspec.engine.front.ensemble import load_ensembles
    from softspec.engine.start.mounted import mounted_app

    ensembles = load_ensembles(settings.ensembles)
    async with mounted_app(arguments, ensembles, settings.allow_untested, leave) as app:
        await app.state.softspec_readiness.wait()
        yield app
