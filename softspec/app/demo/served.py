"""The served half of the demo: `softspec serve` as a child process, and questions through the `openai` client.

In: an ensemble directory and questions. Out: answers with the numbers and decisions that a client sees.
Imports neither `server` nor vLLM: it is a client like any other.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import DefaultHttpxClient, OpenAI
from tqdm import tqdm

from softspec.app.child_server import child_server, free_port
from softspec.app.demo.facts import KINDS, Thing, ask
from softspec.app.demo.settings import ServingSettings

MAX_TOKENS = 8
_STAGES = {
    "": "three processes import vLLM in turn",
    "Starting to load model": "loading the base's weights",
    "init engine": "loading routes and ensembles",
    "Application startup complete": "one first answer of each ensemble",
}
"""What vLLM's log says when a part of its start begins, and what is then waited for."""


@dataclass(frozen=True)
class Answer:
    """What a client got back. `text` is None when the policy withheld the answer, and `refusal` says so instead."""

    text: str | None
    refusal: str | None
    finish_reason: str
    uncertainty: dict[str, Any]


Serve = Callable[[Path, str, ServingSettings, Path], AbstractContextManager[str]]
"""What `serving` is: tests give scripted servers in its place."""


@contextmanager
def serving(ensemble_dir: Path, base: str, settings: ServingSettings, log: Path) -> Iterator[str]:
    """Run `softspec serve` until the block ends; yields the URL that `OpenAI(base_url=...)` takes.

    Raises:
        EngineError: the server ended, or was not ready in time; the message names its log.
    """
    port = free_port()
    command = [sys.executable, "-P", "-m", "softspec.app.cli", "serve", str(ensemble_dir), "--base", base]
    command += ["--host", "127.0.0.1", "--port", str(port), "--verbose", *settings.flags]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    url = f"http://127.0.0.1:{port}"
    print(f"softspec: starting the server, which takes a minute or two; its log is '{log}'", file=sys.stderr)
    with child_server(command, f"{url}/ready", log, environment, settings.ready_timeout_s, _STAGES):
        yield f"{url}/v1"


def connect(url: str) -> OpenAI:
    """The official client, pointed at the server on this machine."""
    return OpenAI(base_url=url, api_key="unused", http_client=DefaultHttpxClient(trust_env=False))


def ask_model(client: OpenAI, model: str, question: str, policy: Mapping[str, Any]) -> Answer:
    """One greedy answer; `policy` is the request's `uncertainty.policy`.

    In training every answer has several colours, so an answer about one thing is cut at the first comma.
    """
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        stop=",",
        extra_body={"uncertainty": {"detail": "summary", "policy": policy}},
    )
    choice = completion.choices[0]
    numbers = (choice.model_extra or {})["uncertainty"]
    return Answer(choice.message.content, choice.message.refusal, choice.finish_reason, numbers)


@dataclass(frozen=True)
class Questioner:
    """Asks one served ensemble about things; `policy` is an abstain policy."""

    client: OpenAI
    model: str
    policy: Mapping[str, Any]

    def one_of_each_kind(self, things: Sequence[Thing]) -> list[dict[str, Any]]:
        """The first thing of each kind: the answer without a policy, and what the policy makes of it."""
        return [self._shown(next(thing for thing in things if thing.kind == kind)) for kind in KINDS]

    def withheld(self, things: Sequence[Thing]) -> dict[str, dict[str, int]]:
        """How many questions of each kind were asked, and how many answers the policy withheld."""
        counts = {str(kind): {"asked": 0, "withheld": 0} for kind in KINDS}
        for thing in tqdm(things, desc="asking", unit="question", disable=None):
            counts[thing.kind]["asked"] += 1
            counts[thing.kind]["withheld"] += self._judged(thing).uncertainty["decision"] == "abstain"
        return counts

    def _shown(self, thing: Thing) -> dict[str, Any]:
        answered = ask_model(self.client, self.model, ask([thing]), {"action": "answer"})
        judged = self._judged(thing)
        return {
            "kind": thing.kind,
            "question": ask([thing]),
            "told": list(dict.fromkeys(thing.colours)),
            "text": answered.text,
            "uncertainty": answered.uncertainty,
            "decision": judged.uncertainty["decision"],
            "reason": judged.uncertainty["reason"],
            "refusal": judged.refusal,
        }

    def _judged(self, thing: Thing) -> Answer:
        return ask_model(self.client, self.model, ask([thing]), self.policy)
