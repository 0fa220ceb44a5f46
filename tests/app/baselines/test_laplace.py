"""Last-layer Laplace: the posterior against a closed form, its scores against a model with another head."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from softspec.app.baselines.laplace import (
    DoesNotApply,
    LastLayer,
    _labelled,
    _labels_of,
    last_layer_records,
    moved_record,
)
from softspec.app.baselines.run import OfSeed, Plan
from softspec.app.baselines.scoring import loaded
from softspec.ensemble.backend import Asked
from softspec.evaluation.records import Record, read_records
from softspec.train.data.units import Example, Preference
from softspec.train.run import read_data
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.slow

LABELS = ((5, 2), (6, 9, 2), (7, 2))


def layer_and_data() -> tuple[LastLayer, Tensor, Tensor]:
    """Three classes on four features, with a hundred labelled states."""
    torch.manual_seed(0)
    layer = LastLayer(LlamaForCausalLM(tiny_config(hidden=4)), LABELS)
    states = torch.randn(100, 4) * torch.tensor([1.0, 2.0, 0.5, 1.0])
    classes = torch.distributions.Categorical(logits=states.double() @ layer.weight.T).sample()
    return layer, states, classes


def test_the_posterior_is_the_closed_form(packages: None) -> None:
    """Kronecker factors and the marginal likelihood in a few lines of numpy: precision G x A + delta."""
    layer, states, classes = layer_and_data()
    weight, features = layer.weight.numpy(), states.double().numpy()
    probs = np.exp(features @ weight.T)
    probs /= probs.sum(1, keepdims=True)
    curvature = np.stack([np.diag(p) - np.outer(p, p) for p in probs]).mean(0)
    hessian = np.kron(curvature, features.T @ features)

    def minus_evidence(log_precision: float) -> float:
        precision = np.exp(log_precision)
        logdet = np.linalg.slogdet(hessian + precision * np.eye(12))[1]
        return 0.5 * (logdet - 12 * log_precision + precision * (weight**2).sum())

    precision = np.exp(minimize_scalar(minus_evidence, bounds=(-10, 10), method="bounded").x)
    expected = np.linalg.inv(hessian + precision * np.eye(12))

    draws = layer.posterior_draws(states, classes, 40_000, seed=0)

    moved = (draws - layer.weight).flatten(1).numpy()
    assert moved.mean(0) == pytest.approx(0, abs=0.02)
    assert np.cov(moved.T) == pytest.approx(expected, abs=0.05 * expected.max())
    assert torch.equal(draws[:3], layer.posterior_draws(states, classes, 40_000, seed=0)[:3])


@torch.no_grad()
def test_moved_scores_are_those_of_a_model_with_the_drawn_head() -> None:
    """At the first token of an answer; the tokens behind it are as likely as before."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(replace_tied(tiny_config())).eval()
    layer, prompt = LastLayer(model, LABELS), torch.tensor([[3, 8, 11, 4]])
    states = model.model(prompt).last_hidden_state[0, -1:]
    before = model(prompt).logits[0, -1].double().log_softmax(-1)
    rest = torch.tensor([-0.5, -2.0, -0.25], dtype=torch.float64)
    known = tuple((before[layer.tokens] + rest).tolist())
    record = Record(
        row=0,
        form="choices",
        item="x",
        choices=("a", "b", "c"),
        log_probs=known,
        member_log_probs=(known,),
        num_tokens=(2, 3, 2),
        answer=0,
    )
    draws = layer.weight + 0.3 * torch.randn(2, *layer.weight.shape, dtype=torch.float64)

    logprobs = layer.logprobs(states, model(prompt).logits[0, -1:])[0].double()
    moved = torch.einsum("h,sch->sc", states[0].double(), draws - layer.weight)
    found = moved_record(record, LABELS, LABELS, logprobs, moved)

    for member, draw in zip(found.member_log_probs, draws, strict=True):
        model.lm_head.weight[layer.tokens] = draw.float()
        after = model(prompt).logits[0, -1].double().log_softmax(-1)
        assert member == pytest.approx((after[layer.tokens] + rest).tolist(), abs=1e-4)
    mixture = torch.tensor(found.member_log_probs).logsumexp(0) - np.log(2)
    assert found.log_probs == pytest.approx(mixture.tolist(), abs=1e-4)


def replace_tied(config: object) -> object:
    config.tie_word_embeddings = False  # type: ignore[attr-defined]
    return config


def test_a_draw_that_moves_nothing_leaves_the_adapters_scores(finished: tuple[Plan, OfSeed]) -> None:
    _, found = finished
    record = next(read_records(found.scores_of("single")))
    labels = ((1,), (2,), (3,))

    same = moved_record(
        record, labels, labels, torch.tensor([-1.0, -2.0, -3.0]).double(), torch.zeros(2, 3).double()
    )

    assert same.member_log_probs[0] == pytest.approx(record.log_probs)
    assert same.log_probs == pytest.approx(record.log_probs)


def test_laplace_is_about_the_adapter_and_less_sure(finished: tuple[Plan, OfSeed]) -> None:
    _, found = finished
    rows = zip(read_records(found.scores_of("single")), read_records(found.scores_of("laplace")), strict=True)

    for single, laplace in rows:
        assert laplace.choices == single.choices
        assert len(laplace.member_log_probs) == 3
        assert laplace.log_probs != pytest.approx(single.log_probs, abs=1e-6)


def test_states_that_training_kept_give_the_scores_of_states_computed_anew(
    finished: tuple[Plan, OfSeed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found = finished
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path))
    units, _ = read_data(plan.config)
    single, scores = plan.folder / "seed-0" / "single", found.scores_of("single")

    def rescored(frozen_cache_gb: float) -> list[Record]:
        config = plan.config.model_copy(update={"frozen_cache_gb": frozen_cache_gb})
        with loaded(single, plan.data) as ensemble:
            return list(last_layer_records(ensemble, config, units, plan.data.path, scores, 3, seed=0))

    anew, kept = rescored(0), rescored(4)

    assert any((tmp_path / "frozen").glob("*/*"))
    for one, other in zip(anew, kept, strict=True):
        assert np.array(other.member_log_probs) == pytest.approx(np.array(one.member_log_probs), abs=1e-3)


def test_it_says_where_it_does_not_apply() -> None:
    row, other = Asked("a", (3,), LABELS), Asked("b", (3,), LABELS[:2])
    with pytest.raises(DoesNotApply, match="the same choices in all rows"):
        _labels_of([row, other])
    with pytest.raises(DoesNotApply, match="first tokens differ"):
        _labels_of([Asked("a", (3,), ((5, 2), (5, 6, 2)))])
    assert _labels_of([row, replace(row, answers=LABELS[::-1])]) == LABELS

    one, two = Example((3,), LABELS[0]), Example((4,), LABELS[1])
    with pytest.raises(DoesNotApply, match="not preferences"):
        _labelled([Preference(one, two)], LABELS)
    with pytest.raises(DoesNotApply, match="knows no weights"):
        _labelled([replace(one, weight=0.5), two], LABELS)
    with pytest.raises(DoesNotApply, match="answered with 2 of the choices, found 1"):
        _labelled([one, Example((4,), (9, 9))], LABELS)
    examples, classes = _labelled([one, two, Example((4,), (9, 9))], LABELS)
    assert (examples, classes.tolist()) == ([one, two], [0, 1])


def test_a_base_that_does_something_to_its_logits_is_refused(finished: tuple[Plan, OfSeed]) -> None:
    plan, _ = finished
    model = AutoModelForCausalLM.from_pretrained(plan.config.base_model)
    layer, states = LastLayer(model, LABELS), 100 * torch.randn(2, model.config.hidden_size)
    with torch.no_grad():
        logits = model.lm_head(states)

    layer.logprobs(states, logits)
    with pytest.raises(DoesNotApply, match="linear map"):
        layer.logprobs(states, 10 * torch.tanh(logits / 10))
