"""The state of one group inside the scheduler, and what it still needs: slots, KV blocks, steps.

Pure bookkeeping over vLLM `Request`s; decides nothing about other requests.
"""

from dataclasses import dataclass

from vllm.v1.request import Request, RequestStatus

from softspec.engine.group import GroupSpec
from softspec.engine.group_requests import trunk_request


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
        return self.members[0].request_id

    @property
    def size(self) -> int:
        return len(self.members)

    def rows(self) -> list[Request]:
        """Every request of the group that is in the engine."""
        return self.members if self.trunk is None else [*self.members, self.trunk]

    def is_trunk(self, request_id: str) -> bool:
        return self.trunk is not None and self.trunk.request_id == request_id

    def ready_to_admit(self) -> bool:
        """Grammars are compiled and no output of an earlier life is in flight."""
        return all(
            member.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            and not member.num_stale_output_tokens
            for member in self.members
        )

    def admit(self, turn: int) -> None:
        self.admitted = True
        self.turn = turn

    def new_trunk(self) -> Request:
        """A request for the shared tokens without an adapter; kept alive, its blocks cannot be evicted."""
        self.trunks_made += 1
        request_id = f"{self.leader_id}/trunk-{self.trunks_made}"
        self.trunk = trunk_request(self.members[0], request_id, self.shared)
        return self.trunk

    def waiting_members(self) -> list[Request]:
        return [member for member in self.members if member.status != RequestStatus.RUNNING]

    def trunk_done(self) -> bool:
        """The shared blocks are computed or on their way in an earlier step, and pinned by the trunk or the members."""
        if self.trunk is None:
            return True
        return self.trunk.status == RequestStatus.RUNNING and self.trunk.num_computed_tokens >= self.shared

    def nothing_to_hold(self) -> bool:
        """Everything before the last known token is shared (or there is nothing before it)."""
        return self.members[0].num_tokens - 1 == self.shared

    def members_caught_up(self) -> bool:
        return all(member.num_computed_tokens >= member.num_tokens - 1 for member in self.members)

    @property
    def slots_needed(self) -> int:
        return self.size + (1 if self.shared else 0)

    def blocks_needed(self, block_size: int) -> int:
        """KV blocks that admitting the whole group will take, its first drawn token included."""
        own = -(-(self.members[0].num_tokens + 1 - self.shared) // block_size)
        return self.size * own + (self.shared // block_size + 1 if self.shared else 0)

    def blocks_to_come(self, row: Request, block_size: int, held_blocks: int) -> int:
        """KV blocks that one admitted row will still take before the group is released."""
        tokens = row.num_tokens + (0 if self.is_trunk(row.request_id) else 1)
        have = held_blocks if row.status == RequestStatus.RUNNING else 0
        if not have and not self.is_trunk(row.request_id):
            have = self.shared // block_size
        return max(-(-tokens // block_size) - have, 0)

    def next_blocks(self, block_size: int) -> int:
        """KV blocks that the next step of a released group takes."""
        return self.size if self.members[0].num_computed_tokens % block_size == 0 else 0
