"""softspec as an application of Ray Serve: every replica is a whole engine with softspec's own HTTP app.

    serve run deploy.ray.serve:app ensemble=runs/my

In: `Arguments`. Out: the HTTP surface of `softspec serve` behind Serve's proxies; the K rows of a request never leave
the replica that got it. How many replicas there are, and on what, is Serve's configuration (`config.yaml`).
"""

import os
import shlex
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.app.demo.shipped import named_ensemble
from softspec.app.smollm2 import base_of
from softspec.engine.start.interruption import end_everything
from softspec.errors import ConfigError
from softspec.server.ops.mount import mounted
from softspec.server.ops.settings import ENSEMBLES, SERVER_CONFIG, Settings

_MOST_PORTS = 64
"""So many replicas of one node may have ports for metrics."""
_HOT_LOADS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


class Arguments(BaseModel):
    """What `serve run` takes as NAME=VALUE, and a configuration below `args`; SOFTSPEC_* variables hold beside it."""

    model_config = ConfigDict(extra="forbid")

    ensemble: str | list[str]
    """Directories of ensembles, at the same place on every node."""
    base: str | None = None
    server_config: str | None = None
    """The file of `softspec serve --server-config`, at the same place on every node."""
    flags: str = ""
    """vLLM's own flags, as on a command line."""
    host: str = "127.0.0.1"
    """That of Serve's `http_options`; a replica's port for metrics is there too."""
    port: int = 8000
    """That of Serve's `http_options`."""


class Named:
    """The app, whose answers say which replica gave them."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-softspec-replica"] = self._replica
                del headers["x-request-id"]  # Serve's proxy adds the same one
            await send(message)

        await self._app(scope, receive, send_with_name)


@serve.deployment(
    max_ongoing_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=45,
)
@serve.ingress()
class Ensemble:
    """A replica: an engine, and the app over it."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._open = AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Start the engine; Serve sends requests once this has returned."""
        given, replica = self._arguments, serve.get_replica_context().replica_id.unique_id
        settings = settings_of(given, os.environ, replica)
        if (first := settings.access.ops_port) is not None:
            port, claim = claimed_port(first)
            self._open.enter_context(claim)
            settings = replace(settings, access=settings.access.changed(ops_port=port))
        app = await self._open.enter_async_context(
            mounted(
                settings,
                given.base or base_of(settings.ensembles),
                shlex.split(given.flags),
                (given.host, given.port),
                leave=partial(end_everything, "the engine has died", 1),
            )
        )
        self._state = app.state
        return Named(app, replica)

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that is not fit to answer."""
        if (problem := self._state.softspec_readiness.problem()) is not None:
            raise RuntimeError(problem)

    async def __del__(self) -> None:
        """Called by Serve when the last request has been answered."""
        await self._open.aclose()


def settings_of(arguments: Arguments, environment: Mapping[str, str], replica: str) -> Settings:
    """What a replica is told, with a record that no other replica writes.

    Raises:
        ConfigError: a setting is wrong, or needs a server that is the only one.
    """
    if environment.get(_HOT_LOADS, "").strip().lower() in ("1", "true"):
        raise ConfigError(
            f"{_HOT_LOADS} is set, but a load would reach one replica of several: unset it, and deploy again with "
            "another 'ensemble'"
        )
    variables = {**environment, ENSEMBLES: os.pathsep.join(_listed(arguments))}
    if arguments.server_config is not None:
        variables[SERVER_CONFIG] = arguments.server_config
    settings = Settings.from_environment(variables)
    if (record := settings.record) is None:
        return settings
    path = record.path.with_stem(f"{record.path.stem}.{replica}")
    return replace(settings, record=record.model_copy(update={"path": path}))


def claimed_port(first: int) -> tuple[int, socket.socket]:
    """The first port from this one on that no replica of this node has claimed, and the claim, which ends when closed.

    Raises:
        ConfigError: all are claimed.
    """
    for port in range(first, first + _MOST_PORTS):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(
                f"\0softspec-ops-port-{port}"
            )  # Linux's abstract names are no files and outlive nobody
        except OSError:
            claim.close()
        else:
            return port, claim
    raise ConfigError(
        f"ops_port is {first}: the {_MOST_PORTS} ports from it on are other replicas', choose another"
    )


def _listed(arguments: Arguments) -> list[str]:
    return [arguments.ensemble] if isinstance(arguments.ensemble, str) else arguments.ensemble


def app(arguments: Arguments) -> Application:
    """The application; relative paths are those of whoever builds it."""
    ensembles = [str(named_ensemble(Path(each)).resolve()) for each in _listed(arguments)]
    config = arguments.server_config and str(Path(arguments.server_config).resolve())
    return Ensemble.bind(arguments.model_copy(update={"ensemble": ensembles, "server_config": config}))
