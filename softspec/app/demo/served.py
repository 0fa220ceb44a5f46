"""The served half of the demo: `softspec serve` as a child process, and questions through the `openai` client.

In: an ensemble directory and questions. Out: answers with the numbers and decisions that a client sees.
Imports neither `server` nor vLLM: it is a client like any other.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import DefaultHttpxClient, OpenAI
from tqdm import tqdm

from softspec.app.child_server import child_server, free_port
from softspec.app.demo.facts import KINDS, Thing, ask
from softspec.artefact.manifest import load_manifest

LOG_NAME = "serve.log"
MAX_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """What a client got back. `text` is None when the policy withheld the answer, and `refusal` says so instead."""

    text: str | None
    refusal: str | None
    finish_reason: str
    uncertainty: dict[str, Any]


@dataclass(frozen=True)
class ServingSettings:
    """vLLM's flags, how long it may take to be ready, and the policy that is shown.

    `threshold` is in nats; by default half of log 2, where log 2 is what two equally strong camps of members give.
    """

    flags: tuple[str, ...] = ("--max-model-len", "512", "--enforce-eager")
    ready_timeout_s: float = 600
    metric: str = "mutual_information"
    threshold: float = math.log(2) / 2


@contextmanager
def serving(ensemble_dir: Path, base: str, settings: ServingSettings) -> Iterator[str]:
    """Run `softspec serve` until the block ends; yields the URL that `OpenAI(base_url=...)` takes.

    Raises:
        EngineError: the server ended, or was not ready in time; the message names its log.
    """
    port = free_port()
    command = [sys.executable, "-P", "-m", "softspec.app.cli", "serve", str(ensemble_dir), "--base", base]
    command += ["--host", "127.0.0.1", "--port", str(port), *settings.flags]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    url, log = f"http://127.0.0.1:{port}", ensemble_dir / LOG_NAME
    with child_server(command, f"{url}/ready", log, environment, settings.ready_timeout_s):
        yield f"{url}/v1"


def connect(url: str) -> OpenAI:
    """The official client, pointed at the server on this machine."""
    return OpenAI(base_url=url, api_key="unused", http_client=DefaultHttpxClient(trust_env=False))


def ask_model(client: OpenAI, model: str, question: str, policy: dict[str, Any]) -> Answer:
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


def serve_and_ask(
    output: Path, base: str, things: Sequence[Thing], settings: ServingSettings
) -> dict[str, Any]:
    """Start `softspec serve`, ask about every thing under an abstain policy, and show one answer of each kind."""
    name = load_manifest(output).name
    policy = {"action": "abstain", "metric": settings.metric, "threshold": settings.threshold}
    shown = [next(thing for thing in things if thing.kind == kind) for kind in KINDS]
    with serving(output, base, settings) as url, connect(url) as client:
        judged = {
            thing: ask_model(client, name, ask([thing]), policy)
            for thing in tqdm(things, desc="asking", unit="question")
        }
        answered = {thing: ask_model(client, name, ask([thing]), {"action": "answer"}) for thing in shown}
    return {
        "answers": [_shown_answer(thing, answered[thing], judged[thing]) for thing in shown],
        "policy": {**policy, "withheld": _withheld(judged)},
    }


def _shown_answer(thing: Thing, answered: Answer, judged: Answer) -> dict[str, Any]:
    """An answer as given without a policy, and what the policy made of it."""
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


def _withheld(judged: Mapping[Thing, Answer]) -> dict[str, dict[str, int]]:
    counts = {kind: {"asked": 0, "withheld": 0} for kind in KINDS}
    for thing, answer in judged.items():
        counts[thing.kind]["asked"] += 1
        counts[thing.kind]["withheld"] += answer.uncertainty["decision"] == "abstain"
    return {str(kind): count for kind, count in counts.items()}
