"""The end of an engine: known from its first moment, late enough for the answers that it owes, and told to who waits.

In: the engine client of vLLM's server, and a way to wait until nobody needs it. Out: whether its end has begun, and
whether it died before it was told to stop. Knows no HTTP.

vLLM 0.32 places: `vllm.v1.engine.async_llm.AsyncLLM.shutdown`,
`vllm.v1.engine.output_processor.OutputProcessor` (`propagate_error`, `process_outputs`). When vLLM stops an engine it
closes the sockets, which fails the task that hands out answers, and cancels that task; where the second comes first, as
it does here, no request hears of the end. An engine that stops at once says of each request that it was aborted, which
vLLM's front end, if the word still reaches it, would hand out as an answer that is whole. One that drains refuses what
reaches it later, such as the second question of a request that asks several; so it is told only when all are answered.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

LEAVE_S = 5
"""How long an engine that nobody needs any more may take to end by itself."""


class LostAnswer(EngineDeadError):
    """The engine ended before an answer did, in words for whoever asked; vLLM's speak of a stack trace."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.args = (message,)


class Ending:
    """Stands in place of an engine's `shutdown`, whoever calls it and from whatever thread; see `ending_of`.

    `begun` is true from the moment that the engine is told to stop. `engine_died`, once it is, says whether the engine
    was dead by then. `until_idle` waits for at most so many seconds, and says whether nobody needs the engine any more.
    """

    def __init__(self, engine: Any) -> None:
        self.begun = False
        self.engine_died = False
        self.on_begin: list[Callable[[], None]] = []
        self.until_idle: Callable[[float], bool] = lambda _seconds: False
        self._engine = engine
        self._shut_down = engine.shutdown
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    def __call__(self, timeout: float | None = None) -> None:
        """Stop the engine; what it has not answered after `timeout` seconds ends with an error."""
        if not self.begun:
            self.engine_died = self._engine.errored
            self.begun = True
            self._soon(*self.on_begin)
            timeout = self._drain(timeout)
        try:
            self._shut_down(timeout=timeout)
        finally:
            self._soon(self.fail_the_rest)

    def fail_the_rest(self) -> None:
        """Tell whoever waits for an answer that none will come."""
        self._engine.output_processor.propagate_error(EngineDeadError())

    def as_told(self, error: Exception) -> Exception:
        """What is told to whoever waits of an error that ends all answers."""
        if not isinstance(error, EngineDeadError):
            return error
        told_to = self.begun and not self.engine_died
        why = "the server is shutting down and waits no longer" if told_to else "the engine has died"
        return LostAnswer(f"{why}: there is no whole answer; send the request again")

    def _drain(self, timeout: float | None) -> float | None:
        """Wait for the answers that are owed; returns how long the engine may then take to end."""
        can_wait = timeout and not self.engine_died and threading.get_ident() != self._loop_thread
        if not can_wait:
            return timeout
        return LEAVE_S if self.until_idle(timeout or 0) else 0

    def _soon(self, *calls: Callable[[], None]) -> None:
        for call in calls:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(call)


def ending_of(engine: Any) -> Ending:
    """The end of an engine, watched from the first call on."""
    if not isinstance(engine.shutdown, Ending):
        engine.shutdown = Ending(engine)
        _hand_out_no_aborted(engine.output_processor)
        _tell_in_words(engine.output_processor, engine.shutdown)
    ending: Ending = engine.shutdown
    return ending


def _hand_out_no_aborted(processor: OutputProcessor) -> None:
    """Let what an engine gives up, because it stops, wait for the error that follows, and not end as an answer."""
    process_outputs = processor.process_outputs

    def process(outputs: list[EngineCoreOutput], *args: object, **kwargs: object) -> OutputProcessorOutput:
        kept = [output for output in outputs if output.finish_reason != FinishReason.ABORT]
        return process_outputs(kept, *args, **kwargs)

    processor.process_outputs = process


def _tell_in_words(processor: OutputProcessor, ending: Ending) -> None:
    """Let those who wait hear of the end in our words, whoever tells them first."""
    propagate_error = processor.propagate_error
    processor.propagate_error = lambda error: propagate_error(ending.as_told(error))
