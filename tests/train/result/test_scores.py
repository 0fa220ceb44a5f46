"""Held-out scores: equal to a slow calculation, and independent of how examples are batched."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from softspec.artefact.activation import AlwaysActivation, BlockActivation
from softspec.maths.mixture import uniform_log_weights
from softspec.train.loop.facts import as_json
from softspec.train.members.likelihood import collate, completion_logprobs
from softspec.train.members.members import Members
from softspec.train.result.scores import Scores, score_examples, summarise_scores
from softspec.train.run import held_out_scores
from tests.support.tiny_training import (
    chat_rows,
    preference_rows,
    prepared,
    random_examples,
    tiny_members,
    write_config,
    write_rows,
)

WEIGHTS = uniform_log_weights(3)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return tiny_members(tmp_path_factory.mktemp("base"))


def test_scores_do_not_depend_on_the_batch_size(members: Members) -> None:
    examples = random_examples()
    activation = BlockActivation(block_size=32)

    one, four = (score_examples(members, examples, WEIGHTS, activation, size) for size in (1, 4))

    torch.testing.assert_close(one.loglik, four.loglik, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.base_loglik, four.base_loglik, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.path_information, four.path_information, atol=1e-4, rtol=0)
    assert one.num_tokens.tolist() == [len(example.completion_ids) for example in examples]


def test_path_information_uses_prefix_weights_in_both_terms(members: Members) -> None:
    """Token by token in float64, straight from the definition."""
    example = random_examples(((6, 5),))[0]
    predictives = completion_logprobs(
        members, collate([example], AlwaysActivation(), torch.device("cpu"))
    ).double()
    expected, weights = 0.0, [1 / 3] * 3
    for step, token in enumerate(example.completion_ids):
        probabilities = predictives[:, step].exp()
        mixture = sum(w * p for w, p in zip(weights, probabilities, strict=True))
        expected += sum(
            w * (p * (p / mixture).log()).sum().item() for w, p in zip(weights, probabilities, strict=True)
        )
        joint = [w * p[token].item() for w, p in zip(weights, probabilities, strict=True)]
        weights = [part / sum(joint) for part in joint]

    scores = score_examples(members, [example], WEIGHTS, AlwaysActivation())

    assert scores.path_information.item() == pytest.approx(expected, abs=1e-4)


def test_the_summary_says_what_the_formulas_say_of_each_example(members: Members) -> None:
    scores = score_examples(members, random_examples(), WEIGHTS, AlwaysActivation())

    summary = summarise_scores(scores, WEIGHTS, renyi_alpha=0.5, weights_rule="prefix_posterior")

    columns = scores.loglik.T
    power_means = [2 * ((0.5 * column).exp() / 3).sum().log().item() for column in columns]
    mixtures = [(column.exp() / 3).sum().log().item() for column in columns]
    assert summary.renyi_loss == pytest.approx(-statistics.fmean(power_means))
    assert summary.mixture_nll == pytest.approx(-statistics.fmean(mixtures))
    assert summary.member_nll == pytest.approx(-statistics.fmean(columns.flatten().tolist()))
    assert 0 <= summary.mutual_information <= math.log(3)
    assert 1 <= summary.routing_perplexity <= 3
    assert summary.tokens == sum(len(example.completion_ids) for example in random_examples())


@pytest.mark.parametrize(("said", "expected"), [(0.9, 0.325), (0.5, 0.693)])
def test_nine_votes_to_one_are_best_explained_by_who_says_so(said: float, expected: float) -> None:
    """Counted by heads the undecided model would win, 0.693 to 1.204."""
    loglik = torch.tensor([[said, 1 - said]], dtype=torch.float64).log()
    scores = Scores(
        loglik=loglik,
        base_loglik=loglik[0],
        fixed_weights_loglik=loglik[0],
        path_information=torch.zeros(2),
        weights=torch.tensor([0.9, 0.1]),
        num_tokens=torch.tensor([1, 1]),
        sources=(None, None),
    )

    summary = summarise_scores(scores, torch.zeros(1), 0.8, "prefix_posterior")

    for name in ("mixture_nll", "fixed_weights_nll", "member_nll", "base_nll", "renyi_loss"):
        assert getattr(summary, name) == pytest.approx(expected, abs=5e-4), name


@pytest.mark.parametrize(
    "settings", [{}, {"granularity": "token"}, {"objective": "dpo", "beta": 0.5}], ids=str
)
def test_a_held_out_row_of_weight_three_scores_as_three_rows(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """From the file to the facts, which decide when a run stops."""
    dpo = "objective" in settings
    rows = [{**row, "source": "AB"[n % 2]} for n, row in enumerate(preference_rows() if dpo else chat_rows())]
    write_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "weighted.jsonl", [{**row, "weight": 1 + n % 3} for n, row in enumerate(rows)])
    write_rows(tmp_path / "repeated.jsonl", [row for n, row in enumerate(rows) for _ in range(1 + n % 3)])
    found = {}
    for name in ("train", "weighted", "repeated"):
        training = prepared(tmp_path, b_init_std=0.3, eval_file=f"{name}.jsonl", **settings)
        training.members.model.double()
        scores = held_out_scores(training)
        assert scores
        found[name] = as_json(scores)

    counts = {"examples", "tokens", "preferences"}
    for key, value in found["repeated"].items():
        if key not in counts:
            assert found["weighted"][key] == pytest.approx(value, rel=1e-6), key
    assert found["weighted"]["mixture_nll"] != pytest.approx(found["train"]["mixture_nll"], rel=1e-3)


def test_the_served_mixture_gives_the_mixture_nll(members: Members) -> None:
    """Two mixtures exist: that of whole completions, and that of tokens, whose weights no prefix updates."""
    example = random_examples()[1]
    scores = score_examples(members, [example], WEIGHTS, AlwaysActivation())
    logprobs = completion_logprobs(members, collate([example], AlwaysActivation(), torch.device("cpu")))
    chosen = logprobs[:, range(7), list(example.completion_ids)].double()

    rules = {rule: summarise_scores(scores, WEIGHTS, 1.0, rule) for rule in ("prefix_posterior", "fixed")}

    fixed = -(WEIGHTS[:, None] + chosen).logsumexp(0).sum().item()
    prefix = -(WEIGHTS + chosen.sum(1)).logsumexp(0).item()
    assert rules["fixed"].mixture_nll == pytest.approx(fixed, rel=1e-6)
    assert rules["prefix_posterior"].mixture_nll == pytest.approx(prefix, rel=1e-6)
    assert rules["fixed"].prefix_posterior_nll == pytest.approx(prefix, rel=1e-6)
    assert abs(fixed - prefix) > 0.01


def test_without_sources_there_is_no_source_score(members: Members) -> None:
    scores = score_examples(members, random_examples(), WEIGHTS, AlwaysActivation())

    assert summarise_scores(scores, WEIGHTS, 1.0, "fixed").soft_source_mi is None
