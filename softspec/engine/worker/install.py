"""Puts the ensemble sampler, and shared lower layers, into vLLM's worker: calls at start-up, by `collective_rpc`.

In: the worker's model runner. Out: the same runner, which knows groups. Knows which samplers were tested.

vLLM 0.32 places: `worker_extension_cls`; the model runner's `sampler`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from softspec.errors import UnsupportedEngineError

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

    from softspec.engine.worker.lower.layers import LowerLayers

_ADAPTERS = {
    "vllm.v1.sample.sampler.Sampler": "softspec.engine.worker.runner_v1",
    "vllm.v1.worker.gpu.sample.sampler.Sampler": "softspec.engine.worker.runner_v2",
}
"""vLLM's samplers that were tested, one of each model runner, and the modules that put groups into them."""


class EnsembleWorker:
    """What vLLM mixes into its worker class: calls that reach every worker."""

    model_runner: "RunnerV1 | RunnerV2"
    _lower_layers: "LowerLayers | None" = None

    def install_ensemble_sampler(self) -> str:
        """Put groups into the model runner's sampler; calling again changes nothing.

        Returns:
            The module that did it.
        Raises:
            UnsupportedEngineError: the runner draws its tokens in a way that was not tested.
        """
        runner = self.model_runner
        sampler = type(runner.sampler)
        found = f"{sampler.__module__}.{sampler.__qualname__}"
        if found in _ADAPTERS:
            runner.sampler = import_module(_ADAPTERS[found]).EnsembleSampler(runner)
        elif sampler.__module__ not in _ADAPTERS.values():
            raise UnsupportedEngineError(
                f"model runner {type(runner).__module__}.{type(runner).__qualname__} draws with {found}, which was not "
                f"tested with ensembles: expected one of {', '.join(_ADAPTERS)}"
            )
        if getattr(runner, "kv_block_zeroer", runner) is None or runner.device.type != "cpu":
            # vLLM makes it only for models that need it in every step; we do when numbers were not finite.
            runner._init_kv_zero_meta()
        if runner.device.type == "cpu":
            # Not for GPUs, where numba need not be installed.
            import_module("softspec.engine.worker.cpu_lora").use_cpu_lora(
                runner.lora_manager._adapter_manager
            )
        return type(runner.sampler).__module__

    def share_lower_layers(self, least: int | None) -> str | None:
        """Compute the layers below all adapters once for a group, from the next step on, or for every row again.

        Args:
            least: so many tokens of a step at least go through them; None is for every row.
        Returns:
            Why this model's layers cannot be shared, which then are not; None if they can.
        """
        layers = import_module("softspec.engine.worker.lower.layers")
        runner = self.model_runner
        if self._lower_layers is None:
            if (reason := layers.why_not(runner)) is not None:
                return reason
            self._lower_layers = layers.LowerLayers(runner, runner.sampler.seats_of_rows)
        self._lower_layers.share(least)
        return None

    def lower_layer_tokens(self) -> list[int]:
        """How many tokens were computed since the lower layers were shared first, and how many in the lowest layer."""
        return [0, 0] if self._lower_layers is None else self._lower_layers.tokens

    def measure_uncertainty(self, on: bool) -> None:
        """Choose whether tokens come with their entropies and disagreement (the default) or with NaN instead."""
        self.model_runner.sampler.mixer.measures_uncertainty = on

    def num_threads(self) -> int:
        """How many threads this worker computes with on a CPU."""
        return torch.get_num_threads()
