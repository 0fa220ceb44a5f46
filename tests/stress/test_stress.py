"""Mixed traffic on a small engine, step by step: nothing breaks, and every answer is what it must be.

`pytest tests/stress -m soak -s` runs until SOAK_TOKENS tokens (default 1,000,000) were drawn for whole groups;
STRESS_SEED chooses another run.
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from softspec.artefact.manifest import load_manifest, save_manifest
from tests.stress.traffic import ABORT_STATES, Traffic
from tests.support.tiny import random_adapters

if TYPE_CHECKING:
    from tests.stress.engine import InProcessEngine
    from tests.stress.oracle import Oracle

pytestmark = [
    pytest.mark.vllm,
    # Raised inside the dependencies.
    pytest.mark.filterwarnings("ignore::FutureWarning:vllm.*", "ignore::DeprecationWarning:xgrammar.*"),
]

MAX_MODEL_LEN = 224
ENSEMBLES: dict[str, tuple[Activation, str, tuple[float, ...]]] = {
    "always-4": (AlwaysActivation(), "prefix_posterior", (0.25, 0.25, 0.25, 0.25)),
    "block-4": (BlockActivation(block_size=32), "prefix_posterior", (0.25, 0.25, 0.25, 0.25)),
    "block-3": (BlockActivation(block_size=64), "prefix_posterior", (0.5, 0.3, 0.2)),
    "block-2": (BlockActivation(block_size=32), "prefix_posterior", (0.5, 0.5)),
    "fixed-2": (AlwaysActivation(), "fixed", (0.3, 0.7)),
    "swap-a": (BlockActivation(block_size=32), "prefix_posterior", (0.5, 0.5)),
    "swap-b": (AlwaysActivation(), "prefix_posterior", (0.2, 0.8)),
}
ADAPTED = {"block-4": (2,), "block-3": (1, 2), "block-2": (1,), "fixed-2": (2,), "swap-b": (1, 2)}
"""The layers of three in which ensembles have adapters, where not in all."""
SWAPS = ("swap-a", "swap-b")  # the second is not there at first
SIZES = {name: len(weights) for name, (_, _, weights) in ENSEMBLES.items()}
SEED = 11
MUST_HAPPEN = (
    *(f"aborted while {state}" for state in ABORT_STATES),
    *(f"{kind} ended by {end}" for kind in ("ensemble", "member", "base") for end in ("length", "eos")),
    "ensemble ended by stop string",
    "ensemble ended by stop token",
    "ensemble ended by its constraints",
    "regex ended by eos",
    "schema ended by eos",
    "one of n answers",
    "ensemble scored",
    "member scored",
    "group preempted",
    "chunked prefill",
    "no prefix hit",
    "prefix hit of one block",
    "prefix hit of several blocks",
    "prefix hit up to the last token",
    "idle",
    "ensemble swapped in use",
)


@pytest.fixture(scope="module")
def ensembles(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Different K, activations, weights and rules of weighing, all on one base."""
    folder = tmp_path_factory.mktemp("stress")
    paths = {}
    for seed, (name, (activation, rule, weights)) in enumerate(ENSEMBLES.items()):
        paths[name] = random_adapters(
            tiny_base,
            folder / name,
            len(weights),
            seed=seed,
            activation=activation,
            name=name,
            layers=ADAPTED.get(name),
        )
        settings = {"weights_rule": rule, "log_weights": tuple(math.log(weight) for weight in weights)}
        save_manifest(paths[name], load_manifest(paths[name]).model_copy(update=settings))
    return paths


@pytest.fixture(scope="module")
def oracle(tiny_base: Path, ensembles: dict[str, Path]) -> "Oracle":
    from tests.stress.oracle import Oracle

    return Oracle(tiny_base, ensembles, MAX_MODEL_LEN)


def start(base: Path, ensembles: dict[str, Path], **engine_args: int) -> "InProcessEngine":
    from tests.stress.engine import InProcessEngine

    at_first = [path for name, path in ensembles.items() if name != SWAPS[1]]
    return InProcessEngine(base, at_first, spare=SIZES[SWAPS[1]], max_model_len=MAX_MODEL_LEN, **engine_args)


def swaps_of(ensembles: dict[str, Path]) -> dict[str, Path]:
    return {name: ensembles[name] for name in SWAPS}


def test_thousands_of_steps_of_mixed_traffic(
    tiny_base: Path, ensembles: dict[str, Path], oracle: "Oracle"
) -> None:
    """The smallest engine that can finish any of these requests alone: all others press on it."""
    from tests.stress.stress import StressTest

    engine = start(
        tiny_base,
        ensembles,
        num_gpu_blocks_override=30,
        max_num_batched_tokens=40,
        max_num_seqs=20,
        max_loras=8,  # of 17 adapters: groups wait for each other's to leave
    )
    traffic = Traffic(int(os.environ.get("STRESS_SEED", SEED)), SIZES, most_live=40)

    rows = engine.count_rows()
    report = StressTest(engine, traffic, oracle, swaps_of(ensembles)).run(steps=2000)
    engine.close()

    print(report, rows)
    assert rows["first layer"] < 0.75 * rows["last layer"]
    if traffic.seed == SEED:  # some are rare, and other traffic may do without
        assert [what for what in MUST_HAPPEN if not report.seen[what]] == []
    assert report.checked >= 200


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_tokens(tiny_base: Path, ensembles: dict[str, Path], oracle: "Oracle") -> None:
    """More rows at once, one answer in fifty compared with the oracle; all invariants after every step."""
    from tests.stress.stress import StressTest

    engine = start(
        tiny_base, ensembles, num_gpu_blocks_override=256, max_num_batched_tokens=512, max_num_seqs=128
    )
    traffic = Traffic(int(os.environ.get("STRESS_SEED", "0")), SIZES, rich=0.2, most_live=160)

    report = StressTest(engine, traffic, oracle, swaps_of(ensembles), check_every=50).run(
        tokens=int(os.environ.get("SOAK_TOKENS", "1000000"))
    )
    engine.close()

    print(report)
    assert report.seen["group preempted"]
