"""vLLM's engine in this very process, stepped by hand, with its scheduler and model runner in reach.

In: a base checkpoint and ensemble directories. Out: one engine step at a time. Here, and only here, the stress test
reads how the lockstep scheduler keeps its groups.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm import EngineArgs, SamplingParams, __version__
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.outputs import RequestOutput
from vllm.triton_utils import dispatcher
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor
from vllm.v1.request import Request

from softspec.engine.core.group import Group
from softspec.engine.core.scheduler import LockstepScheduler
from softspec.engine.front.ensemble import Ensemble, load_ensembles, lora_request_of, read_ensemble
from softspec.engine.front.output import carry_telemetry
from softspec.engine.front.translation import group_params
from softspec.engine.requirements import SCHEDULER, WORKER_EXTENSION, require_engine
from softspec.engine.wire import GroupSpec

# vLLM reads these while it makes its configuration. The executor in this process is chosen by the first.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
_rebind_kernels = dispatcher._rebind_kernels


def _rebind_outside_llvmlite(overrides: Any) -> None:
    """vLLM looks through all loaded modules, and stumbles over llvmlite, which an earlier engine has loaded."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("llvmlite")}
    try:
        _rebind_kernels(overrides)
    finally:
        sys.modules.update(hidden)


class InProcessEngine:
    """`LLMEngine` with ensembles. One step is one call; nothing runs in between.

    `spare` adapters beside those of the ensembles can be loaded later.
    """

    def __init__(
        self,
        base: Path,
        ensembles: Sequence[Path],
        max_loras: int = 1000,
        spare: int = 0,
        **engine_args: Any,
    ) -> None:
        loaded = load_ensembles(ensembles)
        self._last_id = sum(each.manifest.num_members for each in loaded)
        adapters = self._last_id + spare
        self.specs: dict[str | None, GroupSpec] = {}
        for each in loaded:
            self.specs.update(each.specs())
        rebind = patch.object(dispatcher, "_rebind_kernels", _rebind_outside_llvmlite)
        with patch.dict(os.environ, _ENVIRONMENT), rebind:
            config = EngineArgs(
                model=str(base),
                dtype="float32",
                enforce_eager=True,
                enable_lora=True,
                max_loras=min(max_loras, adapters),
                max_cpu_loras=adapters,
                max_lora_rank=16,
                max_logprobs=64,
                block_size=32,
                scheduler_cls=SCHEDULER,
                worker_extension_cls=WORKER_EXTENSION,
                **engine_args,
            ).create_engine_config()
            self.engine = LLMEngine(
                vllm_config=config, executor_class=Executor.get_class(config), log_stats=True
            )
        self.engine.collective_rpc("install_ensemble_sampler")
        assert self.engine.collective_rpc("share_lower_layers", args=(1,)) == [None]
        carry_telemetry(self.engine.output_processor)
        for each in loaded:
            self._add(each)
        # Raises unless the longest request fits into the KV cache with all its rows.
        require_engine(__version__, config, loaded)

    @property
    def scheduler(self) -> LockstepScheduler:
        return self.engine.engine_core.engine_core.scheduler

    def count_rows(self) -> Counter[str]:
        """From now on, the tokens that pass through the model's first and last decoder layers."""
        counted: Counter[str] = Counter()
        layers = self.runner.model.model.layers
        for name, layer in (("first layer", layers[0]), ("last layer", layers[-1])):
            layer.mlp.register_forward_hook(
                lambda _module, args, _output, name=name: counted.update({name: len(args[0])})
            )
        return counted

    @property
    def runner(self) -> Any:
        return self.engine.model_executor.driver_worker.worker.model_runner

    def submit(
        self,
        name: str,
        model: str | None,
        prompt: Sequence[int],
        params: SamplingParams,
        spec: GroupSpec | None = None,
    ) -> tuple[list[str], int]:
        """Queue a request as `EnsembleClient` would; returns the engine's ids of its n answers, and its seed.

        `spec` is by default the model's.
        """
        spec = spec or self.specs.get(model)
        lora_request = None
        if spec is not None:
            params = group_params(params, spec)
            lora_request = lora_request_of(spec.adapters[0])
        known = set(self.scheduler.requests)
        self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, params, lora_request=lora_request)
        added = [request for request in self.scheduler.requests if request not in known]
        leaders = [request_id for request_id in added if self.group_state(request_id) != "sibling"]
        return leaders, params.seed or 0

    def load(self, directory: Path) -> None:
        """Serve one more ensemble, with adapter ids that were never used."""
        ensemble = read_ensemble(directory, self._last_id + 1)
        self._last_id += len(ensemble.adapters)
        self._add(ensemble)
        self.specs.update(ensemble.specs())

    def _add(self, ensemble: Ensemble) -> None:
        """As the server does with every ensemble: an adapter that no request has needed yet is in the engine too."""
        for adapter in ensemble.adapters:
            assert self.engine.add_lora(lora_request_of(adapter))

    def unload(self, name: str) -> None:
        """Take an ensemble without requests out of the engine."""
        spec = self.specs.pop(name)
        for member, adapter in enumerate(spec.adapters):
            del self.specs[f"{name}/member-{member}"]
            assert self.engine.remove_lora(adapter.int_id)

    def adapters(self) -> set[int]:
        """Ids of the adapters whose weights the engine holds."""
        return self.engine.list_loras()

    def step(self) -> list[RequestOutput]:
        return self.engine.step()

    def abort(self, name: str) -> None:
        """What the front end does when a client leaves."""
        self.engine.abort_request([name])

    def abort_late(self, request_ids: Iterable[str]) -> None:
        """A client's farewell that arrives when its request has already ended inside the engine."""
        self.engine.engine_core.abort_requests(list(request_ids))

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        del self.engine
        destroy_model_parallel()
        destroy_distributed_environment()
        gc.collect()

    # What the lockstep scheduler keeps

    @property
    def groups(self) -> list[Group]:
        return list(self.scheduler.groups.values())

    def group_state(self, request_id: str) -> str:
        """Where a request is: "queued", "trunk", "held", "released"; or "sibling", "single", "gone"."""
        if request_id not in self.scheduler.requests:
            return "gone"
        group = self.scheduler.group_of.get(request_id)
        if group is None:
            return "single"
        if request_id != group.members[0].request_id:
            return "sibling"
        if group.released:
            return "released"
        if not group.admitted:
            return "queued"
        return "trunk" if group.trunk is not None else "held"

    def lockstep_rows(self) -> set[str]:
        """Ids of all requests that exist on behalf of groups."""
        return {
            row.request_id
            for group in self.groups
            for row in [*group.members, *([group.trunk] if group.trunk else [])]
        }

    def sampler_groups(self) -> set[str]:
        """Groups whose prefix posterior the sampler keeps; it forgets finished ones when others draw."""
        return set(self.runner.sampler.mixer.group_ids)

    def sizes(self) -> dict[str, int]:
        """How much each container of the scheduler and of the model runner holds; one that leaks grows."""
        owners = {"scheduler": self.scheduler, "runner": self.runner}
        return {
            f"{owner}.{name}": len(value)
            for owner, place in owners.items()
            for name, value in vars(place).items()
            if isinstance(value, dict | set | list)
        }

    def blocks(self) -> dict[str, list[int]]:
        """KV block ids by request."""
        (manager,) = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return {
            request_id: [block.block_id for block in blocks]
            for request_id, blocks in manager.req_to_blocks.items()
            if blocks
        }

    def references(self) -> dict[int, int]:
        """How many requests hold each KV block that is in use, as vLLM counts them."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return {block.block_id: block.ref_cnt for block in pool.blocks if block.ref_cnt and not block.is_null}

    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def start_position(request: Request, output: SchedulerOutput) -> int:
    """The position of the first token that `output` computes for a request, read right after `schedule()`."""
    return request.num_computed_tokens - output.num_scheduled_tokens[request.request_id]
