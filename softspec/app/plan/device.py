"""What a machine can do at most: memory, bytes and operations per second.

In: a name, or numbers. Out: a frozen `Device`. The numbers are the vendors'; nothing was measured here but `cpu`.
"""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """`memory` in bytes, None where the machine says; `bandwidth` in bytes and `flops` in operations a second."""

    name: str
    memory: int | None
    bandwidth: float
    flops: float
    source: str
    kind: Literal["gpu", "cpu"] = "gpu"

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def number_bytes(self) -> int:
        """Of a weight or a number in the KV cache: `softspec serve` runs float32 on a CPU, vLLM 16 bits on a GPU."""
        return 4 if self.is_cpu else 2

    @property
    def kv_block(self) -> int:
        """Tokens of a KV block where the ensemble does not say: vLLM's default."""
        return 128 if self.is_cpu else 16

    @property
    def batched_tokens(self) -> int:
        """vLLM's default of `--max-num-batched-tokens`."""
        is_large = not self.is_cpu and (self.memory or 0) >= 70 * GIB and not self.name.startswith("a100")
        return 8192 if is_large else 2048

    @property
    def shares_layers(self) -> bool:
        """Whether the engine computes the layers below the adapters once for all members: on CPUs alone."""
        return self.is_cpu

    @property
    def mixing_passes(self) -> int:
        """How often mixing reads or writes the float32 logits of a row: compiled loops on a CPU, torch on a GPU."""
        return 3 if self.is_cpu else 12


def _sheet(name: str, gigabytes: int, terabytes_s: float, teraflops: float, sheet: str) -> Device:
    return Device(name, gigabytes * 10**9, terabytes_s * 1e12, teraflops * 1e12, f"data sheet: {sheet}")


DEVICES = {
    device.name: device
    for device in (
        _sheet(
            "h200", 141, 4.8, 989.5, "NVIDIA H200 SXM; bfloat16 without sparsity, half of the 1,979 there"
        ),
        _sheet(
            "h100", 80, 3.35, 989.5, "NVIDIA H100 SXM; bfloat16 without sparsity, half of the 1,979 there"
        ),
        _sheet("a100-80gb", 80, 2.039, 312, "NVIDIA A100 80GB SXM"),
        _sheet("a100-40gb", 40, 1.555, 312, "NVIDIA A100 40GB"),
        _sheet("l40s", 48, 0.864, 362.05, "NVIDIA L40S; bfloat16 without sparsity"),
        _sheet("l4", 24, 0.3, 121, "NVIDIA L4; bfloat16 without sparsity, half of the 242 there"),
        _sheet(
            "rtx4090", 24, 1.008, 165.2, "NVIDIA GeForce RTX 4090; bfloat16 without sparsity, float32 sums"
        ),
        _sheet("mi300x", 192, 5.3, 1307.4, "AMD Instinct MI300X; bfloat16 without sparsity"),
        Device(
            "cpu",
            None,
            22e9,
            180e9,
            "measured: two cores of an AMD EPYC with AVX-512, float32, as in softspec/app/bench/README.md",
            "cpu",
        ),
    )
}
"""Memory as in the data sheet, a GB being 10^9 bytes: drivers report up to 7 % more."""
DeviceName = Literal["h200", "h100", "a100-80gb", "a100-40gb", "l40s", "l4", "rtx4090", "mi300x", "cpu"]
