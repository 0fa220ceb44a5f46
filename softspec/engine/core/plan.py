"""What one engine step has to give, tokens and KV blocks, and to whom it is promised before vLLM spends it.

In: promises, in the order in which the scheduler makes them. Out: what is left, and what each row may take. Pure
arithmetic; knows no groups.
"""

from dataclasses import dataclass, field

from vllm.v1.request import Request


def tokens_to_compute(row: Request) -> int:
    """Known tokens of a running row that have no KV yet; 1 when it only draws."""
    return row.num_tokens_with_spec + row.num_output_placeholders - row.num_computed_tokens


@dataclass
class StepPlan:
    """Tokens and KV blocks of a step that are left, and in `grants` how many tokens each planned row may compute."""

    tokens: int
    blocks: int
    grants: dict[str, int] = field(default_factory=dict)

    def covers(self, tokens: int, blocks: int) -> bool:
        """Whether so many tokens and blocks are left."""
        return tokens <= self.tokens and blocks <= self.blocks

    def promise(self, request_id: str, tokens: int, blocks: int) -> int:
        """Promise a row up to `tokens` tokens; returns how many."""
        granted = max(min(tokens, self.tokens), 0)
        self.grants[request_id] = granted
        self.tokens -= granted
        self.blocks -= blocks
        return granted

    def granted(self, request_id: str, tokens: int) -> int:
        """How many of the `tokens` that vLLM offers a row it may take; a row that was not planned takes the rest."""
        if request_id not in self.grants:
            self.promise(request_id, tokens, 0)
        return min(tokens, self.grants[request_id])
