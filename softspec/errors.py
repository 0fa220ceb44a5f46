"""Every error softspec raises on purpose.

    SoftspecError
    |-- UserError            the caller can fix it: exit code 2, or HTTP 400
    |   |-- ConfigError      a setting, flag or request field
    |   |   |-- UnknownModelError    a model name that is not served: HTTP 404
    |   |-- DataError        a training or evaluation file
    |   |-- ManifestError    an ensemble directory
    |-- ShapeError           two tensors do not fit together
    |-- EngineError          the serving engine cannot do what was asked
        |-- UnsupportedEngineError   a vLLM version, runner or option that was not tested; raised at start-up
        |-- LockstepError    members of one request came apart; ends that request

A message says what was found, what was expected and what to do about it, in one line.
"""


class SoftspecError(Exception):
    """Root of the tree."""


class UserError(SoftspecError):
    """Something the caller gave is wrong and the caller can fix it."""


class ConfigError(UserError):
    """A setting, flag or request field."""


class UnknownModelError(ConfigError):
    """A model name that is not, or no longer, served."""


class DataError(UserError):
    """A training or evaluation file."""


class ManifestError(UserError):
    """An ensemble directory that is missing, incomplete or inconsistent."""


class ShapeError(SoftspecError, ValueError):
    """Two tensors whose shapes do not fit together."""


class EngineError(SoftspecError):
    """The serving engine cannot do what was asked."""


class UnsupportedEngineError(EngineError):
    """A vLLM version, model runner or engine option that was not tested."""


class LockstepError(EngineError):
    """The members of one request came apart; the request must end."""
