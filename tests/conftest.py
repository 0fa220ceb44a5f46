"""Fixtures that are too dear to make twice: the tiny checkpoint and the engines."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Libraries read these when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from tests.support.tiny import random_adapters, tiny_llama

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness

# What runs of tests keep goes with them, though they use the models that are there.
_cache = Path(os.environ.get("SOFTSPEC_CACHE") or Path.home() / ".cache" / "softspec")
_own_cache = Path(tempfile.mkdtemp(prefix="softspec-tests-"))
(_cache / "models").mkdir(parents=True, exist_ok=True)
(_own_cache / "models").symlink_to(_cache / "models")
os.environ["SOFTSPEC_CACHE"] = str(_own_cache)
atexit.register(shutil.rmtree, _own_cache, ignore_errors=True)

MEMBER_COUNTS = (1, 2, 4)
ADAPTED = {"always-2": (2,), "always-4": (1, 2), "block-4": (2,)}
"""The layers of three in which ensembles have adapters, where not in all."""

ALONE = {
    "tests/app/score/test_score.py",
    "tests/deploy/test_docker_steps.py",
    "tests/deploy/test_watched_server.py",
    "tests/server/test_vllm_command.py",
    "tests/test_other_architectures.py",
}
"""Files whose engines are nobody else's and are not timed: they run beside other engines, so that both processes of a
run end at about the same time."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`-n 2`), tests with engines stay in one process, and others with those of their file."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        with_others = item.get_closest_marker("vllm") and file not in ALONE
        item.add_marker(pytest.mark.xdist_group("engine" if with_others else file))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests of a file rely on their order, and many engines do not fit beside each other."""
    grouped = getattr(session.config.option, "loadgroup", False)
    if grouped and session.items and "@" not in session.items[0].nodeid:
        raise pytest.UsageError(
            "pytest-xdist has taken no groups: install the versions of requirements/cpu.txt"
        )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "base", layers=3)


@pytest.fixture(scope="session")
def tiny_ensembles(tiny_base: Path) -> dict[str, Path]:
    """Random adapters: `always-K` and `block-K` for every K of `MEMBER_COUNTS`."""
    activations: dict[str, Activation] = {
        "always": AlwaysActivation(),
        "block": BlockActivation(block_size=32),
    }
    return {
        (name := f"{kind}-{count}"): random_adapters(
            tiny_base,
            tiny_base.parent / name,
            count,
            seed=count,
            activation=activation,
            name=name,
            layers=ADAPTED.get(name),
        )
        for kind, activation in activations.items()
        for count in MEMBER_COUNTS
    }


@pytest.fixture(scope="session")
def tiny_engine(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> Iterator["EngineHarness"]:
    """40 KV blocks of 32 tokens for sequences of up to 256 tokens: four members of one request nearly fill it."""
    from tests.support.engine_harness import EngineHarness

    harness = EngineHarness(
        tiny_base,
        list(tiny_ensembles.values()),
        max_model_len=256,
        num_gpu_blocks_override=40,
        max_num_batched_tokens=48,
        max_num_seqs=16,
    )
    yield harness
    harness.close()
