"""What strangers send to a server, the impatient, the slow and the malicious among them, and what each must get.

In: a seed. Out: requests, each with the answers that are right for it. Knows no HTTP client.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]
ENSEMBLE, MEMBER, BASE = "law", "law/member-1", "base"
COMING = "tax"
"""An ensemble that comes and goes."""
ALIAS = "live"
"""Stands for the first ensemble, and now and then for the other too."""
MODELS = (ENSEMBLE, ENSEMBLE, ALIAS, MEMBER, BASE)
"""As often as they are asked."""
WORDS = ("may", "I", "record", "a", "call", "äöü", "漢字", "😀", "{", "}", '"', "\\n", "no", "yes")
LARGEST_BODY = 262_144
"""Bytes: what the server of the soak accepts."""
SCHEMA: Json = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
Patience = Literal["whole", "leave", "slow"]
"""Whether a client reads its answer to the end, leaves in the middle, or reads as slowly as it can."""


@dataclass(frozen=True)
class Ask:
    """One request; `right` are the statuses that it may get, `key` the caller's, None for none."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    right: tuple[int, ...] = (200,)
    key: str | None = "good"
    patience: Patience = "whole"
    headers: Json = field(default_factory=dict)
    replayed: str | None = None
    has_uncertainty: bool = False

    @property
    def is_stream(self) -> bool:
        return b'"stream": true' in self.body


def unloading() -> Ask:
    """Takes the ensemble that comes and goes out, if it is there and nobody is led to it."""
    body = json.dumps({"name": COMING}).encode()
    return Ask("unload", "POST", "/v1/unload_ensemble", body, (200, 400, 404), "admin")


def leading_back() -> Ask:
    """Lets the alias stand for the ensemble that stays, and nobody follow it."""
    back = {"alias": ALIAS, "weights": {ENSEMBLE: 1}, "shadows": {COMING: {"of": ENSEMBLE, "share": 0}}}
    return Ask("roll out", "POST", "/v1/aliases", json.dumps(back).encode(), (200,), "admin")


class Traffic:
    """Random requests; the same seed gives the same ones. `folder` has the ensemble that comes and goes."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = random.Random(seed)
        self._folder = folder

    def asks(self, count: int) -> Iterator[Ask]:
        """So many requests of all kinds."""
        kinds: list[tuple[int, Callable[[], Ask]]] = [
            (22, self._chat),
            (8, self._text),
            (12, self._with_policy),
            (12, self._routed),
            (10, self._replayed),
            (5, self._json),
            (4, self._responses),
            (4, self._messages),
            (4, self._decisions),
            (4, self._scored),
            (5, self._other_routes),
            (4, self._limited),
            (2, self._coming_and_going),
            (2, self._asking_what_comes_and_goes),
            (2, self._rolling_out),
            (10, self._refused),
        ]
        weights = [weight for weight, _ in kinds]
        for make in self._random.choices([make for _, make in kinds], weights, k=count):
            yield make()

    # What is answered

    def _chat(self) -> Ask:
        body = self._chat_body(self._random.choice(MODELS), n=self._random.choice((1, 1, 1, 2, 3)))
        if self._random.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": self._random.randrange(5)}
        if body["model"] in (ENSEMBLE, ALIAS) and self._random.random() < 0.3:
            body["uncertainty"] = {"detail": "tokens"}
        if self._random.random() < 0.2:
            body["stop"] = [self._words(1)]
        return self._asked("chat", "/v1/chat/completions", body)

    def _text(self) -> Ask:
        prompts: list[Any] = [self._words(6), [self._words(3), self._words(5)], [5, 6, 7, 8]]
        body = {
            "model": self._random.choice(MODELS),
            "prompt": self._random.choice(prompts),
            "max_tokens": self._random.randint(1, 24),
            "stream": self._random.random() < 0.4,
        }
        return self._asked("text", "/v1/completions", body)

    def _with_policy(self) -> Ask:
        body = self._chat_body(ENSEMBLE, n=self._random.choice((1, 1, 2)))
        metric = self._random.choice(("mutual_information", "max_epistemic", "disagreement", "total_entropy"))
        policy = {"action": "abstain", "metric": metric, "threshold": self._random.random()}
        if body["stream"]:
            policy["hold_tokens"] = self._random.choice((0, 4))
        body["uncertainty"] = {"policy": policy}
        return self._asked("abstain", "/v1/chat/completions", body)

    def _routed(self) -> Ask:
        failure = self._random.choice(("abstain", "answer", "error"))
        body = self._chat_body(ENSEMBLE)
        threshold = self._random.choice((0.0, 0.2, 0.6))
        policy = {"action": "route", "metric": "max_epistemic", "threshold": threshold, "on_failure": failure}
        body["uncertainty"] = {"policy": policy}
        right = (200, 502) if failure == "error" and not body["stream"] else (200,)
        return self._asked("route", "/v1/chat/completions", body, right)

    def _replayed(self) -> Ask:
        """One of a few requests, which have the same answer whenever they are asked."""
        number = self._random.randrange(12)
        body = {
            "model": (ENSEMBLE, MEMBER)[number % 2],
            "messages": [{"role": "user", "content": WORDS[number]}],
            "max_tokens": 12 + number,
            "seed": 1000 + number,
            "temperature": 1.0,
            "stream": False,
        }
        return self._asked("replay", "/v1/chat/completions", body, patience="whole", replayed=str(number))

    def _json(self) -> Ask:
        body = self._chat_body(self._random.choice(MODELS))
        schema = {"name": "s", "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return self._asked("json", "/v1/chat/completions", body)

    def _responses(self) -> Ask:
        body = {
            "model": self._random.choice(MODELS),
            "input": self._words(5),
            "max_output_tokens": self._random.randint(1, 16),
            "stream": self._random.random() < 0.5,
            "store": False,
        }
        return self._asked("responses", "/v1/responses", body)

    def _messages(self) -> Ask:
        body = {
            "model": self._random.choice(MODELS),
            "messages": [{"role": "user", "content": self._words(5)}],
            "max_tokens": self._random.randint(1, 16),
            "stream": self._random.random() < 0.5,
        }
        return self._asked("messages", "/v1/messages", body)

    def _decisions(self) -> Ask:
        question = {"type": "choice", "name": "q", "instructions": self._words(4)}
        choices = [{"value": value} for value in ("yes", "no", "perhaps")]
        body = {"model": ENSEMBLE, "input": self._words(6), "questions": [{**question, "choices": choices}]}
        return self._asked("decisions", "/v1/decisions", body)

    def _scored(self) -> Ask:
        body = {
            "model": ENSEMBLE,
            "prompt": self._words(4),
            "answers": [self._words(3) for _ in range(self._random.randint(1, 4))],
        }
        return self._asked("scores", "/v1/uncertainty", body)

    def _other_routes(self) -> Ask:
        path = self._random.choice(("/v1/models", "/health", "/ready", "/metrics", "/tokenize", "/v1/models"))
        if path != "/tokenize":
            return Ask("look", "GET", path)
        return self._asked("tokenize", path, {"model": BASE, "prompt": self._words(8)})

    def _limited(self) -> Ask:
        """By a key that may not ask so often."""
        key = self._random.choice(("busy", "single"))
        return self._asked("limited", "/v1/chat/completions", self._chat_body(ENSEMBLE), (200, 429), key)

    def _coming_and_going(self) -> Ask:
        """Loading what is loaded, and unloading what is not, is refused."""
        if self._random.random() < 0.5:
            return unloading()
        body = {"path": str(self._folder / COMING)}
        return self._asked("load", "/v1/load_ensemble", body, (200, 400), "admin", "whole")

    def _asking_what_comes_and_goes(self) -> Ask:
        return self._asked("guest", "/v1/chat/completions", self._chat_body(COMING), (200, 404))

    def _rolling_out(self) -> Ask:
        """What is not loaded can take no share."""
        if self._random.random() < 0.5:
            return leading_back()
        share = self._random.random()
        body = {
            "alias": ALIAS,
            "weights": {ENSEMBLE: 1 - share, COMING: share},
            "shadows": {COMING: {"of": ENSEMBLE, "share": share}},
        }
        return self._asked("roll out", "/v1/aliases", body, (200, 400), "admin", "whole")

    # What is refused

    def _refused(self) -> Ask:
        chat, good = "/v1/chat/completions", self._chat_body(ENSEMBLE, stream=False)
        bad: list[tuple[str, Any, tuple[int, ...]]] = [
            ("no JSON", b'{"model": "law", "messages": [', (400,)),
            ("no UTF-8", b'{"model": "law\xff"}', (400,)),
            ("nested", b"[" * 20_000 + b"]" * 20_000, (400, 413, 422)),
            ("unknown model", {**good, "model": "nobody"}, (404,)),
            ("unknown field", {**good, "temprature": 1}, (400,)),
            ("wrong type", {**good, "max_tokens": "many"}, (400,)),
            ("negative", {**good, "max_tokens": -1}, (400,)),
            ("huge n", {**good, "n": 100_000}, (400,)),
            ("top_logprobs", {**good, "logprobs": True, "top_logprobs": 1000}, (400,)),
            ("no messages", {**good, "messages": []}, (400,)),
            ("long prompt", {**good, "messages": [{"role": "user", "content": "x" * 20_000}]}, (400,)),
            ("large body", {**good, "user": "x" * (2 * LARGEST_BODY)}, (413,)),
            ("bad policy", {**good, "uncertainty": {"policy": {"threshold": 0.1, "metric": "mood"}}}, (400,)),
            (
                "bad schema",
                {**good, "structured_outputs": {"json": {"type": "array", "items": [{}]}}},
                (400,),
            ),
            ("bad regex", {**good, "structured_outputs": {"regex": "(a|b{1,9999"}}, (400,)),
            ("infinite", b'{"model": "law", "messages": [], "temperature": 1e999}', (400,)),
        ]
        if self._random.random() < 0.2:
            return self._asked("no key", chat, good, (401,), key=None, patience="whole")
        if self._random.random() < 0.2:
            return self._asked("wrong key", chat, good, (401,), key="wrong", patience="whole")
        if self._random.random() < 0.1:
            return self._asked("forbidden", chat, {**good, "model": BASE}, (403,), "narrow", patience="whole")
        if self._random.random() < 0.1:
            return Ask("wrong method", "GET", chat, right=(405,))
        if self._random.random() < 0.1:
            return Ask("no such page", "GET", f"/v1/{self._random.randrange(99)}", right=(404,))
        kind, body, right = self._random.choice(bad)
        return self._asked(f"refused: {kind}", chat, body, right, patience="whole")

    # What all are made of

    def _asked(
        self,
        kind: str,
        path: str,
        body: Json | bytes,
        right: tuple[int, ...] = (200,),
        key: str | None = "good",
        patience: Patience | None = None,
        replayed: str | None = None,
    ) -> Ask:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        patience = patience or self._random.choices(("whole", "leave", "slow"), (80, 14, 6))[0]
        has = kind in ("chat", "text", "abstain", "route", "replay") and json.loads(raw)["model"] in (
            ENSEMBLE,
            ALIAS,
        )
        return Ask(kind, "POST", path, raw, right, key, patience, replayed=replayed, has_uncertainty=has)

    def _chat_body(self, model: str, n: int = 1, stream: bool | None = None) -> Json:
        return {
            "model": model,
            "messages": [{"role": "user", "content": self._words(self._random.randint(1, 30))}],
            "max_tokens": self._random.choice((1, 4, 16, 16, 48)),
            "temperature": self._random.choice((0, 0.7, 1.0)) if n == 1 else 1.0,
            "stream": self._random.random() < 0.5 if stream is None else stream,
            "n": n,
        }

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))
