"""The state of one group inside the scheduler, and what it still needs: slots, KV blocks, steps.

In: vLLM's `Request`s of the group. Out: numbers for the scheduler. Pure bookkeeping; knows no other request.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vllm.v1.request import Request, RequestStatus

from softspec.engine.core.plan import tokens_to_compute
from softspec.engine.core.requests import trunk_request
from softspec.engine.wire import GroupSpec


@dataclass(eq=False)
class Group:
    """K requests at the same position. `shared` leading prompt tokens are computed by the trunk, without adapters."""

    spec: GroupSpec
    members: list[Request]
    shared: int
    arrival_time: float
    trunk: Request | None = None
    admitted: bool = False
    released: bool = False
    turn: int = 0
    trunks_made: int = 0

    @property
    def leader_id(self) -> str:
        """The id of the request that arrived, which is member 0."""
        return self.members[0].request_id

    @property
    def size(self) -> int:
        """How many members the group has, without the trunk."""
        return len(self.members)

    def rows(self) -> list[Request]:
        """Every request of the group that is in the engine, in the order in which they are scheduled."""
        return self.members if self.trunk is None else [self.trunk, *self.members]

    def is_trunk(self, request_id: str) -> bool:
        """Whether that request computes the group's shared tokens."""
        return self.trunk is not None and self.trunk.request_id == request_id

    def ready_to_admit(self) -> bool:
        """Whether grammars are compiled and no output of an earlier life is in flight."""
        return all(
            member.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            and not member.num_stale_output_tokens
            for member in self.members
        )

    def admit(self, turn: int) -> None:
        """Note that slots and blocks are reserved; groups of an earlier turn go first."""
        self.admitted = True
        self.turn = turn

    def new_trunk(self) -> Request:
        """A request for the shared tokens without an adapter; kept alive, its blocks cannot be evicted."""
        self.trunks_made += 1
        request_id = f"{self.leader_id}/trunk-{self.trunks_made}"
        self.trunk = trunk_request(self.members[0], request_id, self.shared)
        return self.trunk

    def waiting_members(self) -> list[Request]:
        """The members that have no run slot yet."""
        return [member for member in self.members if member.status != RequestStatus.RUNNING]

    def trunk_tokens(self, cached_tokens: Callable[[Request], int]) -> int:
        """Tokens that the trunk still has to compute; at least one while it waits, or it would not be run."""
        if self.trunk is None:
            return 0
        if self.trunk.status == RequestStatus.RUNNING:
            return max(self.shared - self.trunk.num_computed_tokens, 0)
        return max(self.shared - cached_tokens(self.trunk), 1)

    def own_tokens(self, member: Request) -> int:
        """Tokens that a member still has to compute to draw.

        While it waits all that are not shared count: what the cache holds of them may be evicted before its turn.
        """
        if member.status == RequestStatus.RUNNING:
            return tokens_to_compute(member)
        return member.num_tokens - self.shared

    @property
    def slots_to_come(self) -> int:
        """Run slots that the group will still take."""
        return sum(row.status != RequestStatus.RUNNING for row in self.rows()) + self._may_want_trunk

    @property
    def _may_want_trunk(self) -> bool:
        """Whether nothing holds the shared blocks yet: they are to be computed, or taken out of the evictable ones."""
        return bool(self.shared) and self.trunk is None and len(self.waiting_members()) == self.size

    def blocks_to_come(self, block_size: int, num_blocks: Callable[[Request], int]) -> int:
        """KV blocks that the group will still take until it has drawn a token, whatever the cache holds."""
        blocks = 0
        for row in self.rows():
            tokens = self.shared if self.is_trunk(row.request_id) else row.num_tokens
            inherited = 0 if self.is_trunk(row.request_id) else self.shared // block_size
            have = num_blocks(row) if row.status == RequestStatus.RUNNING else inherited
            blocks += max(-(-(tokens + 1) // block_size) - have, 0)
        if self._may_want_trunk:
            blocks += self.shared // block_size + 1
        return blocks

    def next_blocks(self, block_size: int) -> int:
        """KV blocks that the next step of a released group takes."""
        return self.size if self.members[0].num_computed_tokens % block_size == 0 else 0
