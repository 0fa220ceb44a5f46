"""softspec train on a Ray cluster: every worker of a TorchTrainer runs the command's own entry.

    python deploy/train/ray_train.py my.yaml --workers 8 --set shard_base=true

Nodes need softspec, the configuration, the base, the data and `output_dir` at the same places. A worker that is lost
costs the steps since the last checkpoint (`save_steps`): Ray starts all workers again, and they go on from it.
"""

import argparse
from pathlib import Path
from typing import Any

PATIENCE_S = 12 * 3600
"""How long workers wait for one that works for them, as when it tokenises."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="softspec train on a Ray cluster")
    parser.add_argument("config", type=Path, help="YAML file, at the same place on every node")
    parser.add_argument("--workers", type=int, required=True, help="processes, over all nodes")
    parser.add_argument("--cpu", action="store_true", help="workers without a GPU, to try it out")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--restarts", type=int, default=3, help="how often lost workers are replaced")
    parser.add_argument("--storage", help="folder that all nodes share, for Ray's own records")
    return parser.parse_args(given)


def train_in_worker(settings: dict[str, Any]) -> None:
    """Train, or go on from the checkpoint of workers that were lost."""
    from softspec.app.cli.train import train
    from softspec.train.config import load_config
    from softspec.train.loop.folder import run_folder

    path, overrides = Path(settings["config"]), tuple(settings["overrides"])
    checkpoint = run_folder(load_config(path, overrides)).checkpoint
    train(path, resume=checkpoint.exists(), overrides=overrides)


def worker_settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What every worker is told; paths are absolute, as workers have working directories of their own."""
    from softspec.train.config import pinned

    return {
        "config": str(asked.config.resolve()),
        "overrides": [pinned(override) for override in asked.overrides],
    }


def main() -> None:
    """Start the workers and wait for them."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    asked = arguments()
    trainer = TorchTrainer(
        train_in_worker,
        train_loop_config=worker_settings(asked),
        scaling_config=ScalingConfig(num_workers=asked.workers, use_gpu=not asked.cpu),
        torch_config=TorchConfig(timeout_s=PATIENCE_S),
        run_config=RunConfig(
            storage_path=asked.storage, failure_config=FailureConfig(max_failures=asked.restarts)
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
