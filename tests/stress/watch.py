"""What must hold after every engine step, whatever the traffic, and a record of what the traffic made happen.

In: an engine; its `schedule` and `update_from_output` are watched from outside. Out: AssertionErrors, and counts.
"""

import logging
from collections import Counter
from unittest.mock import patch

from vllm import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from softspec.engine.core.group import Group
from tests.stress.engine import InProcessEngine, start_position

LONGEST_STANDSTILL = 100
"""Steps without any new token, while there are requests."""


class Watch:
    """Checks one engine for as long as it runs."""

    def __init__(self, engine: InProcessEngine) -> None:
        self.engine = engine
        self.seen: Counter[str] = Counter()
        self.lockstep_tokens = 0
        self._errors = _ErrorRecords()
        self._preemptions: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._standstill = 0
        self._free_blocks = engine.free_blocks()
        self._sizes = engine.sizes()
        scheduler = engine.scheduler
        schedule, update = scheduler.schedule, scheduler.update_from_output

        def watched_schedule(throttle_prefills: bool = False) -> SchedulerOutput:
            output = schedule(throttle_prefills)
            self._after_schedule(output)
            return output

        def watched_update(scheduled: SchedulerOutput, computed: ModelRunnerOutput) -> object:
            result = update(scheduled, computed)
            self._check_maps()
            return result

        patch.object(scheduler, "schedule", watched_schedule).start()
        patch.object(scheduler, "update_from_output", watched_update).start()

    def after_step(self) -> None:
        """Call after every `engine.step()`."""
        assert not self._errors.messages, self._errors.messages
        self._check_members()
        self._check_blocks()
        self._check_progress()

    def when_idle(self) -> None:
        """Call when no request is left: nothing may be left of any. Sends one last token through the engine."""
        member = next(name for name, spec in self.engine.specs.items() if spec.num_members == 1)
        last, _ = self.engine.submit("last", member, [5], SamplingParams(max_tokens=1))
        while self.engine.scheduler.has_requests():
            self.engine.step()
        assert self.engine.sampler_groups() <= set(last)
        scheduler = self.engine.scheduler
        assert not scheduler.requests
        assert not scheduler.groups
        assert not scheduler.group_of
        assert not self.engine.blocks()
        assert self.engine.free_blocks() == self._free_blocks
        grown = {name: size for name, size in self.engine.sizes().items() if size > self._sizes.get(name, 0)}
        assert not grown, f"kept beyond the last request: {grown}"
        self._preemptions.clear()
        self._lengths.clear()
        self.seen["idle"] += 1

    def close(self) -> None:
        self._errors.detach()

    def _after_schedule(self, output: SchedulerOutput) -> None:
        rows = output.num_scheduled_tokens.keys()
        for group in self.engine.groups:
            self._check_group(group, output)
            before = self._preemptions.get(group.leader_id, 0)
            self._preemptions[group.leader_id] = group.members[0].num_preemptions
            if group.members[0].num_preemptions > before:
                self.seen["group preempted"] += 1
        requests = self.engine.scheduler.requests
        for request_id in rows & requests.keys():
            request = requests[request_id]
            if request.num_computed_tokens < request.num_prompt_tokens - 1:
                self.seen["chunked prefill"] += 1
        for new in output.scheduled_new_reqs:
            self.seen[_hit_kind(new.num_computed_tokens, len(new.prompt_token_ids))] += 1

    def _check_group(self, group: Group, output: SchedulerOutput) -> None:
        scheduled = [member for member in group.members if member.request_id in output.num_scheduled_tokens]
        for member in scheduled:
            start = start_position(member, output)
            assert start >= group.shared, (
                f"{member.request_id} computes shared token {start} with its adapter"
            )
        if group.trunk is not None:
            assert group.trunk.lora_request is None
        if not group.released:
            for member in scheduled:
                assert member.num_computed_tokens < member.num_tokens, f"{member.request_id} draws alone"
            return
        assert len(scheduled) in (0, group.size), (
            f"{len(scheduled)} of {group.size} rows of {group.leader_id}"
        )
        positions = {member.num_computed_tokens for member in scheduled}
        assert len(positions) <= 1, f"{group.leader_id} is at {positions}"
        if scheduled and group.size > 1:
            self.lockstep_tokens += 1

    def _check_members(self) -> None:
        for group in self.engine.groups:
            leader, *others = group.members
            for member in others:
                assert list(member.output_token_ids) == list(leader.output_token_ids), group.leader_id
                assert member.status == leader.status or not group.released, group.leader_id

    def _check_maps(self) -> None:
        scheduler = self.engine.scheduler
        live = scheduler.requests.keys()
        assert scheduler.groups.keys() <= live
        assert scheduler.group_of.keys() == self.engine.lockstep_rows()
        assert scheduler.group_of.keys() <= live

    def _check_blocks(self) -> None:
        held = self.engine.blocks()
        assert held.keys() <= self.engine.scheduler.requests.keys(), "blocks of a request that is gone"
        references = Counter(block for blocks in held.values() for block in blocks)
        assert references == self.engine.references()
        assert len(references) + self.engine.free_blocks() == self._free_blocks

    def _check_progress(self) -> None:
        requests = self.engine.scheduler.requests
        lengths = {request_id: request.num_output_tokens for request_id, request in requests.items()}
        moved = lengths.keys() != self._lengths.keys() or lengths != self._lengths
        compiling = any(
            request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            for request in requests.values()
        )
        self._standstill = 0 if moved or compiling or not requests else self._standstill + 1
        self._lengths = lengths
        assert self._standstill < LONGEST_STANDSTILL, f"{len(requests)} requests stand still"


def _hit_kind(cached: int, prompt_tokens: int) -> str:
    if cached == 0:
        return "no prefix hit"
    if cached >= prompt_tokens - 1:
        return "prefix hit up to the last token"
    return "prefix hit of one block" if cached == 32 else "prefix hit of several blocks"


class _ErrorRecords(logging.Handler):
    """Every error that vLLM or the lockstep scheduler logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._loggers = [logging.getLogger(name) for name in ("vllm", "softspec")]
        for logger in self._loggers:
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def detach(self) -> None:
        for logger in self._loggers:
            logger.removeHandler(self)
