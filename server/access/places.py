"""Which routes there are, and who may use them: nobody's key, any key, or one that may do everything.

In: a request's scope. Out: the route that the app would give it to, by its path as the app names it. Whatever is not
listed here, such as what other plugins or vLLM's development mode add, is for admin keys. Knows ASGI.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

PROBES = frozenset({"/health", "/ready"})
OPEN = frozenset({"/", "/playground/{file}", "/ping", *PROBES})
"""Without a key: the page, which asks its reader for one, and whether the server lives."""
OPS = frozenset({"/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What operators look at: without a key unless the settings say otherwise, and elsewhere with a port of their own."""
ASKING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/decisions",
        "/v1/uncertainty",
        "/v1/systemone",
        "/invocations",
        "/inference/v1/generate",
        "/generative_scoring",
        "/v1/realtime",
    }
)
"""With any key: what asks the engine, and waits for it."""
CHEAP = frozenset(
    {
        "/v1/models",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/chat/completions/render",
        "/v1/chat/completions/derender",
        "/v1/completions/render",
        "/v1/completions/derender",
        "/v1/responses/render",
        "/v1/messages/render",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/version",
        "/load",
    }
)
"""With any key: what asks nobody."""
ADMIN = frozenset(
    {
        "/v1/load_ensemble",
        "/v1/unload_ensemble",
        "/v1/aliases",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/{adapter_name}",
        "/inference/v1/abort_requests",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/kv_event_sources",
    }
)
"""What changes the server for all, ends the requests of others, or tells of its inside."""


@dataclass(frozen=True)
class Place:
    """One route; `path` is None where there is none."""

    path: str | None

    @property
    def is_open(self) -> bool:
        """Whether it is used without a key."""
        return self.path in OPEN

    @property
    def is_ops(self) -> bool:
        """Whether it is what operators look at."""
        return self.path in OPS

    @property
    def is_probe(self) -> bool:
        """Whether it says how the server is."""
        return self.path in PROBES

    @property
    def asks(self) -> bool:
        """Whether it asks the engine."""
        return self.path in ASKING

    @property
    def is_admins(self) -> bool:
        """Whether an ordinary key does not do; what is nowhere is told to be nowhere to every key."""
        known = self.is_open or self.is_ops or self.asks or self.path in CHEAP
        return self.path is not None and not known


def place_of(scope: Scope, routes: Iterable[BaseRoute]) -> Place:
    """The route that a request is given to, or one of its path that takes no such request."""
    partly = None
    for route in routes:
        match, _ = route.matches(scope)
        path = getattr(route, "path", "")
        if match == Match.FULL:
            return Place(path)
        if match == Match.PARTIAL and partly is None:
            partly = path
    return Place(partly)
