"""Random but reproducible requests for the stress test.

In: a seed and the names of the models. Out: `Ask`s. Knows nothing of engines.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.tiny import SPECIAL_TOKENS

VOCAB_SIZE = 320
EOS = SPECIAL_TOKENS.index("<|im_end|>")
LONGEST_PROMPT = 130
LONGEST_ANSWER = 90
ABORT_STATES = ("queued", "trunk", "held", "released", "finished")

_BORDERS = (1, 2, 31, 32, 33, 34, 63, 64, 65, 66, 96, 97, 129, 130)
_REGEXES = ("[0-9]{3}-[a-c]{2}", "(yes|no)( (sir|madam))?", "[A-F]{1,6}", "(ab|cd){2,5}x?")
_SCHEMAS = (
    {"type": "boolean"},
    {"enum": ["red", "green", "blue"]},
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22, 333]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    },
)
_LETTERS = range(70, 90)
_WORDS = ("a", "e", "th", "B", "7", "%", "xy", "Q", "$", "zz")


@dataclass(frozen=True)
class Ask:
    """One request. `model` None is the base; `settings` are vLLM's `SamplingParams`.

    leaves_in: the client leaves once its request has been in this state for `patience` steps (None: it stays).
    kind_of_output: how the client hears of it, one of vLLM's `RequestOutputKind`.
    forced, watched: the answer where it is known, which is scored, and the tokens that are watched at its steps.
    """

    model: str | None
    prompt: tuple[int, ...]
    settings: dict[str, Any]
    regex: str | None = None
    schema: str | None = None
    leaves_in: str | None = None
    patience: int = 0
    kind_of_output: str = "FINAL_ONLY"
    forced: tuple[int, ...] = ()
    watched: tuple[tuple[int, ...], ...] = ()

    @property
    def structured(self) -> bool:
        return self.regex is not None or self.schema is not None

    @property
    def kind(self) -> str:
        if self.model is None:
            return "base"
        return "member" if "/member-" in self.model else "ensemble"


@dataclass
class Traffic:
    """Draws asks in phases: bursts, a steady flow, and silence until the engine is idle. In every other phase prompts
    are short and answers long, so that groups outgrow the KV blocks that were free when they came.

    rich: how many asks carry unusual settings, from 0 (none) to 1. Earlier prompts and answers are remembered, so that
    later prompts share their beginnings.
    """

    seed: int
    ensembles: dict[str, int]
    rich: float = 1.0
    most_live: int = 24
    memory: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    _phase: str = "burst"
    _left: int = 0
    _growing: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def arrivals(self, live: int) -> list[Ask]:
        """What arrives before the next step, while `live` requests are in the engine."""
        if self._phase == "silence":
            if live:
                return []
            self._left = 0
        if self._left == 0:
            self._phase = self.rng.choices(("burst", "steady", "silence"), (4, 4, 1))[0]
            self._left = self.rng.randint(10, 80)
            self._growing = self.rng.random() < 0.5
        self._left -= 1
        if live >= self.most_live or self._phase == "silence":
            return []
        if self._phase == "steady":
            return [self.ask()] if self.rng.random() < 0.25 else []
        if live > self.most_live // 4:
            return []
        return [self.ask() for _ in range(self.rng.randint(2, self.most_live - live))]

    def remember(self, ask: Ask, answer: Sequence[int]) -> None:
        """Later prompts may be this one, share its beginning, or go on after its answer."""
        self.memory = [*self.memory[-30:], (ask.prompt, tuple(answer))]

    def ask(self) -> Ask:
        model = self._model()
        settings = self._settings(model)
        regex = schema = None
        if self.rng.random() < 0.15 * self.rich:
            regex, schema = self._structure()
        # Where constraints leave no token vLLM goes on with one that they forbid, or logs an error; groups end.
        may_contradict = model is not None and self.rng.random() < 0.3
        if (not (regex or schema) or may_contradict) and self.rng.random() < self.rich:
            settings |= self._processors(settings["max_tokens"])
        leaves_in = None
        if self.rng.random() < 0.3 * self.rich:
            # The short-lived states twice: many requests pass through them within a step.
            leaves_in = self.rng.choice((*ABORT_STATES, "trunk", "held"))
        ask = Ask(
            model,
            self._prompt(),
            settings,
            regex=regex,
            schema=schema,
            leaves_in=leaves_in,
            patience=self.rng.choice((0, 0, 0, 1, 5)),
            kind_of_output=self.rng.choice(("FINAL_ONLY", "FINAL_ONLY", "DELTA", "CUMULATIVE")),
        )
        return self._known(ask) if model is not None and self.rng.random() < 0.15 * self.rich else ask

    def _known(self, ask: Ask) -> Ask:
        """The same ask with an answer that is only to be scored, as the client asks for it."""
        length = ask.settings["max_tokens"]
        return replace(
            ask,
            settings={"temperature": 0.0, "max_tokens": length, "ignore_eos": True, "seed": 0},
            regex=None,
            schema=None,
            forced=tuple(self._tokens(length)),
            watched=tuple(tuple(self._tokens(self.rng.choice((0, 0, 1, 9)))) for _ in range(length)),
        )

    def _model(self) -> str | None:
        name = self.rng.choice(list(self.ensembles))
        kind = self.rng.random()
        if kind < 0.15:
            return None
        if kind < 0.3:
            return f"{name}/member-{self.rng.randrange(self.ensembles[name])}"
        return name

    def _prompt(self) -> tuple[int, ...]:
        """Ends with a letter: vLLM's detokenizer repeats prompts that end inside a character."""
        rng = self.rng
        length = rng.choice((rng.choice(_BORDERS), rng.randint(1, LONGEST_PROMPT)))
        kind = rng.choice(("new", "new", "same", "all but one", "cut", "cut", "goes on"))
        if self._growing:
            kind, length = "new", rng.randint(1, 33)
        if kind == "new" or not self.memory:
            return (*self._tokens(length - 1), rng.choice(_LETTERS))
        prompt, answer = rng.choice(self.memory)
        if kind == "same":
            return prompt
        if kind == "all but one":
            return (*prompt[:-1], rng.choice(_LETTERS))
        start = (*prompt, *answer)
        if kind == "cut":
            start = start[: rng.choice(_BORDERS)]
        tokens = (*start, *self._tokens(rng.randint(0, 40)))
        return (*tokens[: LONGEST_PROMPT - 1], rng.choice(_LETTERS))

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def _settings(self, model: str | None) -> dict[str, Any]:
        rng = self.rng
        fewest = 60 if self._growing else rng.choice((1, 1, 20))
        settings: dict[str, Any] = {
            "temperature": rng.choice((0.0, 0.0, 0.5, 1.0, 1.0, 1.7)),
            "max_tokens": rng.choice((fewest, fewest + 1, *[rng.randint(fewest, LONGEST_ANSWER)] * 4)),
            "ignore_eos": rng.random() < 0.3,
        }
        if rng.random() < self.rich:
            settings["logprobs"] = rng.choice((None, None, 0, 1, 5, 20))
            settings["n"] = rng.choice((1, 1, 1, 1, 2, 3))
            settings["top_k"] = rng.choice((0, 0, 1, 5, 50))
            settings["top_p"] = rng.choice((1.0, 1.0, 0.9, 0.5))
            settings["min_p"] = rng.choice((0.0, 0.0, 0.05, 0.3))
        # vLLM's own seeded draws can end a CPU engine; the client refuses them for the base.
        if model is not None and rng.random() < 0.5:
            settings["seed"] = rng.randrange(2**53)
        if settings["temperature"] == 0:
            settings["n"] = 1
        return settings

    def _processors(self, max_tokens: int) -> dict[str, Any]:
        rng = self.rng
        drawn: dict[str, Any] = {}
        if rng.random() < 0.3:
            drawn["logit_bias"] = {token: rng.uniform(-8, 8) for token in self._tokens(4)} | {EOS: 6.0}
            drawn["logit_bias"] |= {token: rng.choice((-100.0, -99.0, 30.0)) for token in self._tokens(2)}
        if rng.random() < 0.2:
            drawn["allowed_token_ids"] = sorted({*self._tokens(40), EOS})
        if rng.random() < 0.2:
            drawn["bad_words"] = rng.sample(_WORDS, 3)
        if rng.random() < 0.3:
            drawn["repetition_penalty"] = rng.choice((0.8, 1.2, 2.0))
        if rng.random() < 0.3:
            drawn["presence_penalty"] = rng.choice((-0.5, 0.7, 2.0))
        if rng.random() < 0.3:
            drawn["frequency_penalty"] = rng.choice((-0.3, 0.4, 1.5))
        if rng.random() < 0.25:
            drawn["stop_token_ids"] = sorted(set(self._tokens(8)))
        if rng.random() < 0.25:
            drawn["stop"] = rng.sample(_WORDS, 4)
        if rng.random() < 0.25:
            drawn["min_tokens"] = rng.randint(1, min(max_tokens, 10))
        return drawn

    def _structure(self) -> tuple[str | None, str | None]:
        if self.rng.random() < 0.5:
            return self.rng.choice(_REGEXES), None
        return None, json.dumps(self.rng.choice(_SCHEMAS))
