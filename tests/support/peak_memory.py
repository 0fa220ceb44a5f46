"""The memory that logits need: the peak of one training step or one evaluation, on a CPU, over what stands before it.

    python -m tests.support.peak_memory step          # or: evaluation; --two-passes
    python -m tests.support.peak_memory step --vocabulary 49152 --repeat 10     # seconds too

A tiny model with a large vocabulary, so that next to nothing but logits counts. Run each in a process of its own.
"""

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softspec.maths.mixture import uniform_log_weights
from softspec.train.data.survey import survey
from softspec.train.loop.health import Starvation
from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.schedule import ExampleOrder
from softspec.train.loop.state import Training
from softspec.train.loop.step import optimizer_step
from softspec.train.loop.stopping import EarlyStopping
from softspec.train.members.members import Members
from softspec.train.members.spec import resolve_spec
from softspec.train.objective.objective import objective_of
from softspec.train.processes import Processes
from softspec.train.run import held_out_scores
from tests.support.tiny_training import config_of_no_files, random_examples


def training_of(arguments: argparse.Namespace, folder: Path) -> Training:
    """A run of four examples on a model without files."""
    shape = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=2 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    members = Members(
        LlamaForCausalLM(shape),
        resolve_spec(LlamaForCausalLM(shape), 4, 8, "all-linear", "all"),
        arguments.members,
        0,
        0.01,
    )
    config = config_of_no_files(
        output_dir=folder, num_members=arguments.members, micro_batch_size=arguments.examples, max_steps=1000
    )
    lengths = ((32, arguments.tokens),) * arguments.examples
    examples = random_examples(lengths, arguments.vocabulary)
    return Training(
        config=config,
        objective=objective_of(config),
        processes=Processes(),
        members=members,
        optimizer=MembersAdamW(members.parameters(), 1e-4, 0.0),
        examples=examples,
        held_out=examples,
        survey=survey(examples, False, "x"),
        order=ExampleOrder(config, len(examples)),
        prior=None,
        log_weights=uniform_log_weights(arguments.members),
        active_members=1.0 if arguments.two_passes else float(arguments.members),
        starvation=Starvation(arguments.members, 10),
        early_stopping=EarlyStopping(config),
    )


def resident_gb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print the peak, and the seconds of each repetition after the first."""
    parser = argparse.ArgumentParser(description="Peak memory of a step or an evaluation")
    parser.add_argument("what", choices=("step", "evaluation"))
    parser.add_argument("--two-passes", action="store_true")
    for name, default in (
        ("members", 4), ("examples", 4), ("tokens", 300), ("vocabulary", 128_000), ("hidden", 64), ("layers", 2),
        ("repeat", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        training = training_of(arguments, Path(folder))
        before, seconds = resident_gb(), []
        for step in range(arguments.repeat):
            started = time.monotonic()
            if arguments.what == "step":
                optimizer_step(training, step)
            else:
                held_out_scores(training)
            seconds.append(round(time.monotonic() - started, 3))
    print(f"{arguments.what}: {resident_gb() - before:.2f} GB over {before:.2f} GB; seconds {seconds}")


if __name__ == "__main__":
    main()
