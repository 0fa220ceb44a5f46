"""SmolLM2-135M with adapters that were really trained, through training, engine and server.

The engine must agree with transformers + PEFT on a real model too, and `softspec train` and `softspec serve` must work
as a user runs them: as commands.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from transformers import AutoTokenizer

from softspec.app.demo.facts import ask, draw_statements, invent_things, write_rows
from softspec.app.smollm2 import local_base
from softspec.artefact.activation import AlwaysActivation
from softspec.artefact.manifest import load_manifest, member_dir, save_manifest
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import TOLERANCE, largest_difference

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness

pytestmark = [pytest.mark.vllm, pytest.mark.model]

TRAIN_STEPS = 24
MAX_TOKENS = 5
CONTEXT = "You answer in one word. " * 12


@pytest.fixture(scope="module")
def base() -> Path:
    return local_base()


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members, trained by the command for a few steps: enough to differ, not to be good."""
    folder = tmp_path_factory.mktemp("real")
    statements = draw_statements(invent_things(0), 120, seed=0, facts=2)
    write_rows(folder / "train.jsonl", (statement.row() for statement in statements))
    config = {
        "base_model": str(base),
        "train_file": "train.jsonl",
        "output_dir": "colours",
        "layers_to_transform": "top_third",
        "learning_rate": 2e-3,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": TRAIN_STEPS,
    }
    (folder / "colours.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(
        [sys.executable, "-m", "softspec.app.cli", "train", str(folder / "colours.yaml")],
        check=True,
        timeout=900,
    )
    return folder / "colours"


@pytest.fixture(scope="module")
def ensembles(trained: Path) -> dict[str, Path]:
    """The first K of the trained members, with both activations."""
    whole = load_manifest(trained)
    folders = {}
    for count in (1, 2, 4):
        for kind, activation in (("block", whole.activation), ("always", AlwaysActivation())):
            folder = trained.parent / f"{kind}-{count}"
            for member in range(count):
                shutil.copytree(member_dir(trained, member), member_dir(folder, member))
            update = {
                "name": folder.name,
                "num_members": count,
                "log_weights": (-math.log(count),) * count,
                "activation": activation,
            }
            save_manifest(folder, whole.model_copy(update=update))
            folders[folder.name] = folder
    return folders


@pytest.fixture(scope="module")
def engine(base: Path, ensembles: dict[str, Path]) -> Iterator["EngineHarness"]:
    """64 KV blocks of 32 tokens, 64 tokens a step: long prompts are chunked and groups wait for each other."""
    from tests.support.engine_harness import EngineHarness

    harness = EngineHarness(
        base,
        list(ensembles.values()),
        max_model_len=256,
        num_gpu_blocks_override=40,
        max_num_batched_tokens=64,
        max_num_seqs=16,
    )
    yield harness
    harness.close()


def prompts(base: Path) -> list[list[int]]:
    """Six chat prompts, short ones and two of several blocks."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": CONTEXT * (number % 3 == 2) + ask([thing])}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for number, thing in enumerate(invent_things(0)[:6])
    ]


def test_shared_lower_layers_change_no_token_and_no_number(base: Path, engine: "EngineHarness") -> None:
    """Members of the top third, one by one below it and together; both rules of activation, all at once."""
    from tests.support.engine_harness import Question, SamplingParams

    questions = [
        Question(name, ids, SamplingParams(temperature=1.0, seed=number, max_tokens=24, ignore_eos=True))
        for name in ("block-4", "always-4", "always-2")
        for number, ids in enumerate(prompts(base))
    ]
    replies, counted = [], []
    for least in (None, 1):
        assert engine.call_workers("share_lower_layers", least) == [None]
        assert engine.run(engine.engine.reset_prefix_cache())
        replies.append(engine.ask(*questions))
        counted += engine.call_workers("lower_layer_tokens")

    computed, lowest = (after - before for before, after in zip(*counted, strict=True))
    print(f"{lowest} of {computed} tokens went through the lowest layer")
    assert lowest < 0.6 * computed
    differences = [
        largest_difference(together.choices[0].tokens, apart.choices[0].tokens)
        for apart, together in zip(*replies, strict=True)
    ]
    print(f"largest difference {max(differences):.1e} nats")
    assert max(differences) < TOLERANCE


def test_engine_equals_transformers_and_peft_on_trained_adapters(
    base: Path, ensembles: dict[str, Path], engine: "EngineHarness"
) -> None:
    """Six prompts, K of 1, 2 and 4, greedy and seeded, both activations in turn, all in flight at once."""
    from tests.support.engine_harness import Question, SamplingParams

    cases = [
        (f"{('block', 'always')[(number + count) % 2]}-{count}", ids, temperature)
        for number, ids in enumerate(prompts(base))
        for count in (1, 2, 4)
        for temperature in (0.0, 1.0)
    ]
    questions = [
        Question(
            name,
            ids,
            SamplingParams(temperature=temperature, seed=number, max_tokens=MAX_TOKENS, ignore_eos=True),
        )
        for number, (name, ids, temperature) in enumerate(cases)
    ]

    replies = engine.ask(*questions)

    references = {name: ReferenceEnsemble.load(base, folder) for name, folder in ensembles.items()}
    worst = 0.0
    for number, ((name, ids, temperature), reply) in enumerate(zip(cases, replies, strict=True)):
        expected = references[name].decode(
            ids, SamplingSpec(temperature=temperature, seed=number), MAX_TOKENS
        )
        worst = max(worst, largest_difference(reply.choices[0].tokens, expected))
    print(f"{len(cases)} answers of {MAX_TOKENS} tokens, largest difference {worst:.1e} nats")
    assert worst < TOLERANCE


def test_known_answers_are_scored_as_transformers_and_peft_do(
    base: Path, ensembles: dict[str, Path], engine: "EngineHarness"
) -> None:
    """In one pass there, step by step here; what somebody wrote, with the token that ends it."""
    from softspec.engine.front.scoring import score_answers

    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = [tokenizer.encode(text) for text in ("Blue.<|im_end|>", "I do not know that one.", "42")]
    worst = 0.0
    for name in ("block-1", "always-4", "block-4"):
        reference = ReferenceEnsemble.load(base, ensembles[name])
        for number, ids in enumerate(prompts(base)[1:3]):
            traces = engine.run(score_answers(engine.client, name, ids, answers, f"{name}-{number}"))
            for answer, trace in zip(answers, traces, strict=True):
                worst = max(worst, largest_difference(trace.tokens, reference.replay(ids, answer)))
    print(f"{6 * len(answers)} answers, largest difference {worst:.1e} nats")
    assert worst < 1e-4


def test_training_writes_an_honest_log(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines] == list(range(1, TRAIN_STEPS + 1))
    assert lines[-1]["mixture_nll"] < lines[0]["mixture_nll"]
