"""Puts the ensemble sampler into vLLM's worker. One call at start-up, by `collective_rpc`.

vLLM 0.32 place: `worker_extension_cls`; model runner V1 (`input_batch`, `requests`, `discard_request_mask`).
"""

from typing import Any

from softspec.engine.ensemble_sampler import EnsembleSampler, GroupRows
from softspec.engine.group import KEY, Seat
from softspec.errors import UnsupportedEngineError


class EnsembleWorker:
    """Mixed into vLLM's worker class."""

    model_runner: Any

    def install_ensemble_sampler(self) -> str:
        """Wrap the model runner's sampler; calling again changes nothing. Returns the runner's class name."""
        runner = self.model_runner
        if not hasattr(runner, "discard_request_mask"):
            raise UnsupportedEngineError(
                f"model runner {type(runner).__module__}.{type(runner).__name__} is not supported: "
                "set VLLM_USE_V2_MODEL_RUNNER=0"
            )
        if not isinstance(runner.sampler, EnsembleSampler):
            runner.sampler = EnsembleSampler(runner.sampler, GroupFinder(runner))
        return type(runner).__name__


class GroupFinder:
    """Which rows of model runner V1's current step form complete groups that really draw a token."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._known: set[str] = set()

    def __call__(self) -> list[GroupRows]:
        runner = self._runner
        seats: dict[str, dict[int, int]] = {}
        leaders: dict[str, Seat] = {}
        for row, request_id in enumerate(runner.input_batch.req_ids):
            params = runner.requests[request_id].sampling_params
            seat = (params.extra_args or {}).get(KEY) if params else None
            if seat is None or runner.discard_request_mask.np[row]:
                continue
            seats.setdefault(seat.group_id, {})[seat.member] = row
            if seat.member == 0:
                leaders[seat.group_id] = seat
        self._forget_finished(leaders)
        return [
            GroupRows(
                seat=seat,
                rows=tuple(seats[group_id][k] for k in range(seat.spec.num_members)),
                position=len(runner.requests[group_id].output_token_ids),
            )
            for group_id, seat in leaders.items()
            if len(seats[group_id]) == seat.spec.num_members
        ]

    def _forget_finished(self, leaders: dict[str, Seat]) -> None:
        if leaders.keys() <= self._known:
            return
        for group_id in self._known - self._runner.requests.keys():
            self._runner.sampler.forget(group_id)
        self._known = (self._known & self._runner.requests.keys()) | leaders.keys()
