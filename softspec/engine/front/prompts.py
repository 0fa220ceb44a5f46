"""Prompts and answers as token ids: those that vLLM's own routes send to the engine, and those that it would draw.

In: the state in which vLLM's server keeps its handlers, and messages or text. Out: ids. A conversation goes through
vLLM's own renderer as a request of `/v1/chat/completions`, a text as one of `/v1/completions`. Asks no engine.

vLLM 0.32 places: `OnlineRenderer.render_chat`, `OnlineRenderer.render_completion`, and
`SamplingParams.update_from_generation_config`, which tells where vLLM ends an answer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.sampling_params import SamplingParams

from softspec.artefact.answer_tokens import (
    MARKER,
    decoded,
    end_of_text,
    first_stop,
    following,
    stop_texts,
)
from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError, FieldError

if TYPE_CHECKING:
    from starlette.datastructures import State

Fields = TypeVar("Fields", bound=BaseModel)

TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs", "reasoning_effort", "documents")
"""Fields of a chat request that reach its template whatever is said in the conversation."""
CHAT_FIELDS = (
    *TEMPLATE_FIELDS,
    "tools",
    "tool_choice",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
)
"""Fields of a chat request, beside its messages, on which its prompt depends."""


async def chat_prompt_ids(
    state: "State", messages: Sequence[Mapping[str, Any]], *, model: str, **fields: Any
) -> list[int]:
    """The prompt that `/v1/chat/completions` makes of these messages.

    Args:
        fields: any of CHAT_FIELDS; None is as if it were not given.
    Raises:
        FieldError, VLLMClientError: a field is malformed, or vLLM refuses it.
        ValueError: the template refuses the conversation, or it is longer than the model's context.
    """
    assert fields.keys() <= set(CHAT_FIELDS)
    given = {name: value for name, value in fields.items() if value is not None}
    request = _parsed(ChatCompletionRequest, {**given, "model": model, "messages": list(messages)})
    rendered = await state.online_renderer.render_chat(request)
    if isinstance(rendered, ErrorResponse):
        # Of tools that nobody would read out of an answer, or of a template that is not trusted.
        raise _refusal(
            rendered, next((name for name in ("tools", *TEMPLATE_FIELDS) if name in given), "messages")
        )
    return _token_ids(rendered[1], "messages")


async def text_prompt_ids(state: "State", prompt: str | Sequence[int]) -> list[int]:
    """The prompt that `/v1/completions` makes of a text, or of token ids.

    Raises:
        FieldError, VLLMClientError: it is empty, or has ids that the model lacks.
        ValueError: it is longer than the model's context.
    """
    if not prompt:
        raise FieldError("prompt", "'prompt' is empty: expected text or token ids")
    given = prompt if isinstance(prompt, str) else list(prompt)
    request = _parsed(CompletionRequest, {"prompt": given, "max_tokens": None})
    if not isinstance(prompt, str):
        state.online_renderer.renderer.validate_token_ids(given, parameter="prompt")
    rendered = await state.online_renderer.render_completion(request)
    if isinstance(rendered, ErrorResponse):
        raise _refusal(rendered, "prompt")
    return _token_ids(rendered, "prompt")


def answer_ids(state: "State", text: str, ended: bool, end_id: int | None = None) -> list[int]:
    """An answer's tokens as the model would have drawn them: no special token is put before or behind the text.

    Args:
        ended: whether the token at which the server stops comes last.
        end_id: that token: `chat_end_id` gives it for an answer to messages; by default the one that ends an answer
            to text.
    Raises:
        ConfigError: the text is longer than any that the model can answer, or has no token to end with.
    """
    tokenizer = state.online_renderer.renderer.get_tokenizer()
    most = state.online_renderer.model_config.max_model_len
    if len(text) > most * tokenizer.max_chars_per_token:
        raise ConfigError(f"a text of {len(text)} characters is longer than the model's {most} tokens")
    ids = following(tokenizer, text)
    if not ended:
        return ids
    if end_id is None:
        end_id = end_of_text(tokenizer, stop_ids(state))
    if end_id is None:
        raise ConfigError("the model has no token that ends an answer")
    return ids if ids[-1:] == [end_id] else [*ids, end_id]


async def chat_end_id(state: "State", *, model: str, **fields: Any) -> int:
    """The token that ends an answer to messages: the first of the server's that the template puts behind one.

    Args:
        fields: those of the request; of CHAT_FIELDS the ones that reach every conversation are looked at.
    Raises:
        ConfigError: it puts none there, or refuses a conversation of two turns.
    """
    turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": MARKER}]
    shared = {name: fields.get(name) for name in TEMPLATE_FIELDS}
    ids = await chat_prompt_ids(state, turns, model=model, add_generation_prompt=False, **shared)
    tokenizer = state.online_renderer.renderer.get_tokenizer()
    whole = decoded(tokenizer, ids)
    stops = stop_texts(tokenizer, stop_ids(state))
    found = first_stop(whole.rpartition(MARKER)[2], stops) if MARKER in whole else None
    if found is None:
        raise ConfigError(
            "the chat template ends an answer in no token at which the server stops, so none can be counted as its end"
        )
    return stops[found[1]]


def stop_ids(state: "State") -> set[int]:
    """Every token at which vLLM ends an answer of this model."""
    params = SamplingParams()
    renderer = state.online_renderer
    params.update_from_generation_config(
        renderer.model_config.try_get_generation_config(), renderer.renderer.get_eos_token_id()
    )
    return set(params.all_stop_token_ids)


def _parsed(kind: type[Fields], content: dict[str, Any]) -> Fields:
    """A request of vLLM's; the caller's mistakes are told with their place."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        place = [
            str(part) for part in error.errors()[0]["loc"][:2] if isinstance(part, int) or part in content
        ]
        raise FieldError(".".join(place) or "messages", first_problem(error, content)) from error


def _token_ids(inputs: Sequence[Any], field: str) -> list[int]:
    (prompt,) = inputs
    if prompt["type"] != "token":
        raise FieldError(field, f"'{field}' has a part of type {prompt['type']}: expected text alone")
    if not prompt["prompt_token_ids"]:
        raise FieldError(field, f"'{field}' comes to no token: expected at least one before an answer")
    return list(prompt["prompt_token_ids"])


def _refusal(answer: ErrorResponse, field: str) -> FieldError:
    return FieldError(answer.error.param or field, answer.error.message)
