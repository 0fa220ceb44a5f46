"""The body of the request that changes a rollout; unknown fields are refused.

In: JSON. Out: a checked `ChangeRequest`, or one line that says what is wrong. Knows pydantic.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from softspec.artefact.validation import first_problem, place_of_first
from softspec.errors import FieldError
from softspec.server.rollout.settings import WeightsField, require_alias_name


class ChangeRequest(BaseModel):
    """What an alias stands for from now on; one that is not known is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: Annotated[str, AfterValidator(require_alias_name)]
    weights: WeightsField


def read_change(content: object) -> ChangeRequest:
    """The change in a body.

    Raises:
        FieldError: it is none.
    """
    try:
        return ChangeRequest.model_validate(content)
    except ValidationError as error:
        raise FieldError(place_of_first(error, content), first_problem(error, content)) from error
