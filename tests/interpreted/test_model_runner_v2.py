"""Model runner V2, vLLM's choice on GPUs, on a CPU: Triton's interpreter runs its kernels.

In processes of their own, as the interpreter must be chosen before vLLM is imported, and vLLM be told of it.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]


def test_sampler_adapter_agrees_with_the_reference_inside_vllms_classes() -> None:
    run_interpreted("tests/interpreted/runner_v2.py")


def test_engine_agrees_with_the_reference() -> None:
    """The tests that V1 passes, without those whose many steps take minutes under the interpreter."""
    run_interpreted(
        "tests/engine/test_parity.py",
        "tests/engine/test_scoring.py",
        "-k",
        "not block_borders and not preempted and not leave and not fixed and not numbers_of_the_reference",
    )


@pytest.mark.soak
def test_engine_agrees_with_the_reference_however_long_that_takes() -> None:
    run_interpreted("tests/engine/test_parity.py", "tests/engine/test_scoring.py")


def run_interpreted(*arguments: str) -> None:
    path = [str(ROOT), str(ROOT / "tests" / "interpreted"), triton_directory()]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
    }

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def triton_directory() -> str:
    """Where `make test` puts Triton, unless the environment has one."""
    found = find_spec("triton")
    directory = Path(found.origin).parents[1] if found and found.origin else Path(sys.prefix) / "triton"
    assert (directory / "triton").is_dir(), f"no Triton in {directory}: run these tests with 'make test'"
    return str(directory)
