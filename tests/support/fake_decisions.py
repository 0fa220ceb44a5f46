"""The route of decisions around a scripted engine, without vLLM.

In: what each member thinks of each option's text. Out: an app to ask, and what its engine was asked. A token is a
character; the end of a turn is token 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import WeightsRule
from softspec.server.decisions.engine import DecisionEngine
from softspec.server.decisions.routes import add_decision_routes
from softspec.server.policy.policy import Policy
from tests.support.fake_engine import ENSEMBLE, UNIFORM, FakeEngine, make_app

END = 0


@dataclass(frozen=True)
class Mixed:
    """How the members are mixed."""

    log_weights: tuple[float, ...]
    weights_rule: WeightsRule
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Measured:
    """What the engine tells of one option."""

    log_prob: float
    member_log_probs: tuple[float, ...]
    num_tokens: int


def logs(probabilities: Sequence[float]) -> tuple[float, ...]:
    return tuple(-math.inf if p == 0 else math.log(p) for p in probabilities)


@dataclass
class FakeScorer:
    """Gives each option the probabilities of `table`, one for each member; `asked` are the rounds of its engine.

    A member alone thinks as the first one. `chats` are the conversations that were rendered.
    """

    table: dict[str, tuple[float, ...]]
    log_weights: tuple[float, ...] = UNIFORM
    weights_rule: WeightsRule = "prefix_posterior"
    calibration: Calibration | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    chats: list[list[dict[str, Any]]] = field(default_factory=list)
    kwargs: list[Any] = field(default_factory=list)

    def mixture_of(self, model: str) -> Mixed | None:
        if model == "base":
            return None
        return Mixed(self._weights_of(model), self.weights_rule, self.calibration)

    async def chat_prompt_ids(self, messages: Any, *, model: str, chat_template_kwargs: Any) -> list[int]:
        self.chats.append(messages)
        self.kwargs.append(chat_template_kwargs)
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return [ord(letter) for letter in text]

    async def chat_end_id(self, *, model: str, chat_template_kwargs: Any) -> int:
        return END

    def answer_ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    async def score_options(
        self, model: str, prompts: Any, options: Any, *, request_id: str, priority: int
    ) -> list[list[Measured]]:
        self.asked.append(
            {
                "model": model,
                "prompts": prompts,
                "options": options,
                "request_id": request_id,
                "priority": priority,
            }
        )
        return [[self._measured(model, ids) for ids in each] for each in options]

    def _measured(self, model: str, ids: Sequence[int]) -> Measured:
        text = "".join(chr(number) for number in ids if number != END)
        weights = self._weights_of(model)
        probabilities = self.table[text][: len(weights)]
        mean = sum(math.exp(weight) * p for weight, p in zip(weights, probabilities, strict=True))
        return Measured(logs([mean])[0], logs(probabilities), len(ids))

    def _weights_of(self, model: str) -> tuple[float, ...]:
        return self.log_weights if model == ENSEMBLE else (0.0,)


def decisions_app(
    scorer: FakeScorer,
    policy: Policy | None = None,
    max_model_len: int = 100_000,
    **settings: Any,
) -> FastAPI:
    """The server's own routes, with decisions among them."""
    app = make_app(FakeEngine([], calibration=scorer.calibration), policy, **settings)
    add_decisions(app, scorer, max_model_len)
    return app


def add_decisions(app: FastAPI, scorer: FakeScorer, max_model_len: int = 100_000) -> None:
    """Add the route of decisions around a scripted engine."""
    app.state.softspec_decisions = DecisionEngine(
        mixture_of=scorer.mixture_of,
        chat_prompt_ids=scorer.chat_prompt_ids,
        chat_end_id=scorer.chat_end_id,
        answer_ids=scorer.answer_ids,
        score_options=scorer.score_options,
        max_model_len=max_model_len,
    )
    add_decision_routes(app, checks=())
