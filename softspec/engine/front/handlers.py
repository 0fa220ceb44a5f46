"""vLLM's HTTP handlers with ensembles in them: our client in place of the engine, our models in their list.

In: the state in which vLLM's server keeps its handlers, once they are made. Out: the same handlers, changed once at
start-up, and what they can tell. Knows no routes and no policy.

vLLM 0.32 places: `vllm.entrypoints.launchers.api_server.app_state` (who holds an engine client),
`OpenAIServingModels` (`lora_requests`, `show_available_models`), `OpenAIServingCompletion.create_completion`,
`OpenAIServingResponses` (`responses_stream_generator`, `_generate_with_builtin_tools`).
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import xgrammar
from pydantic import BaseModel
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.base.serving import decode_token_ids
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard, ModelList, ModelPermission
from vllm.exceptions import VLLMClientError
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams

from softspec.artefact.manifest import Manifest
from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.messages import convert_judged
from softspec.errors import ConfigError, EngineError, SoftspecError, UserError

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses


logger = init_logger(__name__)


def base_names(state: "State") -> list[str]:
    """The names under which the base model is served."""
    return [model.name for model in state.openai_serving_models.base_model_paths]


def put_into_handlers(client: EnsembleClient, engine: EngineClient, state: "State") -> None:
    """Let every handler ask `client` instead of `engine`, and look up LoRA models among the client's.

    Raises:
        ConfigError: the server was started with adapters of its own.
    """
    models = state.openai_serving_models
    if models.lora_requests:
        # vLLM numbered these from 1, as we number members; one number must not mean two adapters.
        raise ConfigError(
            f"--lora-modules {sorted(models.lora_requests)} cannot be served beside an ensemble"
        )
    # Always as the registry has them; only the registry changes them.
    models.lora_requests = MappingProxyType(client.registry.lora_requests)
    for handler in vars(state)["_state"].values():
        if getattr(handler, "engine_client", None) is engine:
            handler.engine_client = client
    if state.openai_serving_responses is not None:
        _admit_before_streaming(client, state.openai_serving_responses)
    if state.anthropic_serving_messages is not None:
        convert_judged(state.anthropic_serving_messages)
    # This one keeps further references to the engine and would answer an ensemble's name with a single model.
    state.serving_structured_decisions = None


def _admit_before_streaming(client: EnsembleClient, responses: "OpenAIServingResponses") -> None:
    """Let a stream of /v1/responses be refused while its answer can still be a 400, and end in an event later.

    vLLM's own stream asks the engine only after its first events, and any error then breaks the connection.
    """
    stream, generate = responses.responses_stream_generator, responses._generate_with_builtin_tools

    def admit_and_generate(
        request_id: str, engine_input: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        lora = kwargs.get("lora_request")
        client.admit(lora and lora.lora_name, sampling_params, kwargs.get("priority", 0), engine_input)
        return generate(request_id, engine_input, sampling_params, *args, **kwargs)

    def stream_to_an_event(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return _ending_in_an_event(stream(*args, **kwargs))

    responses._generate_with_builtin_tools = admit_and_generate
    responses.responses_stream_generator = stream_to_an_event


class _ErrorEvent(BaseModel):
    """The error event of OpenAI's streamed responses."""

    type: str = "error"
    code: str
    message: str
    param: str | None = None
    sequence_number: int


async def _ending_in_an_event(events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The events of a stream of /v1/responses, and an error as the last of them, as OpenAI's clients know it."""
    number = 0
    try:
        async for event in events:
            number = event.sequence_number + 1
            yield event
    except Exception as error:
        logger.exception("A stream of /v1/responses ended with an error")
        is_ours = isinstance(error, SoftspecError | VLLMClientError)
        yield _ErrorEvent(
            code="invalid_request_error"
            if isinstance(error, UserError | VLLMClientError)
            else "server_error",
            message=str(error) if is_ours else "Internal server error",
            sequence_number=number,
        )


def model_names(client: EnsembleClient, state: "State") -> list[str]:
    """Every name under which something is served: ensembles, members, base."""
    registry = client.registry
    members = [name for name in registry.lora_requests if name not in registry.ensembles]
    return [*registry.ensembles, *members, *base_names(state)]


def list_ensembles_first(
    client: EnsembleClient,
    state: "State",
    may_see: Callable[[str], bool] = lambda _: True,
    aliases: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Let `/v1/models` show aliases and what `model_names` gives, in that order: a chat window takes the first model.

    `may_see` says for each name whether whoever asks may know it; `aliases` always has the weights that hold.
    """
    models = state.openai_serving_models
    show_base = models.registry.show_available_models

    def card(name: str, root: str, about: Mapping[str, Any] | None) -> ModelCard:
        return ModelCard(
            id=name,
            root=root,
            parent=base_names(state)[0],
            max_model_len=models.model_config.max_model_len,
            permission=[ModelPermission()],
            **({} if about is None else {"softspec": about}),
        )

    async def show_available_models() -> ModelList:
        ensembles, loras = client.registry.ensembles, client.registry.lora_requests
        roots = {name: request.lora_path for name, request in loras.items()}
        roots |= {name: str(Path(ensemble.adapters[0].path).parent) for name, ensemble in ensembles.items()}
        about = {name: _about(ensemble.manifest) for name, ensemble in ensembles.items()}
        base = {model.id: model for model in (await show_base()).data}
        cards = [card(name, name, {"alias_of": aliases[name]}) for name in filter(may_see, aliases)]
        cards += [
            base[name] if name in base else card(name, roots[name], about.get(name))
            for name in filter(may_see, model_names(client, state))
        ]
        return ModelList(data=cards)

    models.show_available_models = show_available_models


def _about(manifest: Manifest) -> dict[str, Any]:
    """What `/v1/models` says of an ensemble beside what it says of every model."""
    return {
        "num_members": manifest.num_members,
        "base_model": manifest.base_model.path,
        "renyi_alpha": manifest.renyi_alpha,
        "weights_rule": manifest.weights_rule,
        # JSON has no minus infinity, the weight of a member that is switched off.
        "log_weights": [max(weight, -9999.0) for weight in manifest.log_weights],
        "calibrated": manifest.calibration is not None,
    }


def token_decoder(engine: EngineClient) -> Callable[[int], tuple[str, list[int]]]:
    """A function that gives a token's text, as vLLM writes it beside log-probabilities, and its own bytes.

    A character may have several tokens: each of their texts is then U+FFFD, while their bytes joined are the character.
    """
    tokenizer = engine.renderer.tokenizer
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=engine.model_config.get_vocab_size()
    ).decoded_vocab

    @lru_cache(maxsize=2**14)  # an answer of JSON says the same few tokens again and again
    def decode(token_id: int) -> tuple[str, list[int]]:
        return decode_token_ids([token_id], tokenizer)[0][0], list(vocabulary[token_id])

    decode(0)  # a tokenizer's first token takes it a tenth of a second, which no answer shall wait for
    return decode


def has_chat_template(engine: EngineClient, given: str | None) -> bool:
    """Whether messages become a prompt here: by the template that was given, or by the tokenizer's own."""
    return bool(given or getattr(engine.renderer.tokenizer, "chat_template", None))


async def draw_one_token(state: "State", ensemble: str) -> None:
    """Let an ensemble draw one token, through everything but HTTP.

    Raises:
        EngineError: there is no answer.
    """
    request = CompletionRequest(model=ensemble, prompt="Ready?", max_tokens=1, temperature=0)
    answer = await state.openai_serving_completion.create_completion(request)
    if isinstance(answer, ErrorResponse):
        raise EngineError(f"ensemble '{ensemble}' does not answer: {answer.error.message}")
