"""A request for scores on its way: from messages and answers to the numbers of each answer.

In: a checked request, and what scoring needs of the engine. Out: the JSON to send. The server's policy is not asked, as
nothing is answered. Knows no HTTP; the engine only as functions.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError, FieldError
from softspec.server.chat.service import Service
from softspec.server.chat.wire import DecodeToken, Json, summary_report, token_reports
from softspec.server.scores.request import ScoreRequest


@dataclass(frozen=True)
class Scoring:
    """What scoring needs of the engine and of vLLM's renderer.

    Args:
        text_prompt: ids of a text's prompt; chat_prompt: of messages, for a model and with fields of the conversation.
        chat_end: the token that ends an answer to messages, for a model and with fields of the conversation.
        answer: ids of an answer's text; whether it ended, and in which token if not as an answer to text.
        score: what the engine thinks of answers to a prompt, by model; also a request's name and priority.
    """

    text_prompt: Callable[[str | Sequence[int]], Awaitable[list[int]]]
    chat_prompt: Callable[..., Awaitable[list[int]]]
    chat_end: Callable[..., Awaitable[int]]
    answer: Callable[[str, bool, int | None], list[int]]
    score: Callable[[str, Sequence[int], Sequence[Sequence[int]], str, int], Awaitable[list[ChoiceTrace]]]


async def score(request: ScoreRequest, request_id: str, service: Service, scoring: Scoring) -> Json:
    """The body of the response.

    Raises:
        ConfigError: the model, the prompt or an answer cannot be scored.
        EngineError: the engine failed.
    """
    model = _model_of(request, service)
    prompt, answers = await _token_ids(request, model, scoring)
    traces = await scoring.score(model, prompt, answers, request_id, request.priority)
    service.metrics.scored(model, len(answers))
    counted = sum(map(len, answers))
    return {
        "id": request_id,
        "object": "uncertainty.scores",
        "created": int(time.time()),
        "model": model,
        "scores": [
            {"index": number, **scored(trace, request.detail == "tokens", service.decode)}
            for number, trace in enumerate(traces)
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": counted,
            "total_tokens": len(prompt) + counted,
        },
    }


def scored(trace: ChoiceTrace, with_tokens: bool, decode: DecodeToken) -> Json:
    """The numbers of one answer, and those of its tokens if they are wanted."""
    report = summary_report(trace, trace.tokens)
    return report | ({"tokens": token_reports(trace.tokens, decode)} if with_tokens else {})


def _model_of(request: ScoreRequest, service: Service) -> str:
    model = service.model_named(request.model, request)
    if not any(model == name or model.startswith(f"{name}/member-") for name in service.ensembles):
        raise FieldError(
            "model",
            f"'{model}' is the base, which has no members to compare: expected an ensemble or a member",
        )
    return model


async def _token_ids(
    request: ScoreRequest, model: str, scoring: Scoring
) -> tuple[list[int], list[list[int]]]:
    """The prompt, and each answer as it would have been drawn behind it."""
    ended = request.finish_reason == "stop"
    end = None
    if request.messages is not None:
        fields = request.conversation()
        prompt = await scoring.chat_prompt(request.messages, model=model, **fields)
        end = await scoring.chat_end(model=model, **fields) if ended else None
    else:
        assert request.prompt is not None
        prompt = await scoring.text_prompt(request.prompt)
    answers = []
    for number, text in enumerate(request.answers):
        try:
            answers.append(scoring.answer(text, ended, end))
        except ConfigError as error:
            raise FieldError(f"answers.{number}", f"answers.{number}: {error}") from error
    return prompt, answers
