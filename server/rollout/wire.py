"""The body of the request that changes a rollout; unknown fields are refused.

In: JSON. Out: a checked `ChangeRequest`, or one line that says what is wrong. Knows pydantic.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from softspec.artefact.validation import first_problem, place_of_first
from softspec.errors import FieldError
from softspec.server.rollout.aliases import Weights
from softspec.server.rollout.settings import Shadow, WeightsField, require_alias_name


class ChangeRequest(BaseModel):
    """What an alias stands for from now on, whom shadows follow, or both; an alias that is not known is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: Annotated[str, AfterValidator(require_alias_name)] | None = None
    weights: WeightsField | None = None
    shadows: dict[str, Shadow] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> "ChangeRequest":
        if (self.alias is None) != (self.weights is None) or (self.alias is None and not self.shadows):
            raise ValueError("expected 'alias' and 'weights', or 'shadows', or all three")
        return self

    @property
    def aliases(self) -> dict[str, Weights]:
        """The alias that changes, if one does."""
        return {} if self.alias is None or self.weights is None else {self.alias: self.weights}


def read_change(content: object) -> ChangeRequest:
    """The change in a body.

    Raises:
        FieldError: it is none.
    """
    try:
        return ChangeRequest.model_validate(content)
    except ValidationError as error:
        raise FieldError(place_of_first(error, content), first_problem(error, content)) from error
