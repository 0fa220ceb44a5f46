"""One request for decisions: its path through the server, from the questions to the answers.

In: a checked request, and the engine as functions. Out: the JSON to send. All questions go to the engine in one round,
after everything that can be refused was. Knows no FastAPI and no vLLM.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from softspec.artefact.calibration import Calibration, calibration_of
from softspec.errors import ConfigError, EngineError, FieldError
from softspec.maths.options import OptionsUncertainty, weigh_options
from softspec.server.chat.service import Service
from softspec.server.chat.wire import EXTENSION, Json, Terms
from softspec.server.decisions.answers import answer_of, judged
from softspec.server.decisions.engine import DecisionEngine, Mixture, Scored
from softspec.server.decisions.events import beginnings, ended, tokens_of
from softspec.server.decisions.prompt import messages_of, options_of
from softspec.server.decisions.request import DecisionRequest
from softspec.server.observe.account import note_decision
from softspec.server.policy.policy import Policy

PATH = "/v1/decisions"


@dataclass(frozen=True)
class Asked:
    """One question as the engine gets it: the tokens of its prompt, and of each of its options."""

    prompt: list[int]
    options: list[list[int]]


async def decide(request: DecisionRequest, request_id: str, engine: DecisionEngine, service: Service) -> Json:
    """Answer every question of a request.

    Raises:
        ConfigError: a field that this model cannot honour, or no model.
        EngineError: the engine could not score the options.
    """
    model = service.model_named(request.model, request)
    if engine.mixture_of(model) is None:
        raise FieldError("model", f"'{model}' is no ensemble and no member: ask one of {_askable(service)}")
    terms = _terms_of(request, model, service)
    asked = await _asked(request, model, engine)
    # As the engine sees it in the same moment: an ensemble may be replaced while prompts are made.
    mixture = engine.mixture_of(model)
    scored = await engine.score_options(
        model,
        [each.prompt for each in asked],
        [each.options for each in asked],
        request_id=request_id,
        priority=request.priority,
    )
    assert mixture is not None  # or the engine knows no such model either
    calibration = _calibration_for(request, mixture.calibration)
    if terms.policy.calibration is not None and terms.policy.calibration != calibration:
        raise ConfigError(
            f"'{model}' was replaced by an ensemble with another calibration meanwhile: ask again"
        )
    answers = []
    for number, (question, options) in enumerate(zip(request.questions, scored, strict=True)):
        weighed = _weighed(options, mixture, request.length_normalise, f"questions.{number}")
        confidence = None if calibration is None else calibration.confidence(vars(weighed))
        decision = judged(terms.policy, weighed, confidence)
        service.metrics.decided(model, decision, calibration, confidence)
        if model in service.ensembles:
            note_decision(decision.action, weighed.epistemic, decision.reason)
        answers.append(answer_of(question, weighed, decision, terms.detail, confidence))
    return {"answers": answers, "model": model, "usage": _usage(asked)}


def _terms_of(request: DecisionRequest, model: str, service: Service) -> Terms:
    """What the caller wants to know, and the policy: of a single member there is none, as it cannot disagree.

    Raises:
        FieldError: the field asks for what a decision does not have.
    """
    if model not in service.ensembles:
        if request.uncertainty is not None:
            raise FieldError(
                EXTENSION,
                f"'{EXTENSION}' was given for the single model '{model}': expected an ensemble's name",
            )
        return Terms("summary", Policy())
    calibration = _calibration_for(request, service.calibration(model))
    terms = service.terms_of(request.uncertainty, calibration)
    if terms.detail not in ("summary", "none"):
        path = f"{EXTENSION}.detail"
        raise FieldError(
            path, f"'{path}' is '{terms.detail}': a decision has no tokens; expected summary or none"
        )
    if terms.policy.action == "route":
        raise FieldError(
            f"{EXTENSION}.policy.action",
            f"policy action 'route' is not followed at {PATH}: ask with action 'abstain' or 'answer'",
        )
    for field, neutral in (("min_tokens", 1), ("hold_tokens", 0)):
        given = ((request.uncertainty or {}).get("policy") or {}).get(field)
        if given not in (None, neutral):
            path = f"{EXTENSION}.policy.{field}"
            raise FieldError(path, f"'{path}' is {given}: a decision is judged as a whole; leave it out")
    return terms


def _calibration_for(request: DecisionRequest, calibration: Calibration | None) -> Calibration | None:
    """The calibration that holds for the request's numbers: none was made of normalised ones."""
    return None if request.length_normalise else calibration_of(calibration, "decisions")


async def _asked(request: DecisionRequest, model: str, engine: DecisionEngine) -> list[Asked]:
    """The tokens of every question.

    Raises:
        FieldError: there is nothing to ask, options are not to be told apart, or it is too long.
    """
    chat: Json = {"model": model, "chat_template_kwargs": request.chat_template_kwargs}
    end_id = _once(partial(engine.chat_end_id, **chat))
    asked = []
    for number, question in enumerate(request.questions):
        place = f"questions.{number}"
        prompt = await engine.chat_prompt_ids(messages_of(request, number), **chat)
        options = options_of(question)
        tokens = tokens_of(options, engine.answer_ids, place)
        if beginnings(tokens):
            tokens = ended(options, tokens, await end_id(), place)
        longest = len(prompt) + max(map(len, tokens))
        if longest > engine.max_model_len:
            raise FieldError(
                place,
                f"{place} has {longest} tokens with its input and its longest option: expected at most "
                f"{engine.max_model_len}",
            )
        asked.append(Asked(prompt, tokens))
        # Rendering hundreds of prompts must not keep other requests waiting.
        await asyncio.sleep(0)
    return asked


def _once(ask: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[int]]:
    """The same, asked no more than once."""
    known: list[int] = []

    async def asked_once() -> int:
        if not known:
            known.append(await ask())
        return known[0]

    return asked_once


def _weighed(
    options: Sequence[Scored], mixture: Mixture, length_normalise: bool, place: str
) -> OptionsUncertainty:
    """What the mixture thinks of a question's options.

    Raises:
        EngineError: a number is missing.
        FieldError: no option can be said at all.
    """
    of_members = torch.tensor([option.member_log_probs for option in options], dtype=torch.float64).T
    of_mixture = torch.tensor([option.log_prob for option in options], dtype=torch.float64)
    if bool(of_members.isnan().any()) or bool(of_mixture.isnan().any()):
        raise EngineError(f"the engine sent no number for an option of {place}: report this with the request")
    try:
        return weigh_options(
            of_members,
            torch.tensor(mixture.log_weights, dtype=torch.float64),
            mixture_log_probs=of_mixture if mixture.weights_rule == "fixed" else None,
            num_tokens=torch.tensor([option.num_tokens for option in options]) if length_normalise else None,
        )
    except ConfigError as error:
        raise FieldError(place, f"{place}: {error}") from error


def _usage(asked: Sequence[Asked]) -> Json:
    """Every prompt in full, and every option's tokens: nothing is drawn, and what the cache had is not told apart."""
    read = sum(len(each.prompt) for each in asked)
    scored = sum(len(option) for each in asked for option in each.options)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": scored,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + scored,
    }


def _askable(service: Service) -> str:
    return ", ".join(service.ensembles) or "none, as no ensemble is served"
