"""One chat or text completion asked of a shadow: measured as if it were answered, and dropped.

In: a caller's request that was accepted, as its body came. Out: counts. The shadow is not streamed, asks no upstream,
and is neither recorded nor logged; a decision to route is counted as such. Knows FastAPI.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import Message

from softspec.artefact.calibration import calibration_of
from softspec.engine.trace import tracing
from softspec.errors import EngineError
from softspec.maths.answer import summarise
from softspec.server.chat.replies import judge_choices
from softspec.server.chat.service import Route, Service
from softspec.server.chat.unsupported import OpenAIRequest
from softspec.server.chat.wire import EXTENSION
from softspec.server.observe.account import Account, current_account
from softspec.server.policy.running import judge_of

_OF_THE_CALLER = ("stream", "stream_options", "request_id")
"""Fields of the body that are about how the caller is answered."""
_NOT_SENT_ON = (b"x-request-id", b"traceparent", b"tracestate")
"""Headers that say which request, and which trace, the caller's is."""


@dataclass(frozen=True)
class Shadowing:
    """A request that shadows may be asked too: its body, of the kind that the route reads, and who asked how."""

    kind: type[BaseModel]
    body: bytes
    raw_request: Request
    route: Route
    service: Service

    async def ask(self, shadow: str) -> None:
        """Ask a shadow, count its answer and what the policy decides on it, and drop it.

        Raises:
            SoftspecError: it cannot be asked so, or does not answer.
        """
        request_id = f"shadow-{uuid.uuid4().hex}"
        # An account that nobody reads: with one, limits hold and no log has text, as for every request.
        current_account.set(Account(request_id, "POST", self.raw_request.url.path))
        request = self.kind.model_validate(self._fields(shadow))
        extension = (request.model_extra or {}).pop(EXTENSION, None)
        calibration = calibration_of(self.service.calibration(shadow), "answers")
        policy = self.service.terms_of(extension, calibration).policy
        with tracing(judge_of(policy)) as trace:
            response = await self.route(request, self._unheard(request_id))
        if not isinstance(response, JSONResponse) or response.status_code != 200:
            raise EngineError(f"found no answer of '{shadow}'")
        if response.background is not None:  # what vLLM does once an answer was sent
            await response.background()
        outcomes = judge_choices(json.loads(bytes(response.body)), trace, policy)
        observe = self.service.metrics.of_request(shadow, len(outcomes))
        for outcome in outcomes:
            numbers = summarise(outcome.tokens, outcome.trace.log_weights, outcome.trace.weights_rule)
            observe(outcome.decision, numbers, outcome.trace.calibration)

    def _fields(self, shadow: str) -> Mapping[str, object]:
        """The body once more, as vLLM's models change the parsed one on their way through it."""
        fields = json.loads(self.body)
        return {**{name: fields[name] for name in fields if name not in _OF_THE_CALLER}, "model": shadow}

    def _unheard(self, request_id: str) -> Request:
        """A request like the caller's, whose client stays until the server ends."""
        scope = self.raw_request.scope
        headers = [(name, value) for name, value in scope["headers"] if name not in _NOT_SENT_ON]
        own = {"headers": [*headers, (b"x-request-id", request_id.encode())], "state": {}}
        return Request({**scope, **own}, self._gone)

    async def _gone(self) -> Message:
        await self.service.shadows.gone.wait()
        return {"type": "http.disconnect"}


async def follow(
    name: str | None, request: OpenAIRequest, raw_request: Request, route: Route, service: Service
) -> None:
    """Let shadows follow a request that was answered and had named this model, if any; they are not waited for."""
    if service.shadows:
        kind = cast(type[BaseModel], type(request))
        asking = Shadowing(kind, await raw_request.body(), raw_request, route, service)
        service.shadows.follow(service.name_asked(name), str(request.model), asking.ask)
