"""Our errors as OpenAI error bodies: one table from `softspec.errors` to HTTP status and type.

In: a SoftspecError. Out: `{"error": {"message", "type", "param", "code"}}`, as from vLLM itself.
"""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from softspec.errors import (
    AbsentError,
    AuthenticationError,
    EngineError,
    FieldError,
    ForbiddenError,
    OverloadedError,
    RateLimitError,
    RefusedError,
    SoftspecError,
    TooLargeError,
    UnknownModelError,
    UnsupportedEngineError,
    UpstreamError,
    UserError,
)

# The first class that matches wins: the most special comes first.
_STATUS_AND_TYPE: tuple[tuple[type[SoftspecError], HTTPStatus, str], ...] = (
    (UnknownModelError, HTTPStatus.NOT_FOUND, "NotFoundError"),
    (AuthenticationError, HTTPStatus.UNAUTHORIZED, "invalid_request_error"),
    (ForbiddenError, HTTPStatus.FORBIDDEN, "PermissionDeniedError"),
    (AbsentError, HTTPStatus.NOT_FOUND, "NotFoundError"),
    (TooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestTooLargeError"),
    (RateLimitError, HTTPStatus.TOO_MANY_REQUESTS, "RateLimitError"),
    (OverloadedError, HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
    (UserError, HTTPStatus.BAD_REQUEST, "BadRequestError"),
    (UnsupportedEngineError, HTTPStatus.NOT_IMPLEMENTED, "NotImplementedError"),
    (UpstreamError, HTTPStatus.BAD_GATEWAY, "UpstreamError"),
    (EngineError, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"),
    (SoftspecError, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"),
)


def error_body(error: SoftspecError) -> dict[str, Any]:
    """The OpenAI error envelope of one of our errors."""
    status, kind = _status_and_type(error)
    word = error.code if isinstance(error, RefusedError) else None
    param = error.field if isinstance(error, FieldError) else None
    body = {
        "message": _writable(str(error)),
        "type": kind,
        "param": _writable(param) if param else None,
        "code": word or status.value,
    }
    return {"error": body}


def _status_and_type(error: SoftspecError) -> tuple[HTTPStatus, str]:
    return next((status, kind) for cls, status, kind in _STATUS_AND_TYPE if isinstance(error, cls))


def _writable(text: str) -> str:
    """Text that may quote half a surrogate pair of a caller's, as UTF-8 can have it."""
    return text.encode(errors="backslashreplace").decode()


def error_status(error: SoftspecError) -> int:
    """The HTTP status of one of our errors."""
    return _status_and_type(error)[0].value


def error_headers(error: SoftspecError) -> dict[str, str]:
    """The headers that go with the answer of one of our errors."""
    return error.headers if isinstance(error, RefusedError) else {}


def error_response(error: SoftspecError) -> JSONResponse:
    """The HTTP answer that one of our errors becomes."""
    return JSONResponse(error_body(error), error_status(error), error_headers(error))


async def respond_to_http_error(request: Request, error: Exception) -> JSONResponse:
    """The exception handler for what the router itself refuses: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message, kind = f"{asked} is not served: expected {allowed}", "MethodNotAllowedError"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        message, kind = f"{asked} is not served: check the path", "NotFoundError"
    else:
        message, kind = str(error.detail), "HTTPError"
    body = {"message": message, "type": kind, "param": None, "code": error.status_code}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def respond_to_error(_request: Request, error: Exception) -> JSONResponse:
    """The exception handler of the whole server for `SoftspecError`."""
    assert isinstance(error, SoftspecError)
    return error_response(error)
