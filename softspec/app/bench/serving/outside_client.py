"""What one can do without softspec: an HTTP client that mixes K members of an unmodified vLLM server token by token.

In: the server's URL and a prompt. Out: greedy tokens of an approximate mixture: a client sees the 20 likeliest tokens
of each member only, and every token costs K requests. The prompt is cheap after the first, by vLLM's prefix cache.
"""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from softspec.app.child_server import child_server, free_port
from softspec.artefact.manifest import Manifest, member_dir
from softspec.errors import EngineError

TOP = 20
_OURS = ("--scheduler-cls", "--worker-extension-cls")
# The `vllm` command of the CPU wheel does not start; this is what it would run.
_VLLM_SERVE = "import sys; from softspec.engine.start.stock import run_stock; run_stock(sys.argv[1:])"


@contextmanager
def stock_server(
    arguments: Sequence[str], ensemble: Path, manifest: Manifest, environment: Mapping[str, str], log: Path
) -> Iterator[str]:
    """`vllm serve` with the members as LoRA modules `member-0`...; yields its URL.

    Args:
        arguments: those of `softspec serve` for vLLM, from which our scheduler and worker are taken out here.
    Raises:
        EngineError: the server does not start; the message names its log.
    """
    stock = list(arguments)
    for flag in _OURS:
        position = stock.index(flag)
        del stock[position : position + 2]
    modules = [f"member-{k}={member_dir(ensemble, k).resolve()}" for k in range(manifest.num_members)]
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    command = [sys.executable, "-P", "-c", _VLLM_SERVE, *stock, "--lora-modules", *modules, *address]
    url = f"http://127.0.0.1:{port}"
    with child_server(command, f"{url}/health", log, environment):
        yield url


@dataclass(frozen=True)
class TopTokens:
    """One member's next token as a client sees it: `listed` log-probabilities. It takes the rest to be all alike."""

    listed: Mapping[int, float]
    vocab_size: int

    def log_prob(self, token: int) -> float:
        if token in self.listed:
            return self.listed[token]
        left = 1 - math.fsum(map(math.exp, self.listed.values()))
        return math.log(max(left, 1e-9) / (self.vocab_size - len(self.listed)))


def mix_top(tops: Sequence[TopTokens], log_weights: Sequence[float]) -> dict[int, float]:
    """Log-probability under the mixture of every token that some member lists."""
    tokens = {token for top in tops for token in top.listed}
    return {
        token: _logsumexp(
            [weight + top.log_prob(token) for top, weight in zip(tops, log_weights, strict=True)]
        )
        for token in tokens
    }


class SteppingClient:
    """Steps K members through one answer; the weights follow the prefix as the ensemble's do."""

    def __init__(self, session: aiohttp.ClientSession, url: str, manifest: Manifest, vocab_size: int) -> None:
        self._session = session
        self._url = f"{url}/v1/completions"
        self._manifest = manifest
        self._vocab_size = vocab_size

    async def ask(self, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[int]:
        """Yields each token id when it is chosen."""
        tokens, log_weights = list(prompt_ids), list(self._manifest.log_weights)
        for _ in range(num_tokens):
            members = range(self._manifest.num_members)
            tops = await asyncio.gather(*(self._next(member, tokens) for member in members))
            mixture = mix_top(tops, log_weights)
            token = max(mixture, key=mixture.__getitem__)
            yield token
            tokens.append(token)
            if self._manifest.weights_rule == "prefix_posterior":
                joint = [weight + top.log_prob(token) for weight, top in zip(log_weights, tops, strict=True)]
                log_weights = [value - _logsumexp(joint) for value in joint]

    async def _next(self, member: int, tokens: list[int]) -> TopTokens:
        body = {
            "model": f"member-{member}",
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": TOP,
            "ignore_eos": True,
            "return_tokens_as_token_ids": True,
        }
        async with self._session.post(self._url, json=body) as reply:
            if reply.status != 200:
                raise EngineError(
                    f"the unmodified server answered {reply.status}: {(await reply.text())[:200]}"
                )
            choice = (await reply.json())["choices"][0]
        listed = choice["logprobs"]["top_logprobs"][0]
        return TopTokens(
            {int(key.removeprefix("token_id:")): value for key, value in listed.items()}, self._vocab_size
        )


def open_session() -> aiohttp.ClientSession:
    """A session without limits, so that nothing waits in the client."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout())


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
