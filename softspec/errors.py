"""Every error softspec raises on purpose.

    SoftspecError                    exit code 1 unless said otherwise
    |-- UserError (a ValueError)     the caller can fix it: exit code 2, or HTTP 400
    |   |-- ConfigError              a setting, flag or request field
    |   |   |-- FieldError           a request field, with its path
    |   |   |-- UnknownModelError    a model name that is not served: HTTP 404
    |   |-- DataError                a training or evaluation file
    |   |-- ManifestError            an ensemble directory
    |   |-- StorageError             a file of softspec's own cannot be written
    |   |-- RefusedError             a request is refused for who sends it, or for how much it asks
    |       |-- AuthenticationError  no API key, or none that is known: HTTP 401
    |       |-- ForbiddenError       the key may not do this: HTTP 403
    |       |-- AbsentError          nothing is served there: HTTP 404
    |       |-- TooLargeError        the body is too large: HTTP 413
    |       |-- RateLimitError       the key asked too often, or too much, in this minute: HTTP 429
    |       |-- OverloadedError      too many wait already: HTTP 503
    |-- ShapeError                   two tensors do not fit together
    |-- TrainingError                a training run cannot go on
    |   |-- DivergedError            ... because its numbers are no longer finite: nothing of it is worth keeping
    |-- BenchError                   what was to be compared cannot be
    |   |-- WorkerError              one of the ways cannot be measured
    |       |-- WorkerOutOfMemory    ... because it needs more memory than there is
    |-- Interrupted                  a signal ended the command: exit code 128 + its number
    |-- UpstreamError                an upstream did not answer a routed request: HTTP 502
    |-- EngineError                  the serving engine cannot do what was asked
        |-- UnsupportedEngineError   a vLLM version, runner or option that was not tested; at start-up: exit code 2
        |-- LockstepError            members of one request came apart; ends that request
        |-- MixingError              members of one request could not be mixed; ends that request

A message says what was found, what was expected and what to do about it, in one line.
"""

from collections.abc import Mapping


class SoftspecError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class UserError(SoftspecError, ValueError):
    """Something the caller gave is wrong and the caller can fix it; vLLM's routes answer a ValueError with 400."""

    exit_code = 2


class ConfigError(UserError):
    """A setting, flag or request field is wrong."""


class FieldError(ConfigError):
    """A request field cannot be honoured; `field` is its dotted path and becomes `param` of the HTTP answer."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownModelError(ConfigError):
    """A model name is not, or no longer, served."""


class DataError(UserError):
    """A training or evaluation file is missing or malformed."""


class ManifestError(UserError):
    """An ensemble directory is missing, incomplete or inconsistent."""


class StorageError(UserError):
    """A file of softspec's own cannot be written: no room, no permission, a disk that fails."""


class RefusedError(UserError):
    """A request is refused for who sends it, or for how much it asks.

    `code` is OpenAI's word for the reason, if it has one; `headers` go with the HTTP answer.
    """

    code: str | None = None

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class AuthenticationError(RefusedError):
    """A request has no API key, or one that is not known."""

    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})


class ForbiddenError(RefusedError):
    """The API key of a request may not do this."""


class AbsentError(RefusedError):
    """Nothing is served there."""


class TooLargeError(RefusedError):
    """The body of a request is larger than this server reads; the connection is of no more use."""

    def __init__(self, message: str) -> None:
        super().__init__(message, {"Connection": "close"})


class RateLimitError(RefusedError):
    """An API key asked too often, or too much, in this minute, or has too many requests at once."""

    code = "rate_limit_exceeded"


class OverloadedError(RefusedError):
    """Too many requests wait already; `Retry-After` among the headers says for how long."""


class ShapeError(SoftspecError, ValueError):
    """Two tensors have shapes that do not fit together."""


class TrainingError(SoftspecError):
    """Training cannot go on, or its result must not be used."""


class DivergedError(TrainingError):
    """The loss or its gradient is no longer finite."""


class BenchError(SoftspecError):
    """Ways that were to be compared do not compute the same, or one of them cannot be run."""


class WorkerError(BenchError):
    """A way of the training benchmark cannot be measured."""


class WorkerOutOfMemory(WorkerError):
    """A way of the training benchmark needs more memory than there is."""


class Interrupted(SoftspecError):
    """A signal ended the command; what was done so far is on disk, and the message says where."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class UpstreamError(SoftspecError):
    """An upstream did not answer a routed request.

    `outcome` is one of those of `softspec.server.upstream.faults`, `status` the upstream's HTTP status, where it sent
    one. The message may be shown to a caller: it holds no key and no address.
    """

    def __init__(self, message: str, outcome: str, status: int | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status


class EngineError(SoftspecError):
    """The serving engine cannot do what was asked."""


class UnsupportedEngineError(EngineError):
    """A vLLM version, model runner or engine option was not tested with ensembles; the caller can choose another."""

    exit_code = 2


class LockstepError(EngineError):
    """The members of one request came apart; the request must end."""


class MixingError(EngineError):
    """The members of one request could not be mixed; the request must end."""
