"""`softspec score`: which rows it reads, what it writes in which order, and how it ends early."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from softspec.app.cli.main import main
from softspec.app.score.results import Summary, Wanted, line, opened, partial_of
from softspec.app.score.rows import read_asked, survey
from softspec.app.score.score import score_file
from softspec.engine.trace import ChoiceTrace
from softspec.errors import DataError, Interrupted, MixingError
from softspec.maths.answer import TokenUncertainty
from softspec.train.data.reading import Reading
from tests.support.tiny import random_adapters, tiny_tokenizer

USER = {"role": "user", "content": "Colour?"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
ROWS: list[dict[str, Any]] = [
    {"messages": [USER, {"role": "assistant", "content": "red"}], "tools": [TOOL], "source": "A"},
    {"prompt": "Colour? ", "completion": "blue"},
    {"prompt": "Colour? ", "answers": ["blue", "red", "a longer answer"]},
    {"messages": [USER], "answers": ["red"]},
]


def written(folder: Path, rows: Sequence[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def reading(context: int | None = 1024) -> Reading:
    tokenizer = tiny_tokenizer()
    return Reading(tokenizer, {tokenizer.eos_token_id}, max_length=2**62, context=context)


# Rows


def test_rows_of_training_and_rows_of_answers_become_the_same_ids(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id

    chat, text, several, asked = read_asked(written(tmp_path, ROWS), reading())

    prompt = tokenizer.encode("<|im_start|>user\nColour?<|im_end|>\n<|im_start|>assistant\n")
    assert list(chat.prompt_ids) == list(asked.prompt_ids) == prompt
    assert chat.answers == asked.answers == ((*tokenizer.encode("red"), end),)
    assert text.prompt_ids == several.prompt_ids == tuple(tokenizer.encode("Colour? "))
    assert several.answers[0] == text.answers[0] == (*tokenizer.encode("blue"), end)
    assert len(several.answers) == 3


def test_a_survey_counts_what_will_be_scored(tmp_path: Path) -> None:
    found = survey(written(tmp_path, [*ROWS, "\n"]), reading())

    longest = max(row.num_tokens for row in read_asked(tmp_path / "data.jsonl", reading()))
    assert (found.num_rows, found.num_answers, found.longest) == (4, 6, longest)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no rows found"),
        ([ROWS[0], {"prompt": "a"}], "data.jsonl:2: expected both 'prompt' and 'completion'"),
        ([ROWS[0], "{"], "data.jsonl:2: not JSON"),
        ([{"prompt": "a", "answers": []}], "data.jsonl:1: answers"),
        ([{"prompt": "a", "answers": ["b", 5]}], "data.jsonl:1: answers.1: expected text (found 5)"),
        ([{"answers": ["b"]}], "expected either 'prompt' or 'messages' with 'answers'"),
        ([{"prompt": "a", "messages": [USER], "answers": ["b"]}], "expected either 'prompt' or 'messages'"),
        ([{"prompt": "a", "completion": "b", "answers": ["b"]}], "'answers' beside 'completion'"),
        ([{"prompt": "a", "answers": [""]}], "empty completion"),
        ([{"messages": [USER]}], "the assistant's answer as the last one"),
    ],
)
def test_a_row_that_cannot_be_scored_is_told_with_its_line(
    tmp_path: Path, rows: list[Any], told: str
) -> None:
    with pytest.raises(DataError) as mistake:
        survey(written(tmp_path, rows), reading())

    assert told in str(mistake.value)


def test_rows_that_are_too_long_are_counted_and_the_longest_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * length, "completion": "b"} for length in (10, 60, 80, 70)]

    with pytest.raises(
        DataError, match=r"3 of 4 rows are longer than the 50 tokens .* 82 tokens .*data\.jsonl:3"
    ):
        survey(written(tmp_path, rows), reading(context=50))


# Results


def scores_of(*log_probs: float) -> list[dict[str, Any]]:
    rest = {"num_tokens": 2, "mutual_information": 0.1, "max_epistemic": 0.2, "disagreement": 0.5}
    return [{"log_prob": log_prob, **rest} for log_prob in log_probs]


def test_a_file_has_its_name_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as file:
        assert file is not None
        file.write(line(0, scores_of(-1.0)))
        assert not path.exists()

    assert json.loads(path.read_text()) == {"row": 0, "scores": scores_of(-1.0)}
    assert not partial_of(path).exists()


def test_a_file_that_is_cut_short_keeps_what_it_has_beside_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")

    def cut_short() -> None:
        with opened(path) as file:
            assert file is not None
            file.write(line(0, scores_of(-1.0)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_short()

    assert path.read_text() == "old\n"
    assert json.loads(partial_of(path).read_text())["row"] == 0


def test_the_table_has_means_and_quantiles_over_answers() -> None:
    summary = Summary()
    for number in range(10):
        summary.add(scores_of(float(-number)))

    table = summary.table()

    assert table.startswith("10 rows, 10 answers, 20 tokens\n")
    cells = next(row.split() for row in table.splitlines() if row.startswith("nll "))
    assert cells == ["nll", "4.500", "0.000", "4.000", "8.000"]


# The engine's part


@dataclass
class FakeEngine:
    """Thinks of an answer what its first token says; later rows are ready first.

    At row `fails_at` comes an error, or Ctrl-C to the whole process.
    """

    fails: Exception | Literal["ctrl-c"] | None = None
    fails_at: int = -1
    asked: int = 0
    running: int = 0
    most: int = 0
    max_model_len: int = 1024

    async def score(self, name: str, prompt_ids: Any, answers: Sequence[Sequence[int]]) -> list[ChoiceTrace]:
        number, self.asked = self.asked, self.asked + 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001 * (7 - number % 7))
            if self.fails is not None and number == self.fails_at:
                if self.fails != "ctrl-c":
                    raise self.fails
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
        finally:
            self.running -= 1
        return [
            ChoiceTrace((0.0,), tokens=[TokenUncertainty(ids[0], -1.0, 1, 1, 0, 0, (-float(ids[0]),))])
            for ids in answers
        ]

    def decode(self, token_id: int) -> tuple[str, list[int]]:
        return str(token_id), [token_id]


@pytest.fixture
def ensemble(tiny_base: Path, tmp_path: Path) -> Path:
    return random_adapters(tiny_base, tmp_path / "my", num_members=1, name="my")


def scored(
    ensemble: Path, data: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, **wanted: Any
) -> tuple[Summary, Sequence[str]]:
    given: list[str] = []

    @asynccontextmanager
    async def open_engine(arguments: Sequence[str], _: Any) -> AsyncIterator[FakeEngine]:
        given.extend(arguments)
        yield engine

    monkeypatch.setattr("softspec.engine.start.local.open_engine", open_engine)
    monkeypatch.setattr("os.environ", {})
    wanted = {"output": data.parent / "out.jsonl", **wanted}
    return score_file(ensemble, data, Wanted(**wanted), None, False, ["--max-num-seqs", "8"]), given


@pytest.mark.vllm
def test_lines_are_in_the_order_of_the_rows_whichever_is_ready_first(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softspec.ensemble.served.backend import SCORED_AT_ONCE

    data = written(
        tmp_path, [{"prompt": "x", "completion": chr(97 + n % 26)} for n in range(3 * SCORED_AT_ONCE)]
    )
    engine = FakeEngine()

    summary, arguments = scored(ensemble, data, engine, monkeypatch, detail="tokens")

    lines = [json.loads(each) for each in (tmp_path / "out.jsonl").read_text().splitlines()]
    letters = [tiny_tokenizer().encode(chr(97 + n % 26))[0] for n in range(3 * SCORED_AT_ONCE)]
    assert [each["row"] for each in lines] == list(range(3 * SCORED_AT_ONCE))
    assert [each["scores"][0]["tokens"][0]["token_id"] for each in lines] == letters
    assert summary.rows == 3 * SCORED_AT_ONCE
    assert 1 < engine.most <= SCORED_AT_ONCE
    assert arguments[arguments.index("--max-model-len") + 1] == "3"
    assert arguments[-2:] == ["--max-num-seqs", "8"]


@pytest.mark.vllm
def test_an_interrupted_run_says_how_far_it_came(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path, [{"prompt": "x", "completion": "a"}] * 200)

    with pytest.raises(Interrupted) as end:
        scored(ensemble, data, FakeEngine("ctrl-c", 150), monkeypatch)

    partial = tmp_path / "out.jsonl.partial"
    rows = len(partial.read_text().splitlines())
    assert 0 < rows < 150
    assert str(end.value) == f"interrupted after {rows} of 200 rows; their lines are in '{partial}'"
    assert end.value.exit_code == 128 + signal.SIGINT
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.vllm
def test_a_row_that_the_engine_cannot_score_ends_the_run(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path, [{"prompt": "x", "completion": "a"}] * 100)
    engine = FakeEngine(MixingError("no mixing"), 70)

    with pytest.raises(MixingError):
        scored(ensemble, data, engine, monkeypatch)

    assert engine.running == 0


# The command line


def test_mistakes_are_told_in_one_line_before_an_engine_is_started(
    ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, there = written(tmp_path, [*ROWS, {"prompt": 5, "completion": "a"}]), tmp_path / "there.jsonl"
    there.write_text("precious\n")
    commands = {
        (): "found 0 paths before the options: expected two",
        (str(ensemble),): "found 1 paths",
        (str(ensemble), str(tmp_path / "missing.jsonl")): "missing.jsonl",
        (str(tmp_path), str(data)): "no ensemble.json",
        (str(ensemble), str(data)): "data.jsonl:5: prompt",
        (str(ensemble), str(data), "--json", str(there)): "is there already: name another file",
        (str(ensemble), str(data), "--json", str(data), "--overwrite"): "may not be replaced",
        (str(ensemble), str(data), "--json", str(tmp_path), "--overwrite"): "may not be replaced",
        (str(ensemble), str(data), "--json", str(tmp_path / "no" / "out")): "there is no directory",
        (str(ensemble), str(data), "--detail", "all"): "--detail",
        (str(ensemble), str(data), "--lora-modules", "a=b"): "cannot be given",
    }

    for arguments, told in commands.items():
        assert main(["score", *arguments]) == 2, arguments
        printed = capsys.readouterr()
        assert told in printed.err, arguments
        assert (printed.out, printed.err.count("\n")) == ("", 1), arguments
    assert there.read_text() == "precious\n"


@pytest.mark.vllm
def test_scores_are_those_of_the_reference_decoder(
    tiny_base: Path, tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    from softspec.maths.answer import summarise
    from softspec.reference import ReferenceEnsemble

    longer = {"prompt": "word " * 12, "answers": ["yes", "no, never"]}
    data, out = written(tmp_path, [*ROWS, longer]), tmp_path / "out.jsonl"
    command = ["score", str(tiny_ensembles["block-2"]), str(data), "--json", str(out), "--detail", "tokens"]

    done = subprocess.run(
        [sys.executable, "-m", "softspec.app.cli", *command, "--enforce-eager"],
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 rows, 8 answers, ")
    lines = [json.loads(each) for each in out.read_text().splitlines()]
    reference = ReferenceEnsemble.load(tiny_base, tiny_ensembles["block-2"])
    for row, found in zip(read_asked(data, reading()), lines, strict=True):
        for answer, score in zip(row.answers, found["scores"], strict=True):
            tokens = reference.replay(row.prompt_ids, answer)
            expected = summarise(tokens, reference.manifest.log_weights, reference.manifest.weights_rule)
            assert score["num_tokens"] == len(answer)
            assert score["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)
            assert score["mutual_information"] == pytest.approx(expected.mutual_information, abs=1e-4)
            assert score["member_log_probs"] == pytest.approx(expected.member_log_probs, abs=1e-4)
            assert score["member_weights"] == pytest.approx(expected.member_weights, abs=1e-4)
            assert [each["token_id"] for each in score["tokens"]] == list(answer)
            for mine, its in zip(score["tokens"], tokens, strict=True):
                assert mine["epistemic"] == pytest.approx(its.epistemic, abs=1e-4)
