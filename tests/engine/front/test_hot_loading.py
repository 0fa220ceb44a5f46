"""A real engine whose ensemble is replaced under load: every answer is checked against the reference decoder."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from softspec.artefact.manifest import member_dir
from softspec.errors import UserError
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import TOLERANCE, base_greedy, largest_difference, prompt
from tests.support.tiny import random_adapters

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness, Question, Reply

pytestmark = pytest.mark.vllm

NAME = "retrained"
# Trainings that follow each other: other weights, another number of members, and both activations.
TRAININGS: tuple[tuple[int, Activation], ...] = (
    (2, BlockActivation(block_size=32)),
    (3, AlwaysActivation()),
    (2, AlwaysActivation()),
)
LONG = 120


@pytest.fixture(scope="module")
def trainings(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("trainings")
    return [
        random_adapters(tiny_base, folder / str(i), members, seed=i, activation=activation, name=NAME)
        for i, (members, activation) in enumerate(TRAININGS)
    ]


@pytest.fixture(scope="module")
def references(tiny_base: Path, trainings: list[Path]) -> list[ReferenceEnsemble]:
    return [ReferenceEnsemble.load(tiny_base, path) for path in trainings]


@pytest.fixture(scope="module")
def output_dir(trainings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every training writes its ensemble: one path for all."""
    return train(trainings[0], tmp_path_factory.mktemp("runs") / NAME)


@pytest.fixture(scope="module")
def engine(tiny_base: Path, output_dir: Path) -> Iterator["EngineHarness"]:
    """It serves the first training, with room for the members of a second one."""
    from tests.support.engine_harness import EngineHarness

    harness = EngineHarness(
        tiny_base,
        [output_dir],
        spare=3,
        max_model_len=256,
        num_gpu_blocks_override=60,
        max_num_batched_tokens=48,
        max_num_seqs=16,
    )
    yield harness
    harness.close()


def train(training: Path, output_dir: Path) -> Path:
    shutil.rmtree(output_dir, ignore_errors=True)
    return shutil.copytree(training, output_dir)


def question(model: str | None, length: int, temperature: float = 0.0, **params: Any) -> "Question":
    from tests.support.engine_harness import Question, SamplingParams

    seed = None if model is None else length
    settings = {"temperature": temperature, "seed": seed, "max_tokens": LONG, "ignore_eos": True, **params}
    return Question(model, prompt(length), SamplingParams(**settings))


def assert_answers(reference: ReferenceEnsemble, question: "Question", reply: "Reply") -> None:
    params = question.params
    spec = SamplingSpec(temperature=params.temperature, seed=params.seed or 0)
    assert params.max_tokens is not None
    expected = reference.decode(question.prompt_ids, spec, params.max_tokens)
    assert largest_difference(reply.choices[0].tokens, expected) < TOLERANCE


def settled_loras(engine: "EngineHarness") -> tuple[set[int], set[int]]:
    """The adapters that the engine holds when nobody is leaving any more, and those of what is served."""

    async def both() -> tuple[set[int], set[int]]:
        registry = engine.client.registry
        await registry.settle()
        served = {a.int_id for ensemble in registry.ensembles.values() for a in ensemble.adapters}
        return set(await engine.engine.list_loras()), served

    return engine.run(both())


EDGES: tuple[dict[str, Any], ...] = (
    {"n": 2, "seed": 2**63 - 1},
    {"n": 3, "seed": -(2**63)},
    {"top_k": 2**63},
    {"top_k": 10**30, "top_p": 1e-300, "min_p": 5e-324},
    {"repetition_penalty": 1e308},
    {"repetition_penalty": 1e-320, "logit_bias": {5: 1e300}},
    {"min_tokens": 2**40, "max_tokens": 2**40, "stream_interval": 2**70, "stop_token_ids": [7]},
)


@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-0", None])
def test_numbers_at_every_edge_leave_the_engine_alive(engine: "EngineHarness", model: str | None) -> None:
    """A worker that raises is the end of the engine, for everybody; the base's seed is refused on a CPU."""
    from tests.support.engine_harness import Question, SamplingParams

    edges = [edge for edge in EDGES if model is not None or "seed" not in edge]
    params = [SamplingParams(**{"temperature": 1.0, "max_tokens": 3, **edge}) for edge in edges]

    replies = engine.ask(*(Question(model, prompt(20), each) for each in params))

    assert [[bool(tokens) for tokens in reply.token_ids] for reply in replies] == [
        [True] * each.n for each in params
    ]


@pytest.mark.parametrize("turn", [1, 2])
def test_running_answers_stay_on_the_old_members_and_new_ones_have_the_new(
    engine: "EngineHarness",
    trainings: list[Path],
    references: list[ReferenceEnsemble],
    output_dir: Path,
    turn: int,
) -> None:
    """Same path, same name, same prompts: neither the prefix cache nor the engine may take one for the other."""
    questions = [
        question(NAME, length, temperature) for length in (33, 70, 100) for temperature in (0.0, 1.0)
    ]
    base = question(None, 70)

    async def replace_while_answering() -> tuple[list["Reply"], list["Reply"], list[bool]]:
        began = [asyncio.Event() for _ in (*questions, base)]
        old = [
            asyncio.create_task(engine.reply(each, event))
            for each, event in zip([*questions, base], began, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in began))
        train(trainings[turn], output_dir)
        await engine.client.registry.load(output_dir, replace=True)
        still_running = [not task.done() for task in old]
        new = await asyncio.gather(*(engine.reply(each) for each in questions))
        return await asyncio.gather(*old), new, still_running

    old, new, still_running = engine.run(replace_while_answering())

    assert any(still_running[:-1])
    for each, old_reply, new_reply in zip(questions, old[:-1], new, strict=True):
        assert_answers(references[turn - 1], each, old_reply)
        assert_answers(references[turn], each, new_reply)
    assert old[-1].token_ids == [base_greedy(references[0], list(base.prompt_ids), LONG)]
    loras, served = settled_loras(engine)
    assert loras == served
    assert len(served) == TRAININGS[turn][0]


def test_members_of_clients_that_left_leave_too(engine: "EngineHarness", output_dir: Path) -> None:
    """Aborted, ended by a stop string, and run to the end: all of it after the ensemble was unloaded."""
    from dataclasses import replace

    patient = question(NAME, 40, max_tokens=30)
    stopped = question(NAME, 41, temperature=1.0, stop=["e", "a", "i", "o", "t", "n"])
    gone = [replace(question(NAME, 50 + i, output_kind=2), give_up_after=i + 2) for i in range(4)]

    async def unload_while_answering() -> None:
        began = asyncio.Event()
        tasks = [asyncio.create_task(engine.reply(each)) for each in (stopped, *gone)]
        tasks.append(asyncio.create_task(engine.reply(patient, began)))
        await began.wait()
        await engine.client.registry.unload(NAME)
        await asyncio.gather(*tasks)

    engine.run(unload_while_answering())

    assert settled_loras(engine) == (set(), set())
    engine.run(engine.client.registry.load(output_dir))


def test_unreadable_member_leaves_the_engine_as_it_was(
    engine: "EngineHarness", trainings: list[Path], references: list[ReferenceEnsemble], output_dir: Path
) -> None:
    train(trainings[2], output_dir)
    engine.run(engine.client.registry.load(output_dir, replace=True))
    before = settled_loras(engine)[0]
    train(trainings[1], output_dir)
    weights = member_dir(output_dir, 1) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(UserError, match=f"ensemble '{NAME}' was not loaded: "):
        engine.run(engine.client.registry.load(output_dir, replace=True))

    assert settled_loras(engine)[0] == before
    asked = question(NAME, 35, max_tokens=20)
    assert_answers(references[2], asked, engine.ask(asked)[0])
