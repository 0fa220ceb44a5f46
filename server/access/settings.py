"""What an operator says of who may ask, and how much: the keys below `access` in the server's file.

In: YAML's values. Out: settings with absolute paths. Reads no other file. Knows pydantic.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softspec.artefact.validation import first_problem
from softspec.artefact.yaml_file import absolute
from softspec.engine.wire import MAX_TOP_LOGPROBS
from softspec.errors import ConfigError

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


MEMORY = "memory"
_STORAGE = re.compile(r"(redis|rediss|redis\+unix)://")


Limit = Annotated[int, Field(ge=1)]


class RequestLimits(BaseModel):
    """How large one request may be, whoever sends it."""

    model_config = _STRICT

    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4_194_304, description="Bytes of a body; more is a 413, and is not read."
    )
    max_messages: Limit = Field(
        default=2048, description="Messages of a conversation, or of all conversations of a batch."
    )
    max_choices: Limit = Field(
        default=128,
        description="Prompts times `n`, or width of a beam search; 1 for each item of a generative scoring.",
    )
    max_prompt_tokens: Limit | None = Field(
        default=None,
        description="Tokens of a prompt, with those of an answer that is scored; else the model's context bounds it.",
    )
    max_output_tokens: Limit | None = Field(
        default=None,
        description="Tokens of all `n` answers to a prompt; a request that names no number gets this one.",
    )
    max_top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = Field(
        default=MAX_TOP_LOGPROBS, description="Likeliest tokens beside each drawn one."
    )
    max_answers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=64, description="Answers of a request to `/v1/uncertainty`; never more than 64."
    )
    max_options: Limit = Field(
        default=4096,
        description="Options of all questions of a request to `/v1/decisions`; a predicate has two.",
    )
    max_grammar_chars: Limit = Field(
        default=100_000,
        description="Characters of what answers must conform to: a schema, the schemas of tools, a regex, a grammar.",
    )


class AccessSettings(BaseModel):
    """Who may ask, and how much; what is left out is as without a file."""

    model_config = _STRICT

    keys: Annotated[Path, Field(strict=False)] | None = Field(
        default=None,
        description="File of API keys, as `softspec key new` makes it; without one everybody may ask.",
    )
    storage: str = Field(
        default=MEMORY,
        description="Where requests and tokens of keys are counted: `memory`, or for several replicas "
        "`redis://host:6379/0`.",
    )
    storage_env: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Environment variable with that address in place of `storage`, for one with a password.",
    )
    max_wait_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Longest wait for a first token, seconds: where it would be longer, newcomers get a 503.",
    )
    ops_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None,
        description="Port at which `/metrics`, `/docs`, `/redoc` and `/openapi.json` are served, and no longer at the "
        "other one; `/health` and `/ready` at both.",
    )
    protect_ops: bool = Field(
        default=False,
        description="Whether `/metrics`, `/docs`, `/redoc` and `/openapi.json` need a key too, whichever.",
    )
    limits: RequestLimits = Field(
        default_factory=RequestLimits, description="How large one request may be; see the next table."
    )

    def changed(self, **flags: Any) -> "AccessSettings":
        """The same with what flags say; None is a flag that was not given.

        Raises:
            ConfigError: a value cannot be.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            return AccessSettings.model_validate({**self._fields(), **given})
        except ValidationError as error:
            field, _, problem = first_problem(error).partition(": ")
            raise ConfigError(f"--{field.removesuffix('_s').replace('_', '-')}: {problem}") from error

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def storage_in(self, environment: Mapping[str, str]) -> str:
        """Where to count.

        Raises:
            ConfigError: neither the file nor the variable says so; neither is repeated, as it may hold a password.
        """
        address, place = self.storage, "access.storage"
        if self.storage_env is not None:
            if address != MEMORY:
                raise ConfigError("access has storage and storage_env: keep one")
            address, place = (
                environment.get(self.storage_env, ""),
                f"the environment variable {self.storage_env}",
            )
        elif "@" in address:
            raise ConfigError(
                "access.storage has a password, which does not belong in this file: put the address into an "
                "environment variable, and the variable's name into access.storage_env"
            )
        if self.storage_env is None and address == MEMORY:
            return MEMORY
        if not _STORAGE.match(address):
            raise ConfigError(f"{place} is no address of a Redis: expected one like redis://host:6379/0")
        return address

    def with_paths_from(self, folder: Path) -> "AccessSettings":
        """The same with absolute paths."""
        if self.keys is None:
            return self
        return self.model_copy(update={"keys": absolute(folder, str(self.keys))})

    def require_only_door(self, has_other_keys: bool) -> None:
        """Raise where vLLM would ask for another key than we do.

        Raises:
            ConfigError: it has keys of its own beside ours.
        """
        if self.keys is not None and has_other_keys:
            raise ConfigError(
                "two doors: --keys, and vLLM's own --api-key or VLLM_API_KEY; keep one, as no key opens both"
            )
