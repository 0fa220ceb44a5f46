"""Schedules the K rows of an ensemble request in the same step or not at all.

In: one vLLM request whose `extra_args` hold a `GroupSpec`. Out: K requests in the engine, one visible to the caller.
The life of a group:

    queued     until K run slots and the KV blocks of all K prompts are free at once
    held       while its prompt takes more than one step: the trunk (shared tokens, no adapter), then the members, each
               up to its last token
    released   from the step in which all K members reach their last token: all are scheduled or none is, until they
               finish together

Before vLLM's `schedule` spends a step's tokens, `_plan` has promised them to rows; the hooks keep it to that.

vLLM 0.32 places: `add_request`, `schedule`, `update_from_output`, `finish_requests`, `_free_request`,
`_preempt_request`, `_get_new_block_ids_to_zero` and the three hooks `schedule` consults
(`_handle_blocked_waiting_request`, `_get_local_prefix_cache_hit`, `_reserve_prefill_lookahead`).
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from softspec.engine.core.group import Group
from softspec.engine.core.plan import StepPlan, tokens_to_compute
from softspec.engine.core.requests import member_requests
from softspec.engine.wire import COLUMNS, KEY, LOCKSTEP_FAILED, MIXING_FAILED, NO_TOKEN_LEFT, GroupSpec
from softspec.errors import LockstepError, UnsupportedEngineError

logger = init_logger(__name__)


class LockstepScheduler(AsyncScheduler):
    """vLLM's scheduler, with groups. Requests without a `GroupSpec` are scheduled as ever."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Make a scheduler without groups, from vLLM's own arguments.

        Raises:
            UnsupportedEngineError: the model has several kinds of attention cache.
        """
        super().__init__(*args, **kwargs)
        if len(self.kv_cache_config.kv_cache_groups) != 1:
            raise UnsupportedEngineError(
                f"the model has {len(self.kv_cache_config.kv_cache_groups)} kinds of attention cache: ensembles were "
                "tested with one kind only; windows beside full attention become one kind with "
                "--disable-hybrid-kv-cache-manager"
            )
        self.groups: dict[str, Group] = {}
        self.group_of: dict[str, Group] = {}
        self._hidden: set[str] = set()
        self._forgotten: list[str] = []
        self._failed: list[tuple[Request, str]] = []
        self._spoiled: list[int] = []
        self._plan = StepPlan(tokens=0, blocks=0)
        self._preempted_now: set[str] = set()
        self._starved_since: float | None = None

    # Arrival and departure

    def add_request(self, request: Request) -> None:
        """Queue a request; one with a `GroupSpec` becomes a group of K."""
        wire = (request.sampling_params.extra_args or {}).get(KEY) if request.sampling_params else None
        if wire is None:
            super().add_request(request)
            return
        spec = GroupSpec.from_wire(wire)
        shared = spec.shared_tokens(request.num_prompt_tokens)
        members = member_requests(request, spec, shared // self.hash_block_size)
        group = Group(spec, members, shared, request.arrival_time)
        self.groups[group.leader_id] = group
        for member in group.members:
            self._seat(member, group)
            if member is not request and member.use_structured_output:
                self.structured_output_manager.grammar_init(member)

    def _seat(self, request: Request, group: Group) -> None:
        self.group_of[request.request_id] = group
        if request.request_id != group.leader_id:
            self._hidden.add(request.request_id)
        super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Finish requests; finishing any member finishes its whole group. A trunk may finish alone."""
        if request_ids is None:
            return super().finish_requests(None, finished_status)
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        for request_id in list(ids):
            group = self.group_of.get(request_id)
            if group is not None and not group.is_trunk(request_id):
                ids += [row.request_id for row in group.rows()]
        return super().finish_requests(dict.fromkeys(ids), finished_status)

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, object] | None, dict[str, object] | None]:
        group = self.group_of.pop(request.request_id, None)
        if group is not None:
            self._forgotten.append(request.request_id)
            if request.request_id == group.leader_id:
                del self.groups[group.leader_id]
        return super()._free_request(request, delay_free_blocks)

    def _preempt_request(self, request: Request, *args: object, **kwargs: object) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._preempted_now.add(request.request_id)
        group = self.group_of.get(request.request_id)
        if group is not None:
            group.released = False

    # One engine step

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One engine step: promise its tokens and blocks to rows, let vLLM spend them, and check every group."""
        self._preempted_now.clear()
        self._make_room()
        self._admit()
        self._plan_step()
        self._line_up()
        self.running.sort(key=self._running_order)
        output = super().schedule(throttle_prefills)
        for group in list(self.groups.values()):
            if group.released:
                self._check_rows(group, output)
        return output

    def _running_order(self, request: Request) -> tuple[int, int]:
        """The sort key that puts released groups first and contiguous, so that neither tokens nor blocks split them."""
        group = self.group_of.get(request.request_id)
        if group is None:
            return 1, 0
        return (0 if group.released else 2), group.turn

    def _plan_step(self) -> None:
        """Promise this step's tokens: first to rows that draw, then by arrival to prompts, the rest to newcomers."""
        tokens = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        self._plan = StepPlan(tokens, self._num_free_blocks())
        prompts: list[Request | Group] = [*self._on_the_way()]
        for row in self.running:
            group = self.group_of.get(row.request_id)
            if group is None and tokens_to_compute(row) > 1:
                prompts.append(row)
            elif group is None or group.released:
                self._promise(row, tokens_to_compute(row))
        for prompt in sorted(prompts, key=lambda prompt: prompt.arrival_time):
            if isinstance(prompt, Request):
                self._promise(prompt, tokens_to_compute(prompt))
            else:
                self._plan_group(prompt)

    def _promise(self, row: Request, tokens: int) -> int:
        """Promise a row up to `tokens` more tokens, and the KV blocks for them; returns how many."""
        blocks = -(-(row.num_computed_tokens + tokens) // self.block_size) - self._num_blocks(row)
        return self._plan.promise(row.request_id, tokens, max(blocks, 0))

    def _plan_group(self, group: Group) -> None:
        """Release the group if it can reach its last token in this step; else go on with its trunk, then its rows."""
        waiting = group.waiting_members()
        if not waiting:
            self._drop_trunk(group)
        elif group.shared and group.trunk is None and self._cached_tokens(waiting[0]) < group.shared:
            self._seat(group.new_trunk(), group)
        trunk_tokens = group.trunk_tokens(self._cached_tokens)
        if len(waiting) in (0, group.size) and self._plan.covers(
            trunk_tokens + sum(map(group.own_tokens, group.members)),
            group.blocks_to_come(self.block_size, self._num_blocks),
        ):
            group.released = True
        if group.trunk is not None and self._promise(group.trunk, trunk_tokens) < trunk_tokens:
            return
        # Side by side, so that what members share below their adapters is computed once.
        side_by_side = group.spec.first_layer and not group.released
        most = max(self._plan.tokens // group.size, 1) if side_by_side else self._plan.tokens
        for member in group.members:
            spare = 0 if group.released else 1
            self._promise(member, min(group.own_tokens(member) - spare, most))

    def _cached_tokens(self, request: Request) -> int:
        """Leading tokens of a waiting request whose KV blocks exist."""
        _, tokens, _ = self.kv_cache_manager.get_computed_blocks(request)
        return tokens

    def _drop_trunk(self, group: Group) -> None:
        if group.trunk is None:
            return
        leader, stats = group.members[0], group.trunk.prefill_stats
        if leader.prefill_stats is not None and stats is not None:
            # Members find in the cache what the trunk has just computed for this very request.
            cached_tokens = min(stats.num_local_cached_tokens, group.shared)
            leader.prefill_stats.set(leader.num_prompt_tokens, cached_tokens, 0)
        self.finish_requests(group.trunk.request_id, RequestStatus.FINISHED_ABORTED)
        group.trunk = None

    def _line_up(self) -> None:
        """Put waiting rows of admitted groups first: their slots and blocks are reserved, so nothing may block them."""
        groups = [group for group in self.groups.values() if group.admitted]
        groups.sort(key=lambda group: (not group.released, group.turn))
        rows = [row for group in groups for row in group.rows() if row.status != RequestStatus.RUNNING]
        if rows:
            self.waiting.remove_requests(rows)
            for row in reversed(rows):
                self.waiting.prepend_request(row)

    def _check_rows(self, group: Group, output: SchedulerOutput) -> None:
        """End a released group unless 0 or all K of its rows are in the step, each at its last known token."""
        rows = sum(member.request_id in output.num_scheduled_tokens for member in group.members)
        behind = any(member.is_prefill_chunk for member in group.members)
        if rows == 0:
            # A preemption elsewhere, or a pause, kept rows out that were to draw their first token.
            group.released = not (behind or group.waiting_members())
        elif rows < group.size or behind:
            found = f"{rows} of {group.size} rows were scheduled, or not to their last token"
            self._fail(group, LOCKSTEP_FAILED, found)
        else:
            self._drop_trunk(group)

    def _fail(self, group: Group, stop_reason: str, found: str) -> None:
        """End a group with an error: a wrong answer must not leave the house."""
        error = LockstepError(f"request {group.leader_id}: {found}; the request is ended")
        if stop_reason == NO_TOKEN_LEFT:
            logger.info("%s", error)
        else:
            logger.error("%s", error)
        if stop_reason == MIXING_FAILED:
            self._spoil(group)
        leader = group.members[0]
        self.finish_requests(leader.request_id, RequestStatus.FINISHED_ERROR)
        self._failed.append((leader, stop_reason))

    def _spoil(self, group: Group) -> None:
        """Have the members' own KV blocks zeroed, and let nobody find them in the cache.

        NaN in a block would reach whoever gets it next: attention multiplies what it masks by zero, and that is NaN.
        """
        shared = group.shared // self.block_size
        held = Counter(
            block
            for member in group.members
            for block in self.kv_cache_manager.get_block_ids(member.request_id)[0][shared:]
        )
        self.kv_cache_manager.evict_blocks(set(held))
        blocks = self.kv_cache_manager.block_pool.blocks
        self._spoiled += [block for block, times in held.items() if blocks[block].ref_cnt == times]

    def _get_new_block_ids_to_zero(self) -> list[int] | None:
        spoiled, self._spoiled = self._spoiled, []
        return [*(super()._get_new_block_ids_to_zero() or ()), *spoiled] or None

    # Admission and preemption

    def _admit(self) -> None:
        self._starved_since = None
        for group in self.groups.values():
            if group.admitted or not group.ready_to_admit():
                continue
            if not self._fits(group):
                self._starved_since = group.arrival_time
                return
            group.admit(turn=self.current_step)

    def _fits(self, group: Group) -> bool:
        reserved = sum(
            other.blocks_to_come(self.block_size, self._num_blocks) for other in self._on_the_way()
        )
        # Room for the released rows to grow, or the group would be preempted as soon as it runs.
        reserved += sum(other.size for other in self.groups.values() if other.released)
        free = self._num_free_blocks() - reserved
        adapters = self._active_adapters() | {adapter.int_id for adapter in group.spec.adapters}
        return (
            group.slots_to_come <= self._free_slots()
            and group.blocks_to_come(self.block_size, self._num_blocks) <= free
            and len(adapters) <= self.lora_config.max_loras
        )

    def _on_the_way(self) -> list[Group]:
        """Groups that hold promised slots and blocks but do not draw tokens yet."""
        return [group for group in self.groups.values() if group.admitted and not group.released]

    def _free_slots(self) -> int:
        promised = sum(group.slots_to_come for group in self._on_the_way())
        return self.max_num_active_reqs - len(self.running) - promised

    def _num_free_blocks(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _num_blocks(self, request: Request) -> int:
        return len(self.kv_cache_manager.get_block_ids(request.request_id)[0])

    def _active_adapters(self) -> set[int]:
        groups = [group for group in self.groups.values() if group.admitted]
        rows = [row for group in groups for row in group.members] + self.running
        return {row.lora_request.lora_int_id for row in rows if row.lora_request}

    def _make_room(self) -> None:
        """Preempt from the back, groups whole, until every released group's next token has its KV block."""
        now = time.monotonic()
        while True:
            released = [group for group in self.groups.values() if group.released]
            need = sum(group.next_blocks(self.block_size) for group in released)
            if need <= self._num_free_blocks():
                return
            self.running.sort(key=self._running_order)
            victim = self.running[-1]
            group = self.group_of.get(victim.request_id)
            rows = (
                [victim] if group is None else [r for r in group.rows() if r.status == RequestStatus.RUNNING]
            )
            for row in rows:
                self.running.remove(row)
                self._preempt_request(row, now)
            if group is not None:
                group.admitted = False
                self._drop_trunk(group)

    # Hooks that vLLM's schedule() consults

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        ready = super()._handle_blocked_waiting_request(request)
        if not ready or request.request_id in self._preempted_now:
            return False
        if request.request_id in self.group_of:
            return self._plan.grants.get(request.request_id, 0) > 0
        return self._plan.tokens > 0 and self._may_start_alone(request)

    def _may_start_alone(self, request: Request) -> bool:
        """Whether a single request may run: not in a promised slot, nor before an older group, which would starve."""
        if self._free_slots() < 1:
            return False
        if self._starved_since is not None and request.arrival_time > self._starved_since:
            return False
        if request.lora_request is None:
            return True
        adapters = self._active_adapters() | {request.lora_request.lora_int_id}
        return len(adapters) <= self.lora_config.max_loras

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        blocks, tokens, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        group = self.group_of.get(request.request_id)
        if group is not None and not group.released and tokens >= request.num_tokens - 1:
            # A held member must have something left to compute before its last token.
            tokens -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, tokens)
        return blocks, tokens, boundary, diverged

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        offered = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        new = self._plan.granted(request.request_id, offered)
        group = self.group_of.get(request.request_id)
        if group is None:
            return new
        is_trunk = group.is_trunk(request.request_id)
        if num_computed_tokens < group.shared and not is_trunk:
            # The shared blocks were evicted after all: these tokens are never computed with an adapter on.
            return 0
        if group.released and not is_trunk:
            return new
        return min(new, request.num_tokens - 1 - num_computed_tokens)

    # Results

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """What the step gives each client: leaders' outputs alone, and errors for groups that came apart."""
        self._check_tokens(scheduler_output, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        orphans = [row for row, group in self.group_of.items() if group.leader_id not in self.groups]
        if orphans:
            self.finish_requests(orphans, RequestStatus.FINISHED_STOPPED)
        for core in outputs.values():
            core.outputs = [output for output in core.outputs if output.request_id not in self._hidden]
        for request, stop_reason in self._failed:
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=FinishReason.ERROR,
                    stop_reason=stop_reason,
                )
            )
        self._hidden.difference_update(self._forgotten)
        self._forgotten.clear()
        self._failed.clear()
        return outputs

    def _check_tokens(self, scheduled: SchedulerOutput, result: ModelRunnerOutput) -> None:
        """End every group whose members were not all given the same token, or whose token has no finite probability."""
        for group in list(self.groups.values()):
            rows = [m.request_id for m in group.members if m.request_id in scheduled.num_scheduled_tokens]
            if len(rows) != group.size or not result.sampled_token_ids:
                continue
            tokens = [result.sampled_token_ids[result.req_id_to_index[row]] for row in rows]
            if any(token != tokens[0] for token in tokens):
                self._fail(group, LOCKSTEP_FAILED, f"members drew different tokens {tokens}")
            elif tokens[0] and result.logprobs is not None:
                leader = result.logprobs.slice_request(result.req_id_to_index[group.leader_id], 1)
                self._check_numbers(group, leader.logprobs[0])

    def _check_numbers(self, group: Group, logprobs: Sequence[float]) -> None:
        """End the group if the worker's log-probability row says that it could not be mixed."""
        if math.isfinite(logprobs[0]):
            return
        members = zip(group.spec.adapters, logprobs[1 + group.spec.num_top + len(COLUMNS) :], strict=False)
        broken = ", ".join(adapter.name for adapter, found in members if math.isnan(found))
        if logprobs[0] == -math.inf:
            # A forced token may well be one that no member would ever give.
            if not group.spec.forced or broken:
                self._fail(group, NO_TOKEN_LEFT, "its constraints leave no token that it may draw")
            return
        found = f"no finite numbers from {broken}" if broken else "the worker's log says why"
        self._fail(group, MIXING_FAILED, f"its members could not be mixed, {found}")
