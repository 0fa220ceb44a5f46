"""Two processes that share every step's examples end where one would."""

from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from softspec.app.cli.main import main
from softspec.train.loop.passes import add_gradients
from softspec.train.run import train_ensemble
from tests.support.tiny_training import chat_rows, preference_rows, prepared, write_config, write_rows
from tests.support.torchrun import torchrun, train
from tests.support.training_runs import assert_ended_alike

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (
            [{**row, "source": "x"} for row in chat_rows()],
            {"eval_steps": 2, "early_stopping_patience": 1, "responsibility_floor": 0.1},
        ),
        (
            [{**row, "group": number % 3} for number, row in enumerate(preference_rows())],
            {"objective": "dpo", "granularity": "group", "beta": 1.0, "learning_rate": 0.0005},
        ),
    ],
    ids=["completions", "groups of preferences"],
)
def test_two_processes_equal_one(
    tmp_path: Path, data: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Seven examples a step, so that the processes have parts of different size; five held-out ones likewise."""
    write_config(tmp_path)
    write_rows(tmp_path / "data.jsonl", data)
    write_rows(tmp_path / "held_out.jsonl", data[:5])
    settings = {
        "train_file": "data.jsonl",
        "eval_file": "held_out.jsonl",
        "micro_batch_size": 7,
        "gradient_accumulation_steps": 1,
        "b_init_std": 0.1,
        **settings,
    }
    alone = write_config(tmp_path, output_dir="alone", **settings)
    train_ensemble(alone)
    together = write_config(tmp_path, output_dir="together", **settings)

    finished = train(tmp_path / "config.yaml")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("wrote ") == 1
    assert_ended_alike(alone, together)


ONE_STEP = """
import os, sys
from pathlib import Path
from tests.support.tiny_training import prepared
from softspec.train.loop.passes import add_gradients
from softspec.train.processes import leave_others

folder, first, second = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
training = prepared(folder, **eval(sys.argv[4]))
done = add_gradients(training, [training.examples[first], training.examples[second]], 1.0)
(folder / f"rank-{os.environ['RANK']}").write_text(str(done.active_members))
leave_others()
"""


def test_all_processes_go_on_from_the_same_number_of_active_members(tmp_path: Path) -> None:
    """It decides about the passes of the next step, and a checkpoint has one number for all processes."""
    settings = {"b_init_std": 0.3, "skip_responsibility": 0.2, "micro_batch_size": 2}
    training = prepared(tmp_path, **settings)
    active = [add_gradients(training, [unit], 1.0).active_members for unit in training.examples]
    shared, alone = active.index(2), active.index(1)
    script = tmp_path / "one_step.py"
    script.write_text(ONE_STEP)

    [finished] = torchrun(str(script), str(tmp_path), str(shared), str(alone), repr(settings))

    assert finished.returncode == 0, finished.stderr
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["1.5", "1.5"]


def test_a_finished_run_leaves_the_other_processes(tmp_path: Path) -> None:
    """Its end would be an abort now and then; here it has nobody beside it, but a group all the same."""
    write_config(tmp_path, output_dir="ensemble")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)

    assert main(["train", str(tmp_path / "config.yaml")]) == 0

    assert not distributed.is_initialized()
