"""Ways from examples to gradients: one pass, two passes, parts of a step, and units of every granularity, all alike."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import renyi_loss, responsibilities
from softspec.train.loop.facts import as_json
from softspec.train.loop.passes import Pass, add_gradients
from softspec.train.loop.state import Training
from softspec.train.loop.step import moved_log_weights, optimizer_step
from softspec.train.members.likelihood import (
    collate,
    completion_logprobs,
    member_loglik,
    pair_loglik,
    tail_length,
    with_trunk,
)
from softspec.train.members.pairs import Pairs
from softspec.train.members.spec import decoder_layers
from softspec.train.objective.completions import Completions
from softspec.train.objective.routing import Routing
from tests.support.tiny_training import (
    chat_rows,
    config_of_no_files,
    examples_of,
    gradients_of,
    preference_rows,
    prepared,
    write_config,
    write_rows,
)

ALPHA = 0.3


def exact(folder: Path, **settings: Any) -> Training:
    """A run in float64 whose three members differ: B begins as noise, and nothing is skipped."""
    settings = {"num_members": 3, "b_init_std": 0.3, "skip_responsibility": 0.0, **settings}
    training = prepared(folder, **settings)
    training.members.model.double()
    return training


def preferring(folder: Path, **settings: Any) -> Training:
    """A run in float64 on preferences."""
    write_config(folder)
    write_rows(
        folder / "pairs.jsonl", [{**row, "group": "AB"[n % 2]} for n, row in enumerate(preference_rows())]
    )
    return exact(folder, objective="dpo", beta=0.5, train_file="pairs.jsonl", **settings)


def grouped(folder: Path, **settings: Any) -> Training:
    """A run in float64 on completions of three annotators."""
    write_config(folder)
    rows = [{**row, "group": number % 3} for number, row in enumerate(chat_rows())]
    write_rows(folder / "grouped.jsonl", rows)
    return exact(folder, granularity="group", train_file="grouped.jsonl", **settings)


def gradients(training: Training, active_members: float = 3.0) -> tuple[list[Tensor], Pass]:
    """The gradients of one step with all examples; few active members lead to two passes."""
    training.optimizer.zero_grad()
    training.active_members = active_members
    done = add_gradients(training, training.examples, ALPHA)
    return gradients_of(training.members), done


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * one.abs().max().item())


def autograd(training: Training, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradient of K times a mean over examples, whose sum `loss` makes of log-likelihoods (K, B)."""
    batch = collate(examples_of(training), training.config.activation, training.members.model.device)
    total = loss(member_loglik(training.members, batch))
    scaled = training.config.num_members * total / len(training.examples)
    return list(torch.autograd.grad(scaled, training.members.parameters()))


@pytest.mark.parametrize("build", [exact, preferring, grouped], ids=["completions", "preferences", "groups"])
@pytest.mark.parametrize("activation", [{"kind": "always"}, {"kind": "block", "block_size": 8}], ids=str)
def test_one_pass_and_two_passes_and_parts_give_one_gradient(
    tmp_path: Path, build: Callable[..., Training], activation: dict[str, Any]
) -> None:
    whole = build(tmp_path, micro_batch_size=12, activation=activation)
    parts = build(tmp_path, micro_batch_size=5, activation=activation)

    one_pass, done = gradients(whole)
    two_passes, done_twice = gradients(whole, active_members=0.0)
    in_parts, done_in_parts = gradients(parts)
    in_parts_twice, _ = gradients(parts, active_members=0.0)

    assert max(gradient.abs().max() for gradient in one_pass) > 0.01
    assert_equal(two_passes, one_pass)
    assert_equal(in_parts, one_pass)
    assert_equal(in_parts_twice, one_pass)
    for other in (done_twice, done_in_parts):
        torch.testing.assert_close(other.loglik, done.loglik, rtol=1e-9, atol=1e-9)
        assert (other.active, other.skipped) == (36, 0)


@pytest.mark.parametrize("active_members", [3.0, 0.0], ids=["one pass", "two passes"])
@pytest.mark.parametrize("build", [exact, preferring, grouped], ids=["completions", "preferences", "groups"])
def test_a_micro_batch_in_pieces_gives_the_gradient_of_the_whole(
    tmp_path: Path, build: Callable[..., Training], active_members: float
) -> None:
    training = build(tmp_path, micro_batch_size=12)
    with patch("softspec.train.loop.passes.LIKE_LENGTHS", 100.0):
        whole, done = gradients(training, active_members)

    kind = type(training.objective)
    with (
        patch("softspec.train.loop.passes.LIKE_LENGTHS", 0.1),  # not even one is like itself
        patch.object(kind, "batch", autospec=True, side_effect=kind.batch) as batch,
    ):
        in_pieces, done_in_pieces = gradients(training, active_members)

    assert batch.call_count == 12
    assert_equal(in_pieces, whole)
    torch.testing.assert_close(done_in_pieces.loglik, done.loglik, rtol=1e-9, atol=1e-9)
    assert done_in_pieces.active == done.active


def test_only_units_of_like_length_are_one_piece(tmp_path: Path) -> None:
    training = exact(tmp_path, micro_batch_size=12, activation={"kind": "block", "block_size": 32})
    with patch.object(Completions, "batch", autospec=True, side_effect=Completions.batch) as batch:
        gradients(training)

    for call in batch.call_args_list:
        lengths = [tail_length(unit, training.config.activation) for unit in call.args[2]]
        assert max(lengths) <= 1.4 * min(lengths)


def test_a_step_runs_examples_of_like_length_together(tmp_path: Path) -> None:
    training = exact(tmp_path, micro_batch_size=4, gradient_accumulation_steps=3)
    with patch.object(Completions, "batch", autospec=True, side_effect=Completions.batch) as batch:
        optimizer_step(training, 0)

    lengths = [
        tail_length(unit, training.config.activation)
        for call in batch.call_args_list
        for unit in call.args[2]
    ]
    assert len(set(lengths)) > 1
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("active_members", [3.0, 0.0], ids=["one pass", "two passes"])
def test_what_is_differentiated_is_minus_responsibility_times_log_likelihood(
    tmp_path: Path, active_members: float
) -> None:
    """Bit for bit, with responsibilities that are constants: the loss itself is never differentiated."""
    settings = {"micro_batch_size": 12, "skip_responsibility": 0.05, "b_init_std": 1.0}
    training = exact(tmp_path, **settings)
    members, activation = training.members, training.config.activation
    batch = with_trunk(members, collate(examples_of(training), activation, members.model.device))

    found, done = gradients(training, active_members)

    shares = responsibilities(done.loglik, training.log_weights, ALPHA)
    counted = shares >= 0.05
    member, example = counted.nonzero(as_tuple=True)
    if active_members:
        loglik, weights = member_loglik(members, batch), 3 / 12 * shares * counted
    else:
        loglik, weights = pair_loglik(members, batch, Pairs(example, member, 12)), 3 / 12 * shares[counted]
    expected = torch.autograd.grad((-weights * loglik).sum(), members.parameters())
    assert 12 <= counted.sum() < 36
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_two_passes_run_backward_only_where_a_member_counts(tmp_path: Path) -> None:
    training = exact(tmp_path, micro_batch_size=12, skip_responsibility=0.05, b_init_std=1.0)
    complete, done = gradients(training)
    rows: list[int] = []
    decoder_layers(training.members.model)[-1].register_forward_hook(
        lambda layer, args, output: rows.append(len(output))
    )

    skipping, skipped = gradients(training, active_members=0.0)

    shares = responsibilities(done.loglik, training.log_weights, ALPHA)
    counted = shares >= 0.05
    assert 12 <= counted.sum() < 36
    assert rows[-2:] == [36, counted.sum()]
    assert skipped.active == counted.sum()
    assert skipped.skipped == pytest.approx(shares[~counted].sum().item())
    assert skipped.active_members == counted.sum() / 12
    for one, other in zip(skipping, complete, strict=True):
        assert (one - other).norm() < 0.2 * other.norm()


@pytest.mark.parametrize("build", [exact, preferring, grouped], ids=["completions", "preferences", "groups"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_one_pass_leaves_the_same_rows_out_of_its_backward(
    tmp_path: Path, build: Callable[..., Training], checkpointing: bool
) -> None:
    settings = {"skip_responsibility": 0.25, "b_init_std": 1.0, "gradient_checkpointing": checkpointing}
    training = build(tmp_path, micro_batch_size=12, **settings)
    expected, done_twice = gradients(training, active_members=0.0)

    with patch.object(Pairs, "only", autospec=True, side_effect=Pairs.only) as only:
        found, done = gradients(training)

    assert_equal(found, expected)
    assert (done.active, done.skipped) == (done_twice.active, pytest.approx(done_twice.skipped))
    assert 12 <= done.active < 36
    completions_per_row = len(training.examples[0].completions)
    assert {len(call.args[1]) for call in only.call_args_list} == {completions_per_row * done.active}
    assert len(only.call_args_list) == len(training.members.linears)


def test_a_member_that_counts_nowhere_gets_no_gradient(tmp_path: Path) -> None:
    training = exact(tmp_path, micro_batch_size=12, skip_responsibility=0.3)
    training.log_weights = torch.tensor([0.98, 0.019, 0.001], dtype=torch.float64).log()
    with torch.no_grad():
        for weight in training.members.parameters():
            weight[1:] = weight[:1]

    found, done = gradients(training, active_members=0.0)

    assert done.active == 12
    assert done.skipped == pytest.approx(12 * 0.02, rel=1e-6)
    assert all(not gradient[1:].any() for gradient in found)
    assert any(gradient[0].any() for gradient in found)


def test_preferences_of_one_prompt_run_it_once(tmp_path: Path) -> None:
    training = preferring(tmp_path, micro_batch_size=12, activation={"kind": "block", "block_size": 8})
    sizes: list[int] = []
    decoder_layers(training.members.model)[0].register_forward_hook(
        lambda layer, args, output: sizes.append(len(output))
    )

    gradients(training)

    prompts = {example.prompt_ids for example in examples_of(training)}
    assert len(prompts) == 3
    assert sizes == [3, 2 * 12 * 3]


def test_a_group_is_one_unit_of_the_objective(tmp_path: Path) -> None:
    training = grouped(tmp_path, micro_batch_size=5)

    found, done = gradients(training)

    columns = {
        group: [n for n, unit in enumerate(training.examples) if unit.bundle == group] for group in "012"
    }

    def loss(loglik: Tensor) -> Tensor:
        sums = torch.stack([loglik[:, columns[group]].sum(1) for group in "012"], 1)
        return renyi_loss(sums, training.log_weights, ALPHA).sum()

    assert_equal(found, autograd(training, loss))
    assert done.routing.loss(done.loglik).item() == pytest.approx(loss(done.loglik).item())


def test_tokens_are_units_of_the_mixture_with_fixed_weights(tmp_path: Path) -> None:
    training = exact(tmp_path, micro_batch_size=12, granularity="token", activation={"kind": "always"})

    _, done = gradients(training)

    batch = collate(examples_of(training), training.config.activation, training.members.model.device)
    logprobs = completion_logprobs(training.members, batch)
    tokens = logprobs[:, range(logprobs.shape[1]), batch.targets[batch.supervised]].double()
    torch.testing.assert_close(done.loglik, tokens, rtol=1e-5, atol=1e-5)
    expected = -(training.log_weights[:, None] + ALPHA * tokens).logsumexp(0).sum() / ALPHA
    assert done.routing.loss(done.loglik).item() == pytest.approx(expected.item(), rel=1e-5)
    parts, _ = gradients(
        exact(tmp_path, micro_batch_size=5, granularity="token", activation={"kind": "always"})
    )
    assert_equal(parts, gradients(training)[0])


def test_lengths_that_divide_order_and_weight_are_mean_token_log_likelihoods(tmp_path: Path) -> None:
    """alpha / T and 1 / T together are the objective of log-likelihoods divided by T."""
    training = exact(tmp_path, length_exponent=1.0, reference_length=1.0, length_weighting="own_length")

    found, _ = gradients(training)

    lengths = torch.tensor([len(example.completion_ids) for example in examples_of(training)])
    assert len(set(lengths.tolist())) > 1
    expected = autograd(
        training, lambda loglik: renyi_loss(loglik / lengths, training.log_weights, ALPHA).sum()
    )
    assert_equal(found, expected)


def test_longer_completions_are_routed_more_softly_and_never_beyond_the_mixture(tmp_path: Path) -> None:
    training = exact(tmp_path, length_exponent=0.5, length_weighting="mean_length")

    _, done = gradients(training)

    lengths = torch.tensor([len(example.completion_ids) for example in examples_of(training)]).double()
    expected = (ALPHA * (lengths.mean() / lengths).sqrt()).clamp_max(1)
    torch.testing.assert_close(done.routing.renyi_alpha, expected)
    torch.testing.assert_close(done.routing.loss_weights, (1 / lengths.mean()).expand(12))


def test_the_length_of_a_group_is_compared_with_the_mean_of_what_is_dealt_together(tmp_path: Path) -> None:
    """Twelve examples of three annotators, two at a time: six pieces, but one step has all rows of an annotator."""
    training = grouped(
        tmp_path, micro_batch_size=12, group_rows=2, length_exponent=1.0, length_weighting="mean_length"
    )

    _, done = gradients(training)

    lengths = torch.tensor([len(example.completion_ids) for example in examples_of(training)]).double()
    routed = torch.stack([lengths[group::3].sum() for group in range(3)])
    torch.testing.assert_close(done.routing.renyi_alpha, (ALPHA * (lengths.sum() / 6) / routed).clamp_max(1))
    torch.testing.assert_close(done.routing.loss_weights, (6 / lengths.sum()).expand(3))


def test_an_example_counts_as_much_as_its_weight(tmp_path: Path) -> None:
    write_config(tmp_path)
    rows = chat_rows()
    write_rows(tmp_path / "weighted.jsonl", [{**row, "weight": 1 + n} for n, row in enumerate(rows)])
    training = exact(tmp_path, train_file="weighted.jsonl")

    found, _ = gradients(training)

    weights = torch.arange(1, 13)
    expected = autograd(
        training, lambda loglik: (weights * renyi_loss(loglik, training.log_weights, ALPHA)).sum()
    )
    assert_equal(found, expected)


def test_in_a_group_a_weight_is_as_good_as_repetition(tmp_path: Path) -> None:
    write_config(tmp_path)
    rows = [{**row, "group": number % 3} for number, row in enumerate(chat_rows())]
    write_rows(tmp_path / "weighted.jsonl", [{**row, "weight": 2} for row in rows])
    write_rows(tmp_path / "repeated.jsonl", rows * 2)
    weighted = exact(tmp_path, granularity="group", train_file="weighted.jsonl")
    repeated = exact(tmp_path, granularity="group", train_file="repeated.jsonl")

    found, expected = gradients(weighted)[0], gradients(repeated)[0]

    assert_equal(found, [2 * gradient for gradient in expected])


def counted(path: Path, rows: list[dict[str, Any]], repeat: bool) -> None:
    """Rows of which every third counts twice and every third three times: by their weight, or by being there."""
    counts = [1 + number % 3 for number in range(len(rows))]
    pairs = list(zip(rows, counts, strict=True))
    weighted = [{**row, "weight": count} for row, count in pairs]
    write_rows(path, [row for row, count in pairs for _ in range(count)] if repeat else weighted)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"granularity": "token", "activation": {"kind": "always"}},
        {"length_weighting": "mean_length"},
        {"objective": "dpo", "beta": 0.5},
        {"weights_learning_rate": 0.5},
    ],
    ids=str,
)
def test_what_a_step_tells_of_weights_is_what_it_tells_of_repeated_rows(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The same loss, NLLs, load, margins and mixture weights: all are means in which a row counts as it weighs."""
    rows = preference_rows() if "objective" in settings else chat_rows()
    found = {}
    for repeat, name in enumerate(("weighted", "repeated")):
        (tmp_path / name).mkdir()
        counted(tmp_path / name / "rows.jsonl", rows, bool(repeat))
        training = exact(
            tmp_path / name, train_file="rows.jsonl", micro_batch_size=24, renyi_alpha=ALPHA, **settings
        )
        facts = as_json(optimizer_step(training, 0)) | {"after": training.log_weights.exp().tolist()}
        found[name] = facts

    assert len(training.examples) == 24
    told = {
        "loss",
        "mixture_nll",
        "member_nll",
        "load",
        "routing_perplexity",
        "margins",
        "accuracies",
        "after",
    }
    for key in told & found["weighted"].keys():
        assert found["weighted"][key] == pytest.approx(found["repeated"][key], rel=1e-6), key


def test_learnt_weights_reach_the_best_mixture_of_fixed_members() -> None:
    """Examples count as they weigh and have orders of their own; the oracle is a minimiser that knows no EM."""
    generator = torch.Generator().manual_seed(0)
    loglik = 3 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    counts = torch.rand(20, generator=generator, dtype=torch.float64) + 0.1
    orders = torch.rand(20, generator=generator, dtype=torch.float64) * 0.9 + 0.1
    config = config_of_no_files(num_members=3, weights_learning_rate=0.5, weights_floor=1e-6)

    def routing(log_weights: Tensor) -> Routing:
        ones = torch.ones_like(counts)
        return Routing(log_weights, orders, 0.0, torch.arange(20), ones, counts, counts)

    log_weights = uniform_log_weights(3).double()
    for _ in range(3000):
        shares = routing(log_weights).responsibilities(loglik)
        log_weights = moved_log_weights(log_weights, routing(log_weights).best_weights(shares), config)

    free = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    minimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> Tensor:
        minimiser.zero_grad()
        value = routing(free.log_softmax(0)).loss(loglik)
        value.backward()
        return value

    minimiser.step(loss)
    torch.testing.assert_close(log_weights.exp(), free.detach().softmax(0), atol=1e-4, rtol=0)
    assert (shares.mean(1) - log_weights.exp()).abs().max() > 0.005, "a plain mean would do as well"


@pytest.mark.parametrize("floor", [1.0, math.nextafter(1, 0)])
@pytest.mark.parametrize("goal", [[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
def test_a_floor_of_one_or_next_to_it_keeps_mixture_weights_equal(goal: list[float], floor: float) -> None:
    config = config_of_no_files(num_members=3, weights_learning_rate=0.5, weights_floor=floor)

    moved = moved_log_weights(uniform_log_weights(3).double(), torch.tensor(goal), config)

    assert moved.exp().tolist() == pytest.approx([1 / 3] * 3)


def test_weights_move_with_the_steps_and_never_below_their_floor(tmp_path: Path) -> None:
    training = prepared(
        tmp_path, b_init_std=0.3, weights_learning_rate=0.5, weights_floor=0.4, renyi_alpha=1.0
    )

    facts = [optimizer_step(training, step) for step in range(6)]

    assert facts[0].weights == [0.5, 0.5]
    assert facts[5].weights != [0.5, 0.5]
    assert min(min(fact.weights or []) for fact in facts) >= 0.2 - 1e-9
    assert all(sum(fact.weights or []) == pytest.approx(1) for fact in facts)


def keeping_in(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """What notes each tensor that autograd saves."""

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return keep


@pytest.mark.parametrize("activation", [{"kind": "always"}, {"kind": "block", "block_size": 8}], ids=str)
@pytest.mark.parametrize("layers", ["all", [1]], ids=["all layers", "upper layer"])
def test_checkpointing_keeps_less_and_changes_no_gradient(
    tmp_path: Path, activation: dict[str, Any], layers: Any
) -> None:
    kept: dict[bool, list[Tensor]] = {}
    found: dict[bool, list[Tensor]] = {}
    for checkpointing in (False, True):
        training = exact(
            tmp_path,
            micro_batch_size=12,
            activation=activation,
            layers_to_transform=layers,
            gradient_checkpointing=checkpointing,
        )
        with torch.autograd.graph.saved_tensors_hooks(
            keeping_in(kept.setdefault(checkpointing, [])), lambda tensor: tensor
        ):
            found[checkpointing], _ = gradients(training)

    assert_equal(found[True], found[False])
    sizes = {key: sum(tensor.numel() for tensor in tensors) for key, tensors in kept.items()}
    assert sizes[True] < 0.5 * sizes[False]
