"""Our errors as OpenAI error bodies: one table from `softspec.errors` to HTTP status and type.

In: a SoftspecError. Out: `{"error": {"message", "type", "param", "code"}}`, as from vLLM itself.
"""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from softspec.errors import (
    EngineError,
    FieldError,
    SoftspecError,
    UnknownModelError,
    UnsupportedEngineError,
    UpstreamError,
    UserError,
)

# The first class that matches wins: the most special comes first.
_STATUS_AND_TYPE: tuple[tuple[type[SoftspecError], HTTPStatus, str], ...] = (
    (UnknownModelError, HTTPStatus.NOT_FOUND, "NotFoundError"),
    (UserError, HTTPStatus.BAD_REQUEST, "BadRequestError"),
    (UnsupportedEngineError, HTTPStatus.NOT_IMPLEMENTED, "NotImplementedError"),
    (UpstreamError, HTTPStatus.BAD_GATEWAY, "UpstreamError"),
    (EngineError, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"),
    (SoftspecError, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"),
)


def error_body(error: SoftspecError) -> dict[str, Any]:
    """The OpenAI error envelope of one of our errors."""
    status, kind = next((status, kind) for cls, status, kind in _STATUS_AND_TYPE if isinstance(error, cls))
    param = error.field if isinstance(error, FieldError) else None
    body = {
        "message": _writable(str(error)),
        "type": kind,
        "param": _writable(param) if param else None,
        "code": status.value,
    }
    return {"error": body}


def _writable(text: str) -> str:
    """Text that may quote half a surrogate pair of a caller's, as UTF-8 can have it."""
    return text.encode(errors="backslashreplace").decode()


def error_status(error: SoftspecError) -> int:
    """The HTTP status of one of our errors."""
    code: int = error_body(error)["error"]["code"]
    return code


def error_response(error: SoftspecError) -> JSONResponse:
    """The HTTP answer that one of our errors becomes."""
    return JSONResponse(error_body(error), status_code=error_status(error))


async def respond_to_error(_request: Request, error: Exception) -> JSONResponse:
    """The exception handler of the whole server for `SoftspecError`."""
    assert isinstance(error, SoftspecError)
    return error_response(error)
