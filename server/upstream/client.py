"""One upstream: asks it, tries again where that can help, waits no longer than it may, and leaves it alone if it fails.

In: a path and the body of a request. Out: a whole answer, or the chunks of a streamed one, or one UpstreamError.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import Protocol, TypeVar

import httpx2
from pydantic import SecretStr

from softspec.server.upstream.answer import read_answer
from softspec.server.upstream.breaker import CircuitBreaker
from softspec.server.upstream.call import CallClock, limited, pause_s, retry_after_s
from softspec.server.upstream.faults import Fault, Outcome, fault_of_status, faults_of_http
from softspec.server.upstream.request import Json, upstream_body, upstream_headers
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.stream import chunks_of

_log = logging.getLogger(__name__)

MOST_ANSWER_BYTES = 32 * 1024 * 1024
MOST_ERROR_BYTES = 64 * 1024
ERROR_TEXT_S = 5.0
"""How long the text of an error may take, whose status is known."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Result = TypeVar("Result")


class Watch(Protocol):
    """Who is told how calls end and when a circuit opens or closes."""

    def upstream_answered(self, upstream: str, outcome: Outcome, seconds: float | None) -> None:
        """A call ended; `seconds` is None when nothing was sent."""

    def upstream_circuit(self, upstream: str, is_open: bool) -> None:
        """The circuit of an upstream opened, or closed; told once at the start too."""


class Upstream:
    """An OpenAI-compatible server that requests are routed to."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        key: SecretStr | None,
        http: httpx2.AsyncClient,
        server_id: str,
        watch: Watch,
    ) -> None:
        self.name = name
        self.model = settings.model
        self._settings = settings
        self._key = key
        self._http = http
        self._server_id = server_id
        self._watch = watch
        self._breaker = CircuitBreaker(
            settings.circuit_failures, settings.circuit_open_s, self._circuit_changed
        )
        watch.upstream_circuit(name, False)

    async def ask(self, path: str, body: Json, headers: Mapping[str, str] = NO_HEADERS) -> Json:
        """The whole answer to a request.

        Args:
            path: what follows the upstream's url, `/chat/completions` or `/completions`.
            body: the caller's body; `upstream_body` says what of it is sent.
            headers: the caller's, their names in lower case; `upstream_headers` says which are sent.
        Raises:
            UpstreamError: there is no answer that can be used.
        """
        request = self._request(path, body, headers, stream=False)
        with self._observed() as clock:
            answer, permit = await self._retried(clock, lambda: self._whole(request, path))
            self._breaker.succeeded(permit)
            return answer

    async def stream(
        self, path: str, body: Json, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[Json, None]:
        """The chunks of a streamed answer, as they come; closing the generator closes the connection.

        Args and Raises as for `ask`; nothing is tried again once the first chunk has come.
        """
        request = self._request(path, body, headers, stream=True)
        with self._observed() as clock:
            (chunk, chunks), permit = await self._retried(clock, lambda: self._begun(request, path))
            async with aclosing(chunks):
                while True:
                    with clock.stopped():
                        yield chunk
                    try:
                        async with clock.running():
                            chunk = await anext(chunks)
                    except StopAsyncIteration:
                        self._breaker.succeeded(permit)
                        return
                    except Fault as fault:
                        self._tell_breaker(fault, permit)
                        raise

    def _request(self, path: str, body: Json, headers: Mapping[str, str], stream: bool) -> httpx2.Request:
        sent = upstream_body(body, self.model, stream, self._settings.drop_fields)
        fields = upstream_headers(headers, self._server_id, stream)
        if self._key is not None:
            fields["authorization"] = f"Bearer {self._key.get_secret_value()}"
        timeout = httpx2.Timeout(
            connect=self._settings.connect_timeout_s,
            pool=self._settings.connect_timeout_s,
            read=None,
            write=None,
        )
        content = json.dumps(sent).encode()
        return self._http.build_request(
            "POST", self._settings.url + path, content=content, headers=fields, timeout=timeout
        )

    @contextmanager
    def _observed(self) -> Iterator[CallClock]:
        """One call, whose end is told, and whose Fault becomes the error that a caller may see."""
        clock = CallClock(self._settings.timeout_s)
        outcome: Outcome = "cancelled"
        try:
            yield clock
            outcome = "ok"
        except Fault as fault:
            outcome = fault.outcome
            secret = self._key.get_secret_value() if self._key is not None else ""
            raise fault.error(self.name, clock.attempts, secret) from None
        finally:
            self._watch.upstream_answered(self.name, outcome, clock.elapsed_s if clock.attempts else None)

    async def _retried(
        self, clock: CallClock, attempt: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, int]:
        """What an attempt gives, and its permit; tried again while that may help and there is time."""
        while True:
            try:
                return await self._admitted(clock, attempt)
            except Fault as fault:
                pause = pause_s(clock.attempts, fault)
                is_last = clock.attempts > self._settings.max_retries or self._breaker.wait_s is not None
                if not fault.is_transient or is_last or pause >= clock.remaining_s:
                    raise
            await asyncio.sleep(pause)

    async def _admitted(
        self, clock: CallClock, attempt: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, int]:
        """One attempt, if the breaker lets it through, which is told how it ended."""
        if self._http.is_closed:
            raise Fault("busy", "was not asked: this server is shutting down")
        if (permit := self._breaker.admit()) is None:
            wait = self._breaker.wait_s
            rest = f"for {wait:.0f} s more" if wait else "until another request has got through"
            raise Fault("open_circuit", f"failed too often and is left alone {rest}")
        clock.attempts += 1
        try:
            async with clock.running():
                result = await attempt()
        except Fault as fault:
            self._tell_breaker(fault, permit)
            raise
        except BaseException:
            self._breaker.withdrawn(permit)
            raise
        self._breaker.answered(permit)
        return result, permit

    def _tell_breaker(self, fault: Fault, permit: int) -> None:
        if fault.outcome == "busy":  # it was not asked
            self._breaker.withdrawn(permit)
        elif fault.is_failure:
            self._breaker.failed(permit)
        else:
            self._breaker.succeeded(permit)

    def _circuit_changed(self, is_open: bool) -> None:
        self._watch.upstream_circuit(self.name, is_open)
        if is_open:
            failures, seconds = self._settings.circuit_failures, self._settings.circuit_open_s
            _log.warning(
                "upstream '%s' failed %d times in a row: left alone for %g s", self.name, failures, seconds
            )
        else:
            _log.info("upstream '%s' answers again", self.name)

    async def _whole(self, request: httpx2.Request, path: str) -> Json:
        response = await self._opened(request)
        try:
            body = await _read(response, MOST_ANSWER_BYTES)
        finally:
            await response.aclose()
        if len(body) > MOST_ANSWER_BYTES:
            raise Fault("malformed", f"sent an answer of more than {MOST_ANSWER_BYTES} bytes")
        return read_answer(path, body.decode("utf-8-sig", "replace"))

    async def _begun(self, request: httpx2.Request, path: str) -> tuple[Json, AsyncGenerator[Json, None]]:
        """The first chunk of a stream, and those that follow it."""
        seconds = self._settings.first_byte_timeout_s
        async with limited(seconds, f"sent nothing within {seconds:g} s", is_transient=True):
            chunks = chunks_of(await self._opened(request), path)
            try:
                return await anext(chunks), chunks
            except StopAsyncIteration:
                raise Fault("malformed", "ended its stream before the first event") from None
            except BaseException:
                await chunks.aclose()
                raise

    async def _opened(self, request: httpx2.Request) -> httpx2.Response:
        """The response to a request, its body still to be read; its status is 200."""
        with faults_of_http(has_begun=False):
            response = await self._http.send(request, stream=True, follow_redirects=False)
        if response.status_code == httpx2.codes.OK:
            return response
        try:
            async with limited(ERROR_TEXT_S, ""):
                body = await _read(response, MOST_ERROR_BYTES)
        except Fault:
            body = b""  # the status says enough
        finally:
            await response.aclose()
        wait = retry_after_s(response.headers.get("retry-after"))
        raise fault_of_status(response.status_code, body, wait)


async def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    """The body of a response; a little more than so many bytes where it is larger."""
    body = bytearray()
    with faults_of_http(has_begun=True):
        async for part in response.aiter_bytes():
            body += part
            if len(body) > most_bytes:
                break
    return bytes(body)
