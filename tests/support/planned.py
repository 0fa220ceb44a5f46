"""What plans are made of in tests: two bases whose numbers are known, and cases with little to say.

In: what differs. Out: a `Case`.
"""

from typing import Any

from softspec.app.plan.base import Base
from softspec.app.plan.case import Case, Ensemble, Load, chosen_layers
from softspec.app.plan.device import DEVICES

LLAMA_8B = Base(
    name="llama-8b",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_size=128,
    intermediate=14336,
    vocabulary=128256,
    tied=False,
    longest=131072,
)
SMOLLM2 = Base(
    name="smollm2-135m",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_size=64,
    intermediate=1536,
    vocabulary=49152,
    tied=True,
    longest=8192,
)


def case_of(
    base: Base = LLAMA_8B,
    device: str = "h200",
    members: int = 4,
    rank: int = 16,
    layers: str = "all",
    block_size: int | None = 32,
    prompt: int = 1000,
    output: int = 500,
    users: int = 1,
    **ensemble: Any,
) -> Case:
    """By default the example of `deploy/README.md`."""
    chosen = chosen_layers(layers, base.layers)
    return Case(
        base,
        Ensemble(members, rank, chosen, block_size=block_size, **ensemble),
        Load(prompt + output, output, users),
        DEVICES[device],
    )
