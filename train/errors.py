"""What can go wrong during a training run that is not the caller's mistake; a branch of `softspec.errors`."""

from softspec.errors import SoftspecError


class TrainingError(SoftspecError):
    """Training cannot go on, or its result must not be used."""


class TrainingInterrupted(SoftspecError):
    """A signal stopped the run after a checkpoint; `exit_code` is the shell's 128 + signal number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
