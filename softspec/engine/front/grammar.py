"""Grammars are compiled before the engine sees them: what does not compile is the caller's mistake, not a failure.

In: the sampling parameters of a request with a structured output. Out: nothing, or an error that says why it cannot be
followed. vLLM checks less than it compiles, checks on the event loop without a limit of time, and lets its one compiler
answer for grammars that were checked for another: such a request would end in the engine with an error of no cause.

vLLM 0.32 places: `SamplingParams.verify`; `vllm.v1.structured_output.backend_xgrammar.XgrammarBackend`.
"""

import asyncio
import threading
from collections.abc import Callable
from copy import copy
from functools import cached_property

from vllm.engine.protocol import EngineClient
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import get_structured_output_key

from softspec.errors import FieldError

CHECK_LIMIT_S = 2.0
"""How long vLLM's check of a grammar may take: it does it once more, on the event loop, where everybody waits for it.
Usual ones take milliseconds; repetitions above a thousand inside a pattern take many seconds."""
_FIELD = "structured_outputs"


class Grammars:
    """A compiler like the engine's, with its cache; its work is done in threads."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._config = engine.vllm_config

    async def check(self, params: SamplingParams) -> None:
        """Check and compile the grammar of a request, if it has one and xgrammar is what this engine compiles with.

        Raises:
            FieldError: it does not compile, or is too large to be checked.
            VLLMValidationError: vLLM's own checks say so.
        """
        backend = self._config.structured_outputs_config.backend
        if params.structured_outputs is None or backend not in ("auto", "xgrammar"):
            return
        probe = copy(params)
        # Checking rewrites it, and vLLM checks again what goes on.
        probe.structured_outputs = copy(params.structured_outputs)
        try:
            await asyncio.wait_for(_in_thread(lambda: self._verify(probe)), CHECK_LIMIT_S)
        except TimeoutError as error:
            raise FieldError(
                _FIELD,
                f"'{_FIELD}' was not read within {CHECK_LIMIT_S:g} s: use fewer or smaller repetitions",
            ) from error
        grammar = probe.structured_outputs
        if grammar._backend != "xgrammar":
            # With `auto` vLLM lets this pass for another compiler; the engine has one, which is xgrammar by then.
            raise FieldError(_FIELD, f"'{_FIELD}' has what xgrammar, this server's compiler, does not know")
        await _in_thread(lambda: self._compile(grammar))

    def _verify(self, params: SamplingParams) -> None:
        config = self._config
        params.verify(
            config.model_config,
            config.speculative_config,
            config.structured_outputs_config,
            self._engine.renderer.tokenizer,
        )

    def _compile(self, grammar: StructuredOutputsParams) -> None:
        try:
            self._compiler.compile_grammar(*get_structured_output_key(grammar))
        except Exception as error:
            raise FieldError(
                _FIELD, f"'{_FIELD}' does not compile: {' '.join(str(error).split())}"
            ) from error

    @cached_property
    def _compiler(self) -> XgrammarBackend:
        return XgrammarBackend(
            self._config, self._engine.renderer.tokenizer, self._config.model_config.get_vocab_size()
        )


async def _in_thread(work: Callable[[], None]) -> None:
    """Wait for work in a thread of its own, which goes on when the waiter has given up."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="grammar").start()
    await done
