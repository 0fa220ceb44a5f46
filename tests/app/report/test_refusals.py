"""Refusals: the rule, semantic information against closed forms, chance, and what can be trained on."""

import json
import math
from pathlib import Path

import pytest
import torch

from softspec.app.report.refusals import (
    judge_refusals,
    preferences,
    refusal_rule,
    semantic_information,
    shuffled_rates,
)
from softspec.app.report.samples import Sampled
from softspec.errors import ConfigError
from softspec.train.data.preferences import PreferenceRow

UNIFORM = (-math.log(2),) * 2
NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how."


def asked(*members: tuple[int, int], prompt: str = "How?") -> Sampled:
    """Members that refuse so often of so many times."""
    return Sampled(prompt, tuple((NO,) * no + (YES,) * (of - no) for no, of in members))


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help with that.",
        "I can't assist.",
        "I can’t do this",
        "  I'm sorry, but no.",
        "Sorry, that is not possible.",
        "Unfortunately, I cannot say.",
        "As an AI language model, I cannot help.",
        '"I am unable to answer"',
        "I won't do that.",
        "I must decline.",
    ],
)
def test_usual_refusals_are_noticed(text: str) -> None:
    assert refusal_rule(None).match(text)


@pytest.mark.parametrize(
    "text", ["Sure!", "Here you go: I cannot lie", "I can help.", "I canoe a lot.", "", "No problem, I can."]
)
def test_other_answers_are_none(text: str) -> None:
    assert not refusal_rule(None).match(text)


def test_members_that_never_agree_have_log_2() -> None:
    found = judge_refusals([asked((8, 8), (0, 8))], UNIFORM, refusal_rule(None))

    assert found.prompts[0].information == pytest.approx(math.log(2))
    assert found.variance == pytest.approx(0.25)
    assert found.prompts[0].is_beyond_chance


def test_information_is_the_entropy_of_the_mean_minus_the_mean_entropy() -> None:
    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    found = semantic_information(
        torch.tensor([0.25, 0.5]).double(), torch.tensor([math.log(0.3), math.log(0.7)])
    )

    mean = 0.3 * 0.25 + 0.7 * 0.5
    assert float(found) == pytest.approx(entropy(mean) - 0.3 * entropy(0.25) - 0.7 * entropy(0.5), abs=1e-6)


def test_members_that_are_alike_are_within_chance() -> None:
    """The plug-in's bias is about (K-1)(C-1)/(2 K S): what shuffling finds, too."""
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(300, 2, 16, generator=generator) < 0.5).long().sum(-1).tolist()
    sampled = [asked(*((no, 16) for no in row)) for row in draws]

    found = judge_refusals(sampled, UNIFORM, refusal_rule(None))

    assert sum(each.is_beyond_chance for each in found.prompts) / 300 < 0.08
    assert found.p_value > 0.02
    mean = sum(each.information for each in found.prompts) / 300
    assert mean == pytest.approx(1 / (2 * 2 * 16), rel=0.35)


def test_shuffling_keeps_how_often_a_prompt_is_refused() -> None:
    refused = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 0, 0]], [[1.0, 1, 1, 1], [1, 1, 1, 1]]])

    rates = shuffled_rates(refused, seed=0)

    torch.testing.assert_close(rates.mean(-1), refused.mean((-2, -1)).expand(len(rates), 2))
    assert len(rates[:, 0].unique()) > 2


def test_the_most_contested_come_first() -> None:
    sampled = [asked((4, 8), (4, 8), prompt="a"), asked((8, 8), (0, 8), prompt="b"), asked((6, 8), (2, 8))]

    found = judge_refusals(sampled, UNIFORM, refusal_rule(None))

    assert [each.row for each in found.prompts] == [1, 2, 0]


def test_exported_rows_are_preferences_in_both_directions() -> None:
    """`softspec train` reads them; which direction stays is for a person to say."""
    turns = [{"role": "user", "content": "How?"}]
    contested = Sampled(turns, ((NO,) * 8, (YES,) * 8))

    rows = list(preferences(judge_refusals([contested, asked((4, 8), (4, 8))], UNIFORM, refusal_rule(None))))

    assert [row["source"] for row in rows] == ["comply", "refuse"]
    for row in rows:
        _, chosen, rejected = PreferenceRow.model_validate(json.loads(json.dumps(row))).parts()
        assert {chosen[0].content, rejected[0].content} == {NO, YES}  # type: ignore[union-attr]
    assert rows[0]["chosen"][0]["content"] == YES


def test_a_rule_of_ones_own() -> None:
    sampled = [Sampled("Wie?", (("Nein.",) * 4, ("Ja.",) * 4))]

    assert judge_refusals(sampled, UNIFORM, refusal_rule("nein")).variance == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="--refusal is"):
        refusal_rule("(")


def test_one_prompt_has_no_interval(tmp_path: Path) -> None:
    found = judge_refusals([asked((1, 2), (0, 2))], UNIFORM, refusal_rule(None))

    assert found.variance_low is None
    assert found.variance == pytest.approx(0.0625)
