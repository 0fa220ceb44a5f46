"""What the studies of this folder share: rows become files, and `softspec baselines` trains and compares on them.

In: rows and a training configuration. Out: a folder with the data, one configuration, every trained model and its
scores, and a table for each test set. Runs the command line, as a user would; the same command goes on where it was
interrupted.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study_table import markdown

Row = Mapping[str, Any]
ENSEMBLE = {
    "num_members": 4,
    "renyi_alpha": 0.8,
    "lora_r": 8,
    "lora_alpha": 32,
    "layers_to_transform": "top_third",
}
"""The ensemble of every study; what differs is in its own configuration."""
ALPHAS = (0.3, 0.5, 0.8, 1.0)
"""Orders beside 0, which is the baseline `independent`."""


def arguments(description: str, base: str, switches: Mapping[str, str] | None = None) -> Namespace:
    """What every study is told: where the public data lie, where to work, and how much of it to do.

    Args:
        switches: further flags without a value, and what they say.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("data", type=Path, help="folder of the data set, as its README says")
    parser.add_argument("work", type=Path, help="folder for rows, models and tables")
    parser.add_argument("--base", default=base, help=f"base model: directory or hub id (default: {base})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alphas", type=float, nargs="*", default=list(ALPHAS))
    parser.add_argument("--only", nargs="+", default=[], help="these baselines alone")
    parser.add_argument("--steps", type=int, help="optimizer steps in place of the study's")
    for name, about in (switches or {}).items():
        parser.add_argument(name, action="store_true", help=about)
    return parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text: str) -> list[Row]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def compare(
    given: Namespace,
    config: Row,
    train: Iterable[Row],
    tests: Mapping[str, Iterable[Row]],
    shown: Sequence[str],
) -> None:
    """Train the ensemble of `config`, other orders and all baselines, judge them on every test set and print tables.

    Args:
        tests: name -> rows of choices or of reference answers; each gives `table-NAME.json`.
        shown: metrics of the tables.
    """
    work = given.work.resolve()
    settings = {
        "base_model": given.base,
        "train_file": str(write(work / "train.jsonl", train)),
        "output_dir": str(work / "own"),
        **ENSEMBLE,
        **config,
        **({} if given.steps is None else {"max_steps": given.steps}),
    }
    path = work / "config.yaml"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    for name, rows in tests.items():
        data, table = write(work / f"{name}.jsonl", rows), work / f"table-{name}.json"
        command = ["baselines", str(path), str(data), "--output-dir", str(work / "runs")]
        command += ["--json", str(table)]
        for flag in ("seeds", "alphas", "only"):
            command += [f"--{flag}", *map(str, getattr(given, flag))] if getattr(given, flag) else []
        print("softspec", *command, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "softspec.app.cli", *command], check=True, stdout=sys.stderr)
        print(markdown(json.loads(table.read_text(encoding="utf-8")), shown))


def scores(given: Namespace, seed: int, test: str, model: str) -> Iterator[dict[str, Any]]:
    """The records of a model: of each row `choices`, `member_log_probs` (K, C), `num_tokens` (C,) and its labels."""
    path = given.work / "runs" / f"seed-{seed}" / f"scores-{test}" / f"{model}.jsonl"
    yield from read(path)[1:]  # behind the header
