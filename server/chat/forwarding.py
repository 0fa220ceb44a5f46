"""A request asked elsewhere, choice by choice: the caller's own body to an upstream, and of its answer what is ours.

In: the body and headers as the caller sent them, and upstreams by name. Out: an upstream's choice with its model and
usage, whole or in chunks. Knows no HTTP and nothing of why a request is routed.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from softspec.errors import UpstreamError
from softspec.server.chat.wire import Json
from softspec.server.upstream.client import Upstream


@dataclass(frozen=True)
class Forwarded:
    """An upstream's answer to one choice; `model` is the one that it names, `usage` what it says to have used."""

    choice: Json
    model: str
    usage: Json | None


@dataclass(frozen=True)
class Forwarding:
    """One request: `path` is what stands behind an upstream's url, `body` JSON, `num_samples` the request's n."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    num_samples: int
    upstreams: Mapping[str, Upstream]

    async def ask(self, name: str, index: int) -> Forwarded:
        """The upstream's answer to the choice with this index.

        Raises:
            UpstreamError: it has none.
        """
        upstream = self.upstreams[name]
        answer = await upstream.ask(self.path, self.body_for(index), self.headers)
        return Forwarded(answer["choices"][0], self.model_of(name, answer), answer.get("usage"))

    async def stream(self, name: str, index: int) -> AsyncGenerator[Json | UpstreamError, None]:
        """The chunks of the upstream's answer to that choice; the last is an error if they are not all of it."""
        chunks = self.upstreams[name].stream(self.path, self.body_for(index), self.headers)
        has_finished = False
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield {**chunk, "choices": []} if has_finished else chunk
                    has_finished |= any(choice.get("finish_reason") for choice in chunk["choices"][:1])
            if not has_finished:
                yield UpstreamError(f"upstream '{name}' ended its stream before its answer", "cut")
        except UpstreamError as error:
            if not has_finished:  # else all of the answer is there, and only its usage may be missing
                yield error

    def model_of(self, name: str, answer: Json) -> str:
        """The model that answered, as the answer or a chunk of it says, or else as it was asked for."""
        model = answer.get("model")
        return model if isinstance(model, str) and model else self.upstreams[name].model

    def body_for(self, index: int) -> Json:
        """The caller's request for one choice alone."""
        prompt, sample = divmod(index, self.num_samples)
        body: Json = json.loads(self.body)
        for field in ("n", "best_of"):
            if body.get(field) is not None:
                body[field] = 1
        if isinstance(body.get("seed"), int):
            body["seed"] += sample  # as vLLM seeds its samples; all that are routed would be one
        prompts = body.get("prompt")
        if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
            body["prompt"] = prompts[prompt]
        return body
