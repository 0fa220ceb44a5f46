"""The `usage` of a request: what the ensemble computed, and where it was answered elsewhere too, the sum of both.

In: the usage in vLLM's answers and in upstreams'. Out: that of the request, whole or at the end of a stream.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

from softspec.engine.trace import RequestTrace
from softspec.server.chat.wire import Json


def with_upstream(ensemble: Json, upstream: Sequence[Json | None]) -> Json:
    """The sum, and both its parts under `softspec`; upstreams of which none told its usage are null."""
    told = [usage for usage in upstream if usage is not None]
    asked = reduce(summed, told) if told else None
    return {**summed(ensemble, asked or {}), "softspec": {"ensemble": ensemble, "upstream": asked}}


def summed(first: Json, second: Json) -> Json:
    """The counts of both, at every depth; what is no count is left out."""
    sums = {key: _sum(first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])}
    return {key: value for key, value in sums.items() if value is not None}


def _sum(first: Any, second: Any) -> Any:
    if isinstance(first, dict) or isinstance(second, dict):
        return summed(*(each if isinstance(each, dict) else {} for each in (first, second)))
    counts = [
        each for each in (first, second) if isinstance(each, int | float) and not isinstance(each, bool)
    ]
    return sum(counts) if counts else None


class StreamUsage:
    """The usage of one streamed request.

    `num_samples` is the request's n. `is_hidden`: usage in every chunk was asked for by us, to know the prompt's length
    when the stream ends early, and not by the caller; `is_continuous`: the caller did ask for it.
    """

    def __init__(self, trace: RequestTrace, num_samples: int, is_hidden: bool, is_continuous: bool) -> None:
        self._trace = trace
        self._num_samples = num_samples
        self._is_hidden = is_hidden
        self._is_continuous = is_continuous
        self._prompt_tokens: dict[int, int] = {}
        self._of_upstreams: dict[int, Json | None] = {}
        self.ensemble: Json | None = None
        """What vLLM's last chunk said; None before it, and where the caller did not ask."""

    def note(self, chunk: Json) -> None:
        """Learn the length of the prompt from a chunk of vLLM's, and take its usage out unless the caller asked."""
        if chunk.get("usage") is not None:
            prompt = chunk["choices"][0]["index"] // self._num_samples
            self._prompt_tokens[prompt] = chunk["usage"]["prompt_tokens"]
        if self._is_hidden:
            chunk.pop("usage", None)

    def of_upstream(self, index: int, chunk: Json, num_withheld: int) -> Json:
        """Take the usage out of an upstream's chunk; returns the one to send with it, if the caller asked for that."""
        usage = chunk.pop("usage", None)
        self._of_upstreams[index] = usage or self._of_upstreams.get(index)
        prompt = self._prompt_tokens.get(index // self._num_samples)
        if not self._is_continuous or usage is None or prompt is None:
            return {}
        return {"usage": with_upstream(_usage(prompt, num_withheld), [usage])}

    def closing(self, head: Json, model: str | None) -> Iterator[Json]:
        """The chunk that tells the usage, where the caller asked; vLLM's own comes too early, or not at all.

        `head` is what all chunks of the stream have, `model` who answered if that was not the ensemble.
        """
        ensemble = self.ensemble
        if ensemble is None and self._prompt_tokens:
            num_tokens = sum(len(choice.tokens) for choice in self._trace.choices.values())
            ensemble = _usage(sum(self._prompt_tokens.values()), num_tokens)
        if ensemble is None:
            return
        if self._of_upstreams:
            ensemble = with_upstream(ensemble, list(self._of_upstreams.values()))
        yield {**head, "model": model or head["model"], "choices": [], "usage": ensemble}


def _usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
