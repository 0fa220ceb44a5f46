"""The files of deploy/train start what they say, on this machine's CPU: runs share a base, which one process cannot.

Slurm's own commands are stand-ins, as no cluster is at hand; two nodes are two torchruns that meet. NCCL is not run.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softspec.app.child_server import free_port
from softspec.train.members.spec import decoder_layers, resolve_spec
from softspec.train.run import train_ensemble
from tests.support.ray_cluster import RAY
from tests.support.tiny_training import write_config
from tests.support.training_runs import adapters, assert_close_adapters, interrupted

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deploy" / "train"
BIN = Path(sys.executable).parent
SHARED = ["--set", "shard_base=true"]
STAND_INS = {
    "scontrol": "#!/bin/sh\n[ \"$*\" = 'show hostnames node[1-2]' ] && printf '127.0.0.1\\nnode2\\n'\n",
    "srun": """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
""",
}
"""Commands of Slurm, as the recipe calls them: the names of two nodes, and a task on each of them."""


def environment(**variables: str) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path, **variables}


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, timeout=600
    )


SIZES = {
    "8 billion weights": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "70 billion weights": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
}
"""Of Llama 3; heads have 128 numbers."""


@pytest.mark.parametrize("base", SIZES)
def test_the_table_of_what_fits_is_counted(base: str) -> None:
    """In bfloat16, with four members of rank 16 in all linear layers."""
    size = SIZES[base]
    heads = {"num_attention_heads": size["hidden_size"] // 128, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128256, **size, **heads))
    layers = decoder_layers(model)
    total, shared = (2 * sum(each.numel() for each in part.parameters()) for part in (model, layers))
    targets = resolve_spec(model, 16, 32, "all-linear", "all").targets(model)
    members = 4 * 16 * sum(16 * (linear.in_features + linear.out_features) for _, linear in targets)
    parts = [total - shared + shared / count + 2 * shared / len(layers) for count in (2, 4, 8)]

    row = f"| {base} | {' | '.join(f'{(part + members) / 1e9:.1f}' for part in (total, *parts))} |"

    assert row in (RECIPES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_shell_recipes_have_no_faults_that_shellcheck_knows(name: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck (apt-get install shellcheck)")

    checked = run("shellcheck", str(RECIPES / name))

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("variables", "missing"),
    [({}, "CONFIG"), ({"CONFIG": "my.yaml", "NNODES": "2"}, "RDZV_ENDPOINT")],
    ids=["no configuration", "nowhere to meet"],
)
def test_what_a_recipe_lacks_is_said(variables: dict[str, str], missing: str) -> None:
    finished = run(str(RECIPES / "torchrun.sh"), **variables)

    assert finished.returncode == 2
    assert f"{missing}: is not set: say" in finished.stderr


@pytest.mark.slow
def test_a_stopped_torchrun_leaves_a_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path, max_steps=100_000)
    with subprocess.Popen(
        [str(RECIPES / "torchrun.sh"), *SHARED],
        env=environment(NPROC="2", CONFIG=str(tmp_path / "config.yaml")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        next(line for line in process.stderr if line.startswith("training:"))

        process.send_signal(signal.SIGTERM)

        said = process.stderr.read()
    assert process.returncode != 0
    assert "stopped after step" in said, said
    assert (config.output_dir.with_name("ensemble.partial") / "checkpoint.pt").exists()


@pytest.mark.slow
def test_slurm_goes_on_from_a_checkpoint_on_two_nodes(tmp_path: Path) -> None:
    """An interrupted run ends with the adapters that it would have had."""
    alone = write_config(tmp_path, output_dir="alone", max_steps=40)
    train_ensemble(alone)
    begun = interrupted(tmp_path)
    for name, script in STAND_INS.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)

    finished = run(
        "bash", str(RECIPES / "slurm.sbatch"), *SHARED,
        CONFIG=str(tmp_path / "config.yaml"), OUTPUT=str(begun.output_dir), NPROC="1", RDZV_PORT=str(free_port()),
        SLURM_JOB_NODELIST="node[1-2]", SLURM_JOB_NUM_NODES="2", SLURM_JOB_ID="7",
        PATH=f"{tmp_path}{os.pathsep}{environment()['PATH']}",
    )  # fmt: skip

    assert finished.returncode == 0, finished.stderr
    assert_close_adapters(alone, begun)


@pytest.mark.slow
def test_accelerate_takes_its_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)

    finished = run(
        *("accelerate", "launch", "--config_file", str(RECIPES / "accelerate.yaml"), "--num_processes", "2"),
        *("--no_python", "softspec", "train", str(tmp_path / "config.yaml"), *SHARED),
    )

    assert finished.returncode == 0, finished.stderr
    assert len(adapters(config.output_dir)) > 0


def ray_recipe() -> Any:
    """The recipe as a module; it needs Ray only once it starts workers."""
    specification = importlib.util.spec_from_file_location("ray_train", RECIPES / "ray_train.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_worker_of_ray_trains_what_the_command_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any working directory, as Ray gives every worker its own."""
    recipe, config = ray_recipe(), write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = recipe.arguments(["config.yaml", "--workers", "1", "--set", "output_dir=elsewhere"])
    settings = recipe.worker_settings(asked)
    monkeypatch.chdir("/")

    recipe.train_in_worker(settings)

    assert not config.output_dir.exists()
    assert len(adapters(tmp_path / "elsewhere")) > 0


def test_a_worker_that_ray_starts_again_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    begun = interrupted(tmp_path)

    ray_recipe().train_in_worker({"config": str(tmp_path / "config.yaml"), "overrides": []})

    assert len(adapters(begun.output_dir)) > 0


TWO_WORKERS = """
import runpy, sys
import ray

ray.init(_node_ip_address="127.0.0.1", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Ray of this machine alone, without its dashboard; then the recipe."""


@pytest.mark.slow
@pytest.mark.ray
def test_ray_starts_two_workers(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    options = ["--workers", "2", "--cpu", "--restarts", "0", "--storage", str(tmp_path / "ray")]
    (tmp_path / "two_workers.py").write_text(TWO_WORKERS)

    finished = run(
        *(sys.executable, str(tmp_path / "two_workers.py")),
        *(str(RECIPES / "ray_train.py"), str(tmp_path / "config.yaml"), *options, *SHARED),
        PYTHONPATH=f"{ROOT}{os.pathsep}{RAY}",
        RAY_USAGE_STATS_ENABLED="0",
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(adapters(config.output_dir)) > 0
