"""A running server for the page: our routes around scripted engines, on a real socket, with faults to order.

In: scripts by question. Out: a URL that a browser opens. Three members whose prior is not uniform, so that no two of
them can be mistaken for one another; what each alone says is a script too.
"""

import asyncio
import math
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import uvicorn
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softspec.engine.trace import ChoiceTrace
from softspec.errors import LockstepError
from softspec.maths.answer import TokenUncertainty
from softspec.server.page.routes import add_page_routes
from softspec.server.upstream.settings import UpstreamSettings
from tests.support import fake_engine
from tests.support.fake_decisions import FakeScorer, add_decisions
from tests.support.fake_engine import ENSEMBLE, FakeEngine, make_app
from tests.support.scripted_upstream import ScriptedUpstream, chat_stream

PRIOR = (0.5, 0.3, 0.2)
LOG_PRIOR = tuple(map(math.log, PRIOR))
VOCABULARY: list[str] = []
"""The text of each token, by its number; scripts add to it."""

Script = tuple[TokenUncertainty, ...]


def says(*drawn: tuple[str, tuple[float, float, float], float, float]) -> Script:
    """A script from each token's text, probability under each member, epistemic and aleatoric uncertainty."""
    script, weights = [], list(PRIOR)
    for text, probabilities, epistemic, aleatoric in drawn:
        joint = [weight * p for weight, p in zip(weights, probabilities, strict=True)]
        VOCABULARY.append(text)
        script.append(
            TokenUncertainty(
                token_id=len(VOCABULARY) - 1,
                log_prob=math.log(sum(joint)),
                total_entropy=epistemic + aleatoric,
                aleatoric_entropy=aleatoric,
                epistemic=epistemic,
                disagreement=min(1.0, epistemic),
                member_log_probs=tuple(-math.inf if p == 0 else math.log(p) for p in probabilities),
            )
        )
        weights = [each / sum(joint) for each in joint]
    return tuple(script)


TORN = says(
    ("It", (0.9, 0.8, 0.9), 0.02, 0.41),
    (" is", (0.95, 0.9, 0.9), 0.004, 0.21),
    (" black", (0.98, 0.02, 0.0), 0.613, 0.08),
    (",", (0.7, 0.6, 0.6), 0.03, 0.72),
    (" or", (0.6, 0.2, 0.3), 0.11, 0.95),
    (" so", (0.99, 0.9, 0.9), 0.0, 0.01),
    (" <b>they</b>", (0.5, 0.4, 0.2), 0.05, 1.31),
    (" say", (0.9, 0.85, 0.9), 0.011, 0.3),
    (".", (0.97, 0.96, 0.98), 0.001, 0.09),
    ("<|im_end|>", (0.99, 0.99, 0.99), 0.0, 0.02),
)
SURE = says((" Brown", (0.97, 0.98, 0.99), 0.003, 0.06), (".", (0.9, 0.9, 0.9), 0.001, 0.1))
FORM = says(
    ('{"Denum"', (1.0, 1.0, 1.0), 0.0, 0.0),
    (': "', (1.0, 1.0, 1.0), 0.0, 0.01),
    ("black", (0.9, 0.1, 0.1), 0.52, 0.11),
    ('", "Labron"', (1.0, 1.0, 1.0), 0.002, 0.0),
    (': "', (1.0, 1.0, 1.0), 0.0, 0.0),
    ("brown", (0.95, 0.9, 0.9), 0.03, 0.1),
    ('"}', (1.0, 1.0, 1.0), 0.0, 0.0),
)
RISING = says(*((f" word{n}", (0.6, 0.5, 0.4), 0.03 * n, 0.4) for n in range(30)))
"""Thirty tokens: more than a route holds back."""
ANSWERS = {
    "torn": TORN,
    "sure": SURE,
    "form": FORM,
    "rising": RISING,
    "slow": TORN,
    "cut": TORN,
    "fails": TORN,
}
ALONE = {
    f"{ENSEMBLE}/member-{k}": says((said, (1.0, 1.0, 1.0), 0.0, 0.1))
    for k, said in enumerate((" Black, of course.", " Green & nothing else.", " <i>Grey</i>"))
}
OPTIONS: dict[str, tuple[float, ...]] = {
    "yes": (0.6, 0.1, 0.2),
    "no": (0.2, 0.7, 0.6),
    "green": (0.01, 0.9, 0.3),
    "black": (0.98, 0.02, 0.3),
    "grey": (0.005, 0.05, 0.3),
    "low": (0.1, 0.1, 0.2),
    "high": (0.8, 0.7, 0.6),
}


@dataclass
class Halting(FakeEngine):
    """Sends four events of a stream and then waits for something, which may end it."""

    halt: Callable[[], Awaitable[None]] | None = None

    async def _events(self, request: Any, choices: dict[int, ChoiceTrace]) -> AsyncGenerator[str, None]:
        sent = 0
        async for event in super()._events(request, choices):
            if sent == 4 and self.halt is not None:
                await self.halt()
            sent += 1
            yield event


@dataclass
class Talk(FakeEngine):
    """Answers every question by its script, and a member by its own. `gate` lets answers to `slow` and `cut` go on."""

    gate: threading.Event = field(default_factory=threading.Event)

    async def route(self, request: Any, raw_request: Request) -> Response:
        self.requests.append(request)
        question = request.messages[-1]["content"]
        script = ALONE.get(request.model) or ANSWERS.get(question, SURE)
        halt = {"slow": self._wait, "cut": self._cut, "fails": self._fail}.get(question)
        return await Halting([script], log_weights=self.log_weights, halt=halt).route(request, raw_request)

    async def _wait(self) -> None:
        await asyncio.to_thread(self.gate.wait)

    async def _cut(self) -> None:
        await self._wait()
        raise ConnectionError("the connection is cut here")

    async def _fail(self) -> None:
        raise LockstepError("the members came apart")


@dataclass
class Orders:
    """Middleware: a path below which the server lies, a key that `/v1` wants, and answers in place of the next ones.

    `bodies` are those of the requests that were let through.
    """

    app: ASGIApp
    root_path: str
    key: str | None = None
    instead: list[Response] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "root_path": self.root_path}
        if scope["type"] == "http" and scope["path"].startswith(f"{self.root_path}/v1/"):
            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            if self.key is not None and given != f"Bearer {self.key}":
                await refusal(401, "Unauthorized")(scope, receive, send)
                return
            if scope["method"] == "POST" and self.instead:
                await self.instead.pop(0)(scope, receive, send)
                return
            if scope["method"] == "POST":
                body = await Request(scope, receive).body()
                self.bodies.append(body)
                receive = replay(body, receive)
        await self.app(scope, receive, send)


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more, and then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def refusal(status: int, message: str, **headers: str) -> Response:
    """An error in OpenAI's envelope."""
    error = {"message": message, "type": "Scripted", "param": None, "code": status}
    return JSONResponse({"error": error}, status, {"x-request-id": "asked-1", **headers})


@dataclass
class PageServer:
    """A server that runs, and what may be ordered of it."""

    url: str
    talk: Talk
    orders: Orders
    web: uvicorn.Server
    thread: threading.Thread

    def restore(self) -> None:
        """As it was at first."""
        self.orders.key, self.orders.instead, self.orders.bodies = None, [], []
        self.talk.requests.clear()
        self.talk.gate.clear()

    def stop(self) -> None:
        """End the server, once it has answered."""
        self.talk.gate.set()
        self.web.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


def models() -> dict[str, Any]:
    """What vLLM's route of the models says here."""
    about = {
        "num_members": len(PRIOR),
        "base_model": "base",
        "renyi_alpha": 0.8,
        "weights_rule": "prefix_posterior",
        "log_weights": LOG_PRIOR,
        "calibrated": False,
    }
    names = [*(f"{ENSEMBLE}/member-{k}" for k in range(len(PRIOR))), "base"]
    return {
        "object": "list",
        "data": [{"id": ENSEMBLE, "softspec": about}, *({"id": name} for name in names)],
    }


@contextmanager
def page_server(root_path: str = "") -> Iterator[PageServer]:
    """The page and all that it asks, at an address of its own."""
    with (
        patch.object(fake_engine, "decode", VOCABULARY.__getitem__),
        ScriptedUpstream([chat_stream(" Nobody", " knows", " <u>that</u>.")]) as upstream,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        settings = UpstreamSettings(url=upstream.url, model="big", max_retries=0)
        talk = Talk([], log_weights=LOG_PRIOR)
        app = make_app(talk, upstreams={"large": settings})
        add_decisions(app, FakeScorer(OPTIONS, log_weights=LOG_PRIOR))
        add_page_routes(app)
        app.add_api_route("/v1/models", models, methods=["GET"])
        orders = Orders(app, root_path)
        web = uvicorn.Server(uvicorn.Config(orders, log_level="critical", ws="none"))
        thread = threading.Thread(target=web.run, args=([listener],), daemon=True)
        thread.start()
        server = PageServer(
            f"http://127.0.0.1:{listener.getsockname()[1]}{root_path}/", talk, orders, web, thread
        )
        try:
            yield server
        finally:
            server.stop()
