"""Scores what is known already: whole answers, and options of which one will be chosen.

In: a prompt, and token ids that somebody else chose. Out: what each member, and the mixture, thinks of them, by the
very path on which they would have been drawn: groups whose tokens are forced. Knows no text, no HTTP and no policy.

A prompt is computed once: its first group goes ahead, and the others follow with its first output, when the KV blocks
of the prompt are in the prefix cache. Where that is off, or a block is evicted, the numbers are the same and every
group computes its prompt itself.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.walks import walks_through
from softspec.engine.trace import ChoiceTrace
from softspec.engine.wire import MAX_WATCHED, GroupSpec, num_columns
from softspec.errors import EngineError, FieldError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class ScoredOption:
    """What the ensemble thinks of one option, as a whole, after its prompt: log-probabilities in nats."""

    log_prob: float
    member_log_probs: tuple[float, ...]
    num_tokens: int


async def score_answers(
    client: EnsembleClient,
    model: str,
    prompt_ids: Sequence[int],
    answers: Sequence[Sequence[int]],
    request_id: str,
    priority: int = 0,
) -> list[ChoiceTrace]:
    """One trace for each answer to a prompt, with the numbers that its tokens would have had if they had been drawn.

    An answer without tokens has a trace without tokens. Policies do not apply: nothing is answered.

    Raises:
        FieldError: a token is not the model's, or an answer does not fit behind its prompt.
        UnknownModelError: no such ensemble or member is served.
        EngineError: a group was ended before its time.
    """
    with client.registry.holding(model) as spec:
        for number, answer in enumerate(answers):
            _require_fit(client, prompt_ids, answer, f"answers.{number}")
        known = [replace(spec, forced=tuple(answer)) for answer in answers]
        prompts = [tuple(prompt_ids)] * len(answers)
        return await _Round(client, request_id, priority).traces(prompts, known)


async def score_options(
    client: EnsembleClient,
    model: str,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    request_id: str,
    priority: int = 0,
) -> list[list[ScoredOption]]:
    """For each prompt the probability of each of its options, exactly, without drawing anything.

    The options of a prompt may be of any length, and prefixes of one another; none is empty and no two are equal.
    Those of one token cost one group and one step together, up to `MAX_WATCHED` of them.

    Raises:
        As `score_answers` does.
    """
    with client.registry.holding(model) as spec:
        for number, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
            for place, option in enumerate(choices):
                _require_fit(client, prompt, option, f"options.{number}.{place}")
        plans = [walks_through(choices, _most_watched(client, spec)) for choices in options]
        walks = [
            (tuple(prompt), walk) for prompt, plan in zip(prompts, plans, strict=True) for walk in plan.walks
        ]
        known = [replace(spec, forced=walk.forced, watched=walk.watched_by_step) for _, walk in walks]
        traces = await _Round(client, request_id, priority).traces([prompt for prompt, _ in walks], known)
    scored, told = [], iter(traces)
    for choices, plan in zip(options, plans, strict=True):
        walked = list(islice(told, len(plan.walks)))
        scored.append([_scored(option, walked[plan.walk_of[option]]) for option in map(tuple, choices)])
    return scored


class _Round:
    """All groups of one call, few enough at once to leave room for others."""

    def __init__(self, client: EnsembleClient, request_id: str, priority: int) -> None:
        self._client, self._request_id, self._priority = client, request_id, priority
        self._block = client.vllm_config.cache_config.block_size or 1
        self._begun: dict[Tokens, asyncio.Event] = {}

    async def traces(self, prompts: Sequence[Tokens], known: Sequence[GroupSpec]) -> list[ChoiceTrace]:
        """What each group told; if one fails, or the caller is cancelled, all of them end."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._follow(number, prompt, spec))
                    for number, (prompt, spec) in enumerate(zip(prompts, known, strict=True))
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _follow(self, number: int, prompt: Tokens, spec: GroupSpec) -> ChoiceTrace:
        choice = ChoiceTrace(spec.log_weights, spec.weights_rule, calibration=spec.calibration)
        if spec.forced:
            async with self._turn(prompt) as began, self._client.places_to_follow(spec.num_members):
                name = f"{self._request_id}-{number}"
                outputs = self._client.follow(spec, prompt, name, choice, self._priority)
                async with aclosing(outputs):
                    async for _ in outputs:
                        began.set()
        if tuple(token.token_id for token in choice.tokens) != spec.forced:
            raise EngineError(
                f"request {self._request_id} was ended after {len(choice.tokens)} of {len(spec.forced)} tokens to "
                "score: send it again"
            )
        return choice

    @asynccontextmanager
    async def _turn(self, prompt: Tokens) -> AsyncIterator[asyncio.Event]:
        """Wait for the first group of this prompt, or of one that begins alike; gives what the later ones wait for."""
        keys, mine = (prompt, prompt[: self._block]), asyncio.Event()
        before = next((self._begun[key] for key in keys if key in self._begun), None)
        for key in keys:
            self._begun.setdefault(key, mine)
        try:
            if before is not None:
                await before.wait()
            yield mine
        finally:
            mine.set()


def _most_watched(client: EnsembleClient, spec: GroupSpec) -> int:
    """How many tokens one step may watch: what the engine has columns for."""
    columns = client.vllm_config.model_config.max_logprobs
    if columns < 0:
        return MAX_WATCHED
    return min((columns - num_columns(spec.num_members)) // spec.num_members, MAX_WATCHED)


def _require_fit(client: EnsembleClient, prompt: Sequence[int], tokens: Sequence[int], field: str) -> None:
    model = client.vllm_config.model_config
    size = model.get_vocab_size()
    if tokens and not 0 <= min(tokens) <= max(tokens) < size:
        raise FieldError(
            field, f"'{field}' has tokens from {min(tokens)} to {max(tokens)}: expected 0 to {size - 1}"
        )
    if len(prompt) + len(tokens) > model.max_model_len:
        raise FieldError(
            field,
            f"'{field}' has {len(tokens)} tokens and its prompt {len(prompt)}: expected at most "
            f"{model.max_model_len} together, this model's context length",
        )


def _scored(option: Tokens, trace: ChoiceTrace) -> ScoredOption:
    """An option's probability: of its first tokens, which were forced, and of its last one, which was watched."""
    last = len(option) - 1
    steps = [token.member_log_probs for token in trace.tokens[:last]] + [trace.watched[last][option[last]]]
    members = tuple(math.fsum(member) for member in zip(*steps, strict=True))
    if trace.weights_rule == "fixed":
        log_prob = math.fsum(_mixed(trace.log_weights, step) for step in steps)
    else:
        log_prob = _mixed(trace.log_weights, members)
    return ScoredOption(log_prob, members, len(option))


def _mixed(log_weights: Sequence[float], log_probs: Sequence[float]) -> float:
    """The mixture's log-probability of what the members give these log-probabilities."""
    joint = [weight + log_prob for weight, log_prob in zip(log_weights, log_probs, strict=True)]
    top = max(joint)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(each - top) for each in joint))
