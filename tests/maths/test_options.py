"""A choice between options: closed forms, limits, and properties against definitions in plain floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softspec.errors import ConfigError, ShapeError
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.options import OptionsUncertainty, weigh_options
from tests.support import oracle

HALVES = uniform_log_weights(2)


def logs(*members: list[float]) -> Tensor:
    return torch.tensor(members, dtype=torch.float64).log()


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[list[float]], list[float]]:
    """Members' probabilities of exclusive options, which need not sum to 1, and weights."""
    num_members, num_options = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    share = st.floats(1e-12, 1.0)
    members = []
    for _ in range(num_members):
        raw = draw(st.lists(share, min_size=num_options, max_size=num_options))
        mass = draw(st.floats(1e-9, 1.0))
        members.append([mass * value / sum(raw) for value in raw])
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=num_members, max_size=num_members))
    return members, [weight / sum(weights) for weight in weights]


def expected(members: list[list[float]], weights: list[float]) -> dict[str, float | list[float]]:
    """The definitions, one after the other."""
    mixture = oracle.mix(members, weights)
    label_mass = sum(mixture)
    inside = [[p / sum(member) for p in member] for member in members]
    behind = [w * sum(member) / label_mass for w, member in zip(weights, members, strict=True)]
    probabilities = [p / label_mass for p in mixture]
    total = oracle.entropy(probabilities)
    aleatoric = sum(w * oracle.entropy(q) for w, q in zip(behind, inside, strict=True))
    return {
        "probabilities": probabilities,
        "label_mass": label_mass,
        "total_entropy": total,
        "aleatoric_entropy": aleatoric,
        "epistemic": oracle.mutual_information(inside, behind),
    }


@settings(max_examples=200, deadline=None)
@given(choices())
def test_numbers_are_those_of_the_definitions(
    choice: tuple[list[list[float]], list[float]],
) -> None:
    members, weights = choice

    found = weigh_options(logs(*members), torch.tensor(weights, dtype=torch.float64).log())

    for name, value in expected(members, weights).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


@settings(max_examples=200, deadline=None)
@given(choices())
def test_members_mixed_by_what_stands_behind_the_answer_are_the_probabilities(
    choice: tuple[list[list[float]], list[float]],
) -> None:
    members, weights = choice

    found = weigh_options(logs(*members), torch.tensor(weights, dtype=torch.float64).log())

    mass = [w * sum(member) for w, member in zip(weights, members, strict=True)]
    behind = [value / sum(mass) for value in mass]
    assert oracle.mix(found.member_probabilities, behind) == pytest.approx(
        list(found.probabilities), abs=1e-12
    )
    assert all(sum(member) == pytest.approx(1) for member in found.member_probabilities)


@settings(max_examples=200, deadline=None)
@given(choices())
def test_numbers_stay_in_their_ranges(choice: tuple[list[list[float]], list[float]]) -> None:
    members, weights = choice

    found = weigh_options(logs(*members), torch.tensor(weights, dtype=torch.float64).log())

    assert sum(found.probabilities) == pytest.approx(1)
    assert 0 <= found.epistemic <= math.log(len(members)) + 1e-12
    assert found.aleatoric_entropy + found.epistemic == pytest.approx(found.total_entropy)
    assert 0 <= found.aleatoric_entropy <= found.total_entropy <= math.log(len(members[0])) + 1e-12
    assert 0 <= found.disagreement <= 1
    assert 0 < found.label_mass <= 1


@settings(max_examples=100, deadline=None)
@given(choices())
def test_one_member_alone_has_no_epistemic_uncertainty(
    choice: tuple[list[list[float]], list[float]],
) -> None:
    member = choice[0][0]

    found = weigh_options(logs(member), torch.zeros(1))

    assert (found.epistemic, found.disagreement) == (pytest.approx(0, abs=1e-12), 0)
    assert found.member_probabilities[0] == pytest.approx(found.probabilities)


def test_identical_members_have_no_epistemic_uncertainty() -> None:
    found = weigh_options(logs([0.3, 0.1], [0.3, 0.1]), HALVES)

    assert found.epistemic == pytest.approx(0, abs=1e-15)
    assert found.probabilities == pytest.approx((0.75, 0.25))
    assert found.label_mass == pytest.approx(0.4)


def test_two_certain_members_that_differ_leave_a_whole_bit_of_epistemic_uncertainty() -> None:
    found = weigh_options(logs([1.0, 0.0], [0.0, 1.0]), HALVES)

    assert (found.total_entropy, found.aleatoric_entropy) == (pytest.approx(math.log(2)), 0)
    assert (found.epistemic, found.disagreement) == (pytest.approx(math.log(2)), pytest.approx(0.5))


def test_member_that_hardly_answers_with_an_option_hardly_counts() -> None:
    """Its distribution over the options is another one, but its say is its share of the mass."""
    found = weigh_options(logs([0.9, 0.1], [0.001, 0.009]), HALVES)

    assert found.probabilities[0] == pytest.approx(0.901 / 1.01)
    assert found.member_probabilities[1] == pytest.approx((0.1, 0.9))
    assert found.disagreement == pytest.approx(0.01 / 1.01)


def test_masses_far_below_every_float_keep_their_ratio() -> None:
    """Long options under members that find none of them plausible."""
    scores = torch.tensor([[-900.0, -901.0], [-905.0, -903.0]], dtype=torch.float64)

    found = weigh_options(scores, HALVES)

    near = weigh_options(scores + 900, HALVES)
    assert found.probabilities == pytest.approx(near.probabilities)
    assert found.epistemic == pytest.approx(near.epistemic)
    assert found.label_mass == 0.0


def test_mass_of_the_smallest_floats_is_told() -> None:
    scores = torch.full((2, 2), math.log(1e-300), dtype=torch.float64)

    assert weigh_options(scores, HALVES).label_mass == pytest.approx(2e-300)


def test_member_to_whom_no_option_is_possible_counts_nothing() -> None:
    found = weigh_options(logs([0.6, 0.2], [0.0, 0.0]), HALVES)

    assert found.probabilities == pytest.approx((0.75, 0.25))
    assert found.member_probabilities[1] == (0.0, 0.0)
    assert (found.epistemic, found.disagreement) == (pytest.approx(0, abs=1e-15), 0)
    assert found.label_mass == pytest.approx(0.4)


def test_options_that_nobody_can_say_are_an_error() -> None:
    with pytest.raises(ConfigError, match="every option has probability 0"):
        weigh_options(logs([0.0, 0.0], [0.0, 0.0]), HALVES)


def test_number_of_members_must_be_that_of_the_weights() -> None:
    with pytest.raises(ShapeError):
        weigh_options(logs([0.5, 0.5]), HALVES)


def test_mean_of_a_token_takes_the_place_of_the_whole_option() -> None:
    """Two tokens of 0.5 each are then as likely as one; the mass is still that of the options."""
    scores = torch.tensor([[0.25, 0.5], [0.25, 0.5]], dtype=torch.float64).log()

    found = weigh_options(scores, HALVES, num_tokens=torch.tensor([2, 1]))

    assert found.probabilities == pytest.approx((0.5, 0.5))
    assert found.label_mass == pytest.approx(0.75)


def test_options_of_one_token_do_not_change_with_the_mean_of_a_token() -> None:
    scores = logs([0.6, 0.2], [0.1, 0.7])

    found = weigh_options(scores, HALVES, num_tokens=torch.tensor([1, 1]))

    assert found == weigh_options(scores, HALVES)


def fixed(members: list[list[tuple[float, ...]]]) -> OptionsUncertainty:
    """Options of several tokens under weights that are fixed at every token; each number is one token's."""
    whole = [[math.prod(option) for option in member] for member in members]
    mixture = [
        math.prod(sum(tokens) / len(members) for tokens in zip(*options, strict=True))
        for options in zip(*members, strict=True)
    ]
    return weigh_options(
        logs(*whole), HALVES, mixture_log_probs=torch.tensor(mixture, dtype=torch.float64).log()
    )


def test_weights_fixed_at_every_token_change_nothing_for_options_of_one_token() -> None:
    found = fixed([[(0.6,), (0.2,)], [(0.1,), (0.7,)]])

    other = weigh_options(logs([0.6, 0.2], [0.1, 0.7]), HALVES)
    assert found.probabilities == pytest.approx(other.probabilities)
    assert found.epistemic == pytest.approx(other.epistemic)


def test_weights_fixed_at_every_token_make_the_mixture_a_product() -> None:
    """Each member is sure of one option; mixed token by token, they say crossed ones too."""
    found = fixed([[(0.9, 0.9), (0.1, 0.1)], [(0.1, 0.1), (0.9, 0.9)]])

    assert found.probabilities == pytest.approx((0.5, 0.5))
    assert found.label_mass == pytest.approx(2 * 0.25)
    assert found.aleatoric_entropy + found.epistemic == pytest.approx(found.total_entropy)


def test_weights_fixed_at_every_token_leave_no_epistemic_uncertainty_below_zero() -> None:
    """The product may be surer than the members are."""
    found = fixed([[(0.9, 0.1), (0.3, 0.3)], [(0.1, 0.9), (0.3, 0.3)]])

    assert found.epistemic >= 0
    assert found.aleatoric_entropy == found.total_entropy
