"""The vLLM backend: the engine that serves, from a plain script, and the same numbers as the transformers backend."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import softspec
from softspec.ensemble.served.loop import LoopThread
from tests.support.asked_ensemble import everything

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import softspec
from tests.support.asked_ensemble import everything

ensemble = softspec.load(sys.argv[1], vllm_args=["--enforce-eager", "--max-model-len", "256"])
with open(sys.argv[2], "w") as file:
    json.dump(everything(ensemble), file)
"""
"""Neither guarded against being run again by the process that it starts, nor closing what it opens."""
LONG = """
import sys
import softspec

with softspec.load(sys.argv[1], vllm_args=["--enforce-eager", "--max-model-len", "512"]) as ensemble:
    print("begun", flush=True)
    ensemble.generate(["x"] * 2000, max_tokens=500)
"""


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


async def later(number: int, ended: list[int]) -> int:
    try:
        await asyncio.sleep(0.001 * (5 - number % 5))
        if number == 30:
            raise ValueError("thirty")
        return number
    finally:
        ended.append(number)


def test_results_come_in_the_order_of_what_was_asked(loop: LoopThread) -> None:
    assert list(loop.in_order((later(number, []) for number in range(20)), 7)) == list(range(20))


def test_an_error_ends_what_has_begun(loop: LoopThread) -> None:
    begun, ended = list[int](), list[int]()

    def works() -> Iterator[Any]:
        for number in range(60):
            begun.append(number)
            yield later(number, ended)

    with pytest.raises(ValueError, match="thirty"):
        list(loop.in_order(works(), 16))

    assert len(begun) < 50
    assert {*ended} <= {*begun}


def test_an_iteration_that_outlives_the_loop_ends_in_silence() -> None:
    """As the traceback of an interruption holds it until the engine is closed."""
    thread, ended = LoopThread(), list[int]()
    results = thread.in_order((later(number, ended) for number in range(9)), 4)
    assert next(results) == 0

    thread.close()
    del results
    gc.collect()

    assert {*ended} == {*range(4)}


def test_it_can_be_waited_for_where_a_loop_runs_already(loop: LoopThread) -> None:
    """As in a notebook."""

    async def cell() -> int:
        return loop.wait_for(later(3, []))

    assert asyncio.run(cell()) == 3


def same(found: Any, expected: Any) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, abs=1e-4, rel=1e-4))
    return bool(found == expected)


@pytest.mark.vllm
def test_a_plain_script_gets_the_same_from_both_backends(
    tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    directory, script, out = tiny_ensembles["block-2"], tmp_path / "script.py", tmp_path / "out.json"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, str(script), str(directory), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    with softspec.load(directory, backend="transformers") as ensemble:
        expected = json.loads(json.dumps(everything(ensemble)))
    found = json.loads(out.read_text())
    for draws, others in zip(found["draws"], expected["draws"], strict=True):
        if draws[0]["seed"] != others[0]["seed"]:  # greedy: nobody gave one
            for answer in (*draws, *others):
                answer.pop("seed")
    for what in expected:
        assert same(found[what], expected[what]), what


@pytest.mark.vllm
@pytest.mark.pilot
def test_ctrl_c_ends_a_script_and_its_engine(tiny_ensembles: dict[str, Path], tmp_path: Path) -> None:
    """Pressed at a terminal, which tells the engine's process too; then sent to the script alone."""
    for to_group in (True, False):
        script = subprocess.Popen(
            [sys.executable, "-c", LONG, str(tiny_ensembles["block-2"])],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert script.stdout is not None
        assert script.stdout.readline() == "begun\n"
        children = psutil.Process(script.pid).children(recursive=True)
        time.sleep(3)

        (os.killpg if to_group else os.kill)(script.pid, signal.SIGINT)

        _, told = script.communicate(timeout=60)
        assert "KeyboardInterrupt\n" in told, told
        assert "Exception ignored" not in told, told
        assert children
        assert not psutil.wait_procs(children, timeout=10)[1]
