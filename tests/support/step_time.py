"""How long the gradients of a run's first step take, with what is frozen kept and not.

`python -m tests.support.step_time CONFIG.yaml [KEY=VALUE ...]`

Prints seconds of processor time, which other work on the machine disturbs little. What is kept goes when it is done.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from softspec.artefact.fingerprint import fingerprint
from softspec.train.config import load_config
from softspec.train.loop.passes import add_gradients
from softspec.train.loop.state import Training
from softspec.train.members.likelihood import tail_length
from softspec.train.run import check_names, prepare, read_data


def seconds(training: Training) -> float:
    """Processor time of the gradients of the first step."""
    units = [training.examples[index] for index in training.order.indices(0)]
    units.sort(key=lambda unit: tail_length(unit, training.config.activation))
    training.optimizer.zero_grad()
    started = time.process_time()
    add_gradients(training, units, training.config.renyi_alpha)
    return time.process_time() - started


def main(path: Path, overrides: list[str]) -> None:
    """Measure twice without and with, one after the other."""
    config = load_config(path, [*overrides, "max_steps=1"])
    examples, held_out = read_data(config)
    base = fingerprint(config.base_model, config.model_revision)
    training = prepare(config, check_names(config), examples, held_out, base=base)
    frozen = training.members.frozen
    for way in ("first", "later", "nothing kept", "later", "nothing kept"):
        training.members.frozen = None if way == "nothing kept" else frozen
        print(f"{way}: {seconds(training):.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOFTSPEC_CACHE"] = folder
        main(Path(sys.argv[1]), sys.argv[2:])
