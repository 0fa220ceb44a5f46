"""How long a step takes at least: what it must read, or what it must compute, whichever takes the device longer.

In: a `Case`. Out: seconds, part by part. A bound from below: no kernel launches, no scheduling, no HTTP, every kernel
as fast as the data sheet. What is computed and what is read is said as the engine does it.
"""

from dataclasses import dataclass

from softspec.app.plan.case import Case
from softspec.app.plan.memory import kv_token_bytes

LEAST_ROWS = 4
"""So many tokens of a step go through shared lower layers at least."""


@dataclass(frozen=True)
class Work:
    """Bytes to read or write, and operations; a product and a sum are two."""

    bytes: float
    operations: float

    def seconds(self, case: Case) -> float:
        return max(self.bytes / case.device.bandwidth, self.operations / case.device.flops)

    def is_memory_bound(self, case: Case) -> bool:
        return self.bytes / case.device.bandwidth >= self.operations / case.device.flops


@dataclass(frozen=True)
class Tokens:
    """What goes through the model: tokens below and from the lowest adapted layer on, of which so many with adapters.

    `pairs` are (token, token before it or itself) in attention, `reads` tokens of KV cache that it reads; below and
    above too. `rows` get logits.
    """

    lower: float
    upper: float
    adapted: float
    lower_pairs: float
    upper_pairs: float
    lower_reads: float
    upper_reads: float
    rows: int


def decode_tokens(case: Case) -> Tokens:
    """A step in which every user draws a token, in the middle of the answers."""
    rows, users = case.rows, case.load.users
    lower = min(max(users, LEAST_ROWS), rows) if case.device.shares_layers else rows
    length = case.load.prompt + case.load.output / 2
    return Tokens(lower, rows, rows, lower * length, rows * length, lower * length, rows * length, rows)


def prompt_tokens(case: Case, users: int) -> Tokens:
    """The prompts of so many users at once, and their first draw."""
    members, prompt, shared = case.ensemble.members, case.load.prompt, case.shared_prompt
    own = members * (prompt - shared)
    pairs = shared**2 / 2 + members * (prompt**2 - shared**2) / 2
    reads = shared + members * prompt
    upper = users * (shared + own), users * pairs, users * reads
    lower = (users * prompt, users * prompt**2 / 2, users * prompt) if case.device.shares_layers else upper
    return Tokens(lower[0], upper[0], users * own, lower[1], upper[1], lower[2], upper[2], users * members)


def work_of(case: Case, tokens: Tokens) -> dict[str, Work]:
    """Part -> what a step of these tokens reads and computes."""
    base, size = case.base, case.device.number_bytes
    below, above = case.lowest, base.layers - case.lowest
    kv = kv_token_bytes(case) / base.layers
    weights = base.layer_weights
    widths = sum(sum(base.linears[module]) for module in case.ensemble.modules)
    adapter = widths * case.ensemble.engine_rank
    # On a GPU vLLM's kernels run in every layer, over zeros where there is no adapter.
    adapted = len(case.ensemble.layers) if case.device.is_cpu else base.layers
    logits = tokens.rows * base.vocabulary
    return {
        "layers below": Work(below * weights * size, 2 * below * weights * tokens.lower),
        "layers": Work(above * weights * size, 2 * above * weights * tokens.upper),
        "adapters": Work(
            adapted * adapter * case.ensemble.members * size, 2 * adapted * adapter * tokens.adapted
        ),
        "attention": Work(
            kv * (below * tokens.lower_reads + above * tokens.upper_reads),
            4 * base.query_width * (below * tokens.lower_pairs + above * tokens.upper_pairs),
        ),
        "vocabulary": Work(base.vocabulary_weights * size, 2 * base.hidden * logits),
        "mixing": Work(4 * logits * case.device.mixing_passes, 0),
    }


def seconds_of(case: Case, tokens: Tokens) -> float:
    """How long a step of these tokens takes at least, its parts one after another."""
    return sum(work.seconds(case) for work in work_of(case, tokens).values())


@dataclass(frozen=True)
class Times:
    """Seconds: of a token while all users draw, of a first token alone and of all users' at once; requests a second."""

    token: float
    first: float
    first_of_all: float
    requests_per_s: float


def times_of(case: Case) -> Times:
    """The times of a case. Requests are counted as if prompts and answers took turns, all users always asking."""
    token = seconds_of(case, decode_tokens(case))
    first = seconds_of(case, prompt_tokens(case, 1))
    users, steps = case.load.users, case.load.output - 1
    return Times(
        token=token,
        first=first,
        first_of_all=seconds_of(case, prompt_tokens(case, users)),
        requests_per_s=users / (users * first + steps * token),
    )
