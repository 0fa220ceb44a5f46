"""The plan's times: by hand where one thing binds, and beside what `bench serve` measured."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softspec.app.plan.case import Case, Load
from softspec.app.plan.device import DEVICES, Device
from softspec.app.plan.roofline import Tokens, decode_tokens, prompt_tokens, seconds_of, times_of, work_of
from softspec.engine.front.sharing import LEAST_TOKENS
from tests.support.planned import LLAMA_8B, SMOLLM2, case_of, measured_cells

INSTANT = 1e30
"""What a device does in no time."""


def on(case: Case, bandwidth: float = INSTANT, flops: float = INSTANT) -> Case:
    return replace(case, device=replace(case.device, bandwidth=bandwidth, flops=flops))


# By hand


def test_a_token_of_an_8b_llama_reads_its_weights_once_for_all_rows() -> None:
    """32 layers of 218,103,808 weights of 2 bytes at 4.8 TB/s: 2.91 ms, for one row or sixteen."""
    for users in (1, 4):
        work = work_of(case_of(users=users), decode_tokens(case_of(users=users)))

        assert work["layers"].seconds(case_of()) == pytest.approx(32 * 218_103_808 * 2 / 4.8e12)
        assert work["vocabulary"].bytes == 128256 * 4096 * 2


def test_every_row_reads_the_kv_cache_of_its_own_context() -> None:
    """In the middle of an answer of 500 after 1,000 tokens: 1,250 tokens of 128 KiB for each of 4 members."""
    work = work_of(case_of(), decode_tokens(case_of()))

    assert work["attention"].bytes == 4 * 1250 * 128 * 1024
    assert work["attention"].operations == 4 * 4 * 32 * 128 * 32 * 1250


def test_every_member_reads_its_own_adapter_and_every_row_computes_one() -> None:
    work = work_of(case_of(users=3), decode_tokens(case_of(users=3)))

    assert work["adapters"].bytes == 4 * 41_943_040 * 2
    assert work["adapters"].operations == 2 * 41_943_040 * 12


def test_products_are_compute_bound_where_rows_are_many() -> None:
    """989.5 TFLOP/s over 4.8 TB/s are 206 operations a byte, so 206 rows of 2-byte weights."""
    below, above = (case_of(members=1, users=users) for users in (206, 207))

    assert work_of(below, decode_tokens(below))["layers"].is_memory_bound(below)
    assert not work_of(above, decode_tokens(above))["layers"].is_memory_bound(above)


def test_a_shared_prompt_is_computed_once_and_its_end_by_every_member() -> None:
    """992 tokens, and 8 for each of 4 members; each of which attends to what stands before it."""
    tokens = prompt_tokens(case_of(), users=1)

    assert (tokens.upper, tokens.adapted, tokens.rows) == (992 + 32, 32, 4)
    assert tokens.upper_pairs == 992**2 / 2 + 4 * (1000**2 - 992**2) / 2


def test_without_blocks_every_member_computes_the_prompt() -> None:
    tokens = prompt_tokens(case_of(block_size=None), users=1)

    assert (tokens.upper, tokens.adapted) == (4000, 4000)


def test_first_token_of_one_adapter_is_two_operations_a_weight_and_token_where_computing_binds() -> None:
    case = on(case_of(members=1, block_size=None, prompt=512, rank=1), flops=1e12)

    layers = 2 * 32 * 218_103_808 * 512
    attention = 4 * 4096 * 32 * 512**2 / 2
    adapter = 2 * 41_943_040 / 16 * 512
    logits = 2 * 128256 * 4096
    assert times_of(case).first == pytest.approx((layers + attention + adapter + logits) / 1e12)


def test_layers_below_the_adapters_are_computed_once_on_a_cpu_and_for_every_member_on_a_gpu() -> None:
    cpu = case_of(SMOLLM2, "cpu", layers="top_third", users=8)
    gpu = case_of(SMOLLM2, "h200", layers="top_third", users=8)

    assert (decode_tokens(cpu).lower, decode_tokens(cpu).upper) == (8, 32)
    assert decode_tokens(gpu).lower == decode_tokens(gpu).upper == 32


def test_a_few_tokens_at_least_go_through_shared_layers() -> None:
    """As the engine is told: fewer take a CPU longer."""
    case = case_of(SMOLLM2, "cpu", layers="top_third", users=1)

    assert decode_tokens(case).lower == LEAST_TOKENS
    assert decode_tokens(case.alone).lower == 1


def test_adapters_in_few_layers_cost_a_gpu_as_much_as_in_all() -> None:
    few, all_layers = case_of(layers="top_third"), case_of()

    assert times_of(few).token == pytest.approx(times_of(all_layers).token)


def test_requests_are_counted_as_if_prompts_and_answers_took_turns() -> None:
    case = case_of(users=4)
    times = times_of(case)

    assert 4 / times.requests_per_s == pytest.approx(4 * times.first + 499 * times.token)


# Whatever the case


cases = st.builds(
    case_of,
    base=st.sampled_from([LLAMA_8B, SMOLLM2]),
    device=st.sampled_from(sorted(DEVICES)),
    members=st.integers(1, 8),
    layers=st.sampled_from(["all", "top_third"]),
    block_size=st.sampled_from([None, 32]),
    prompt=st.integers(1, 4096),
    output=st.integers(1, 512),
    users=st.integers(1, 64),
)


@settings(deadline=None)
@given(cases)
def test_an_ensemble_is_never_faster_than_one_adapter_nor_slower_than_its_members_one_by_one(
    case: Case,
) -> None:
    ours, theirs = times_of(case), times_of(case.alone)
    # Shared layers take a few tokens at least, though one user has but one.
    most = case.ensemble.members * (1 + 1e-9)

    assert theirs.token * (1 - 1e-9) <= ours.token <= most * theirs.token
    assert theirs.first * (1 - 1e-9) <= ours.first <= most * theirs.first


@settings(deadline=None)
@given(cases)
def test_faster_devices_are_never_slower(case: Case) -> None:
    faster: Device = replace(case.device, bandwidth=2 * case.device.bandwidth)

    assert times_of(replace(case, device=faster)).token <= times_of(case).token


@settings(deadline=None)
@given(cases, st.integers(1, 64))
def test_a_step_of_more_users_takes_at_least_as_long(case: Case, more: int) -> None:
    load = Load(case.load.context, case.load.output, case.load.users + more)

    assert times_of(replace(case, load=load)).token >= times_of(case).token * (1 - 1e-12)


@settings(deadline=None)
@given(cases)
def test_an_ensemble_of_one_is_one_adapter(case: Case) -> None:
    assert times_of(case.alone) == times_of(case.alone.alone)


def test_nothing_takes_no_time() -> None:
    nothing = Tokens(0, 0, 0, 0, 0, 0, 0, 0)

    assert seconds_of(on(case_of()), nothing) == pytest.approx(0)


# Beside what was measured


FACTOR = 1.7
"""Planned ratios are within this of the measured ones; `softspec/app/plan/README.md` has them side by side."""


def test_planned_ratios_are_near_the_measured_ones() -> None:
    found = [(cell, cell.planned / cell.measured) for cell in measured_cells()]

    assert len(found) == 24
    assert [(cell, error) for cell, error in found if not 1 / FACTOR < error < FACTOR] == []


def test_the_times_themselves_are_a_bound_from_below() -> None:
    """One member took 47.5 ms for a token alone and 68 with 16 users, the ensemble 46.1 and 132."""
    for users, member, ensemble in ((1, 47.5, 46.1), (16, 68, 132)):
        case = case_of(SMOLLM2, "cpu", 4, layers="top_third", prompt=32, output=16, users=users)

        assert 1e3 * times_of(case.alone).token < member
        assert 1e3 * times_of(case).token < ensemble
