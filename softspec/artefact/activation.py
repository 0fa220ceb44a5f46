"""Where in a prompt the adapters begin to act: everywhere, or after its leading whole blocks.

In: a prompt's length in tokens. Out: how many of its leading tokens run without adapters, the same for all members.
Training and serving follow this one rule.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_BLOCK_SIZE = 32


def shared_tokens(block_size: int | None, prompt_tokens: int) -> int:
    """Tokens in the leading whole blocks of a prompt, its last token never among them; 0 without blocks."""
    return 0 if block_size is None else (prompt_tokens - 1) // block_size * block_size


class _Activation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AlwaysActivation(_Activation):
    """The rule that adapters act on every token."""

    kind: Literal["always"] = "always"
    block_size: ClassVar[None] = None


class BlockActivation(_Activation):
    """The rule that adapters are off for the first `floor((P - 1) / block_size) * block_size` of P prompt tokens."""

    kind: Literal["block"] = "block"
    block_size: int = Field(default=DEFAULT_BLOCK_SIZE, ge=1, strict=True)


Activation = Annotated[AlwaysActivation | BlockActivation, Field(discriminator="kind")]
