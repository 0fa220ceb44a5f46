"""What libraries log while they serve a request, without what the request says.

In: log records of others, vLLM's above all, which quote prompts and answers in some warnings and errors, and more of
them at debug level. Out: the same records, with the words that stand in the code, with numbers, and without anything
else. An error keeps its traceback and its kind and loses its message.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from softspec.server.observe.account import current_account

LEFT_OUT = "…"
_TOLD_LATER = ("uvicorn.error", "asyncio")
"""Loggers that tell of a request's failure once it is over."""
_ASIDE = ("vllm.renderers", "vllm.tokenizers", "vllm.multimodal", "vllm.v1.structured_output", "transformers")
"""Loggers of what vLLM does in threads beside the server's own, which know no request."""
_ACCESS = "uvicorn.access"
"""Tells of every request its method, path and status, and nothing of its body."""


def keep_content_out() -> None:
    """Make the log records of this process say nothing of what requests say."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Discreet):
        logging.setLogRecordFactory(_Discreet(make))


class _Discreet:
    """A factory of log records around another one; vLLM has its own."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        is_ours = record.name.partition(".")[0] == "softspec"
        is_told_later = record.exc_info and record.name in _TOLD_LATER
        is_aside = record.name.startswith(_ASIDE) and not _is_main_thread()
        if not is_ours and record.name != _ACCESS and (is_told_later or is_aside or _is_answering()):
            _take_out(record)
        return record


def _is_answering() -> bool:
    """Whether a request is answered here; a task that it left behind is none of it."""
    account = current_account.get()
    return account is not None and account.ended_at is None


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _take_out(record: logging.LogRecord) -> None:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(record.msg, str):
        record.msg = LEFT_OUT
    if error is not None:
        record.msg = record.msg.replace(str(error) or LEFT_OUT, LEFT_OUT)
        record.exc_text = "\n".join(_tracebacks(error))
        record.exc_info = (type(error), None, None)  # type: ignore[assignment]
    if isinstance(record.args, Mapping):
        record.args = {name: _kept(value) for name, value in record.args.items()}
    elif record.args:
        record.args = tuple(map(_kept, record.args))


def _kept(value: object) -> object:
    return value if value is None or isinstance(value, int | float) else LEFT_OUT


def _tracebacks(error: BaseException) -> Iterator[str]:
    """The lines of code through which an error and those that led to it came, the first one first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _tracebacks(cause)
    yield f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}: {LEFT_OUT}"
