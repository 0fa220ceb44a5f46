"""lm-polygraph's scores of a model's answers, against what they are of."""

import json
from pathlib import Path

import numpy as np
import pytest

from softspec.app.baselines.beside import FOLDER, beside
from softspec.app.baselines.compare import compared, polygraph_metrics, table
from softspec.app.baselines.polygraph import ESTIMATORS
from softspec.app.baselines.run import OfSeed, run_baselines
from softspec.ensemble.load import load
from softspec.errors import ConfigError
from softspec.evaluation.judge import Asked
from softspec.evaluation.records import RECORD, read_records
from softspec.evaluation.rows import read_questions
from tests.app.baselines.conftest import choice_rows, plan_in

pytestmark = pytest.mark.slow


def test_scores_are_of_the_single_adapters_answers(packages: None, tmp_path: Path) -> None:
    rows = [{"messages": row["messages"], "answers": [row["answer"]]} for row in choice_rows(4)]
    plan = plan_in(tmp_path, rows, only=["polygraph"], samples=3, max_tokens=6)

    (found,) = run_baselines(plan)
    (again,) = run_baselines(plan)

    assert again.polygraph == found.polygraph
    assert set(found.polygraph) == set(ESTIMATORS)
    prompts = [question.prompt for question in read_questions(plan.data.path)]
    with load(plan.folder / "seed-0" / "single", backend="transformers") as ensemble:
        greedy = ensemble.generate(prompts, max_tokens=6, temperature=0, progress=False)
        drawn = ensemble.generate(prompts, max_tokens=6, seed=0, n=3, progress=False)
    sums = np.array([answer.uncertainty.log_prob for answer in greedy])
    lengths = np.array([answer.uncertainty.num_tokens for answer in greedy])
    of_draws = np.array([answer.uncertainty.log_prob for answer in drawn]).reshape(-1, 3)
    assert found.polygraph["MaximumSequenceProbability"] == pytest.approx(-sums, rel=1e-4)
    assert found.polygraph["Perplexity"] == pytest.approx(-sums / lengths, rel=1e-4)
    entropies = [answer.uncertainty.total_entropy for answer in greedy]
    assert found.polygraph["MeanTokenEntropy"] == pytest.approx(entropies, rel=1e-4)
    assert found.polygraph["MonteCarloSequenceEntropy"] == pytest.approx(-of_draws.mean(1), rel=1e-4)
    assert "how lm-polygraph ranks the answers of single" in table(compared(plan, [found], Asked(draws=20)))
    assert [
        record.generated.text for record in read_records(found.scores_of("single")) if record.generated
    ] == [answer.text for answer in greedy]


def test_a_ranking_that_puts_wrong_answers_last_is_the_best(packages: None, tmp_path: Path) -> None:
    rows = [{"messages": row["messages"], "answers": [row["answer"]]} for row in choice_rows(12)]
    plan = plan_in(tmp_path, rows, only=["base"], max_tokens=2)
    (found,) = run_baselines(plan)
    scores = judged_alternately(found)

    metrics = polygraph_metrics(scores, {"Best": [0.0, 1.0] * 6, "Worst": [1.0, 0.0] * 6}, Asked(draws=50))

    assert metrics["prr_Best"]["value"] == pytest.approx(1)
    assert metrics["prr_Worst"]["value"] == pytest.approx(-1)
    assert metrics["aurc_Best"]["n"] == 12


def judged_alternately(found: OfSeed) -> Path:
    """The base's scores, with every second answer said to be right, beginning with the first."""
    path = found.scores_of("base")
    header, *lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        content = json.loads(line)
        content["generated"] |= {"normalised": number % 2 == 0}
        RECORD.validate_python(content)
        lines[number] = json.dumps(content)
    path.write_text("\n".join([header, *lines, ""]))
    return path


def test_what_is_missing_is_one_line_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"no_such_library is not installed .*: run 'make baselines', or pip"
    ):
        beside("no_such_library.part")
    assert FOLDER.name == "baselines"
