"""Rows are asked as they are served and judged as a policy judges them; the manifest has what was found."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from softspec.artefact.calibration import Calibration, Target
from softspec.artefact.manifest import load_manifest
from softspec.calibration.calibrate import calibrate, plan_of, require_room, write
from softspec.calibration.fit import Wanted
from softspec.calibration.judged import Asking, outcomes_of, prefixes_of, truth_of
from softspec.calibration.table import document, table
from softspec.engine.trace import ChoiceTrace
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.results import Answer, Decided
from softspec.errors import ConfigError, DataError
from softspec.evaluation.rows import read_questions
from softspec.maths.answer import METRICS, summarise
from softspec.maths.options import weigh_options
from softspec.server.policy.policy import Policy
from softspec.server.policy.running import RunningDecision
from tests.support.calibrations import ANSWERS, DECISIONS
from tests.support.random_tokens import PRIOR, random_tokens


@dataclass
class FakeEnsemble:
    """Knows the right choice where its members agree; an answer is the last word of its prompt, or wrong."""

    rule: str = "prefix_posterior"
    asked: list[Any] = field(default_factory=list)
    log_weights: tuple[float, ...] = PRIOR

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(weights_rule=self.rule)

    def decide(self, questions: Sequence[Mapping[str, Any]], **settings: Any) -> list[Decided]:
        self.asked.append((list(questions), settings))
        return [self._decided(question) for question in questions]

    def _decided(self, question: Mapping[str, Any]) -> Decided:
        values = tuple(choice["value"] for choice in question["choices"])
        number = int(question["input"].split()[-1])
        doubt = (number % 10) / 10
        sure = torch.tensor(
            [[0.9, 0.1], [0.9 - 0.8 * doubt, 0.1 + 0.8 * doubt], [0.8, 0.2]], dtype=torch.float64
        )
        weighed = weigh_options(sure.log(), torch.tensor(PRIOR, dtype=torch.float64))
        return Decided(None, "choice", values, weighed)

    def generate(self, prompts: Sequence[Any], **settings: Any) -> list[Answer]:
        self.asked.append((list(prompts), settings))
        found = []
        for place, prompt in enumerate(prompts):
            tokens = tuple(random_tokens(settings["seed"] + place, 1 + (settings["seed"] + place) % 6))
            wrong = summarise(tokens, PRIOR).max_epistemic > 0.8
            text = "no idea" if wrong else f" The {prompt.split()[-1].upper()}. "
            found.append(Answer(place, text, "stop", 0, (), summarise(tokens, PRIOR), tokens))
        return found


def as_ensemble(fake: FakeEnsemble) -> Ensemble:
    return cast(Ensemble, fake)


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choices(count: int, **more: Any) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"prompt": f"number {n}", "choices": ["a", "b"], "answer": int(draw.random() < (n % 10) / 10), **more}
        for n in range(count)
    ]


def answers(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"say word{n}", "answers": [f"word{n}"]} for n in range(count)]


def test_decisions_are_asked_as_at_the_server_and_judged_by_their_numbers(tmp_path: Path) -> None:
    fake, questions = FakeEnsemble(), list(read_questions(written(tmp_path / "rows.jsonl", choices(20))))

    found = outcomes_of(as_ensemble(fake), questions, ("epistemic",), Asking(list_options=True))

    ((asked, settings),) = fake.asked
    assert asked[3] == {
        "type": "choice", "instructions": "", "choices": [{"value": "a"}, {"value": "b"}], "input": "number 3",
    }  # fmt: skip
    assert settings["list_options"] is True
    expected = [decided.uncertainty for decided in fake.decide(asked)]
    assert found.whole[:, 0].tolist() == [each.epistemic for each in expected]
    assert found.raw.tolist() == [max(each.probabilities) for each in expected]
    assert found.correct.tolist() == [question.answer == 0 for question in questions]


def test_answers_are_right_without_case_articles_and_punctuation_unless_letters_count(tmp_path: Path) -> None:
    questions = list(read_questions(written(tmp_path / "rows.jsonl", answers(70))))

    loose = outcomes_of(as_ensemble(FakeEnsemble()), questions, ("max_epistemic",), Asking())
    exact = outcomes_of(as_ensemble(FakeEnsemble()), questions, ("max_epistemic",), Asking(exact=True))

    assert loose.correct.tolist() == (loose.whole[:, 0] <= 0.8).tolist()
    assert not exact.correct.any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
@pytest.mark.parametrize("min_tokens", [1, 3])
def test_threshold_on_the_largest_prefix_decides_as_the_policy_does(
    metric: str, rule: Any, min_tokens: int
) -> None:
    """The server's own judge, token by token, against the number that is calibrated."""
    fake = as_ensemble(FakeEnsemble(rule))
    for seed in range(25):
        tokens = random_tokens(seed, 1 + seed % 6)
        answer = Answer(0, "", "stop", 0, (), summarise(tokens, PRIOR, rule), tuple(tokens))
        prefixes = prefixes_of(fake, answer, (metric,), min_tokens)
        doubt = float(prefixes.max()) if len(prefixes) else -math.inf
        for threshold in (0.05, 0.3, 0.6, doubt):
            if not 0 <= threshold < math.inf:
                continue
            policy = Policy("abstain", metric, threshold, min_tokens)
            running = RunningDecision(policy, ChoiceTrace(PRIOR, rule, 1, tokens))
            running.catch_up()
            assert (running.decision.action == "answer") == (doubt <= threshold)


def test_truth_is_the_answer_or_what_most_said(tmp_path: Path) -> None:
    row = {"prompt": "p", "choices": ["a", "b", "c"]}
    rows: list[dict[str, Any]] = [
        {**row, "answer": 2, "votes": [9, 0, 0]},
        {**row, "votes": [1, 3, 1]},
        {**row, "votes": [2, 2, 0]},
        {**row, "ratings": {"x": ["a"], "y": ["a", "b"], "z": ["c"]}},
        row,
    ]
    questions = list(read_questions(written(tmp_path / "rows.jsonl", rows)))

    assert [truth_of(question) for question in questions] == [2, 1, None, 0, None]


def test_rows_that_count_more_than_others_are_refused_by_place(tmp_path: Path) -> None:
    rows = [*choices(3), {**choices(1)[0], "weight": 2}]
    questions = list(read_questions(written(tmp_path / "rows.jsonl", rows)))

    with pytest.raises(DataError, match=r"rows.jsonl:4: found weight 2"):
        outcomes_of(as_ensemble(FakeEnsemble()), questions, ("epistemic",), Asking())


def test_what_is_left_out_or_repeated_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*choices(60), choices(1)[0], {"prompt": "p", "choices": ["a", "b"], "votes": [1, 1]}]
    questions = list(read_questions(written(tmp_path / "rows.jsonl", rows)))

    found = outcomes_of(as_ensemble(FakeEnsemble()), questions, ("epistemic",), Asking())

    told = capsys.readouterr().err
    assert len(found) == 61
    assert "1 of 62 rows have no choice that is right, or several: they are left out" in told
    assert "1 of 61 rows ask what another row asks" in told


@pytest.mark.parametrize(
    ("rows", "wanted", "metrics", "complaint"),
    [
        (choices(49), Wanted(), (), "found 49 rows: expected at least 50"),
        ([*choices(50), *answers(1)], Wanted(), (), "rows.jsonl:51: a row of generation"),
        (choices(50), Wanted(), ("max_entropy",), "for decisions expected one of epistemic"),
        (choices(50), Wanted(), ("epistemic", "mutual_information"), "expected different ones"),
        (
            choices(50),
            Wanted(target_errors=(1.0,)),
            (),
            "--target-error is 1: expected a number between 0 and 1",
        ),
        (choices(50), Wanted(target_coverages=(0.5, 0.5)), (), "--target-coverage has a value twice"),
        (choices(50), Wanted(delta=0.0), (), "--delta is 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_asked(
    tmp_path: Path, rows: Any, wanted: Wanted, metrics: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=complaint):
        plan_of(written(tmp_path / "rows.jsonl", rows), metrics, wanted, Asking())


def test_calibration_says_how_it_was_made(tmp_path: Path) -> None:
    plan = plan_of(
        written(tmp_path / "rows.jsonl", answers(400)),
        ("max_epistemic",),
        Wanted(target_errors=(0.1,)),
        Asking(min_tokens=2),
    )

    found = calibrate(as_ensemble(FakeEnsemble()), plan)

    made = found.calibration
    assert (made.judged, made.metric, made.min_tokens, made.num_rows) == ("answers", "max_epistemic", 2, 400)
    assert made.settings.keys() == {"max_tokens", "temperature", "seed", "exact", "data", "data_digest"}
    assert made.threshold_for(Target(target_error=0.1)).threshold == pytest.approx(0.8, abs=0.1)
    assert "answer where max_epistemic <= 0." in table(found)
    assert json.loads(json.dumps(document(found)))["calibration"]["metric"] == "max_epistemic"


def an_ensemble(folder: Path, calibration: Calibration | None = None) -> Path:
    for member in range(2):
        (folder / f"member-{member}").mkdir(parents=True)
        (folder / f"member-{member}" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        (folder / f"member-{member}" / "adapter_model.safetensors").write_text("")
    said = {
        "name": "my",
        "base_model": {"path": "base"},
        "num_members": 2,
        "log_weights": [math.log(0.5)] * 2,
    }
    about = None if calibration is None else calibration.model_dump(mode="json")
    (folder / "ensemble.json").write_text(json.dumps({**said, "renyi_alpha": 0.8, "calibration": about}))
    return folder


def test_each_kind_keeps_its_place_in_the_manifest(tmp_path: Path) -> None:
    folder = an_ensemble(tmp_path / "my")

    write(folder, ANSWERS)
    write(folder, DECISIONS)
    write(folder, ANSWERS.model_copy(update={"num_rows": 7}))

    found = load_manifest(folder).calibration
    assert found is not None
    assert found.of("decisions") == DECISIONS
    answers_found = found.of("answers")
    assert answers_found is not None
    assert answers_found.num_rows == 7


def test_calibration_is_only_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    manifest = load_manifest(an_ensemble(tmp_path / "my", ANSWERS))

    require_room(manifest, "decisions", overwrite=False)
    require_room(manifest, "answers", overwrite=True)
    with pytest.raises(ConfigError, match="is calibrated for answers already: give --overwrite"):
        require_room(manifest, "answers", overwrite=False)
