"""What an operator says of the request log.

In: the key `log` of the server's file, and flags. Out: settings that are checked.
"""

from pydantic import BaseModel, ConfigDict


class LogSettings(BaseModel):
    """Whether requests are logged at all, and whether with what was asked and answered."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests: bool = True
    content: bool = False
