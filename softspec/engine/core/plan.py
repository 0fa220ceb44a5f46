"""What one engine step has to give, tokens and KV blocks, and to whom it is promised before vLLM spends it.

Pure arithmetic; the scheduler decides who is served first.
"""

from dataclasses import dataclass, field

from vllm.v1.request import Request


def tokens_to_compute(row: Request) -> int:
    """Known tokens of a running row that have no KV yet; 1 when it only draws."""
    return row.num_tokens_with_spec + row.num_output_placeholders - row.num_computed_tokens


@dataclass
class StepPlan:
    """`tokens` and `blocks` are what is left; `grants` how many tokens each planned row may compute."""

    tokens: int
    blocks: int
    grants: dict[str, int] = field(default_factory=dict)

    def covers(self, tokens: int, blocks: int) -> bool:
        return tokens <= self.tokens and blocks <= self.blocks

    def promise(self, request_id: str, tokens: int, blocks: int) -> int:
        """Up to `tokens` tokens for a row; returns how many."""
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
