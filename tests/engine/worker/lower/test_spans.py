"""Which rows of a step compute the lower layers, and for whom."""

from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softspec.engine.wire import Adapter, GroupSpec, Seat
from softspec.engine.worker.lower.spans import Span, bare_depth, shared_depth, sources
from softspec.maths.sampling import SamplingSpec


def span(group: str | None, first: int, tokens: int = 1, member: int = 0, first_layer: int = 2) -> Span:
    if group is None:
        return Span(None, first, tokens)
    adapters = tuple(Adapter(f"{group}/{k}", 1 + k, "path") for k in range(4))
    spec = GroupSpec(adapters, (0.0,) * 4, "fixed", None, 0, first_layer=first_layer)
    return Span(Seat(group, member, spec, SamplingSpec()), first, tokens)


class _Row(NamedTuple):
    group: str | None
    first: int
    tokens: int


ROWS = st.lists(
    st.builds(_Row, st.sampled_from(["a", "b", "c", None]), st.integers(0, 3), st.integers(1, 4)), max_size=12
)
DEPTHS = {"a": 1, "b": 3, "c": 0}
"""The members of c have adapters in all layers."""


@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # the first draw loads Hypothesis' tables
@given(rows=ROWS, least=st.integers(0, 8))
def test_every_row_is_computed_once_by_a_row_of_its_own_group_that_has_its_tokens(
    rows: list[_Row], least: int
) -> None:
    spans = [
        span(group, first, tokens, member, DEPTHS[group] if group else 0)
        for member, (group, first, tokens) in enumerate(rows)
    ]

    chosen = sources(spans, least)

    for row, source in enumerate(chosen):
        assert chosen[source] == source
        if source != row:
            assert rows[row].group == rows[source].group in ("a", "b")
            assert set(_positions(rows[row])) <= set(_positions(rows[source]))
    kept = [row for row, source in enumerate(chosen) if source == row]
    assert sum(rows[row].tokens for row in kept) >= min(least, sum(row.tokens for row in rows))
    saved = {rows[row].group for row in range(len(rows)) if row not in kept}
    assert shared_depth(spans, chosen) == min((DEPTHS[group] for group in saved if group), default=0)
    if not least:
        kept_spans = {(rows[row].group, rows[row].first, rows[row].tokens) for row in kept}
        assert len([row for row in kept if rows[row].group in ("a", "b")]) == len(
            {each for each in kept_spans if each[0] in ("a", "b")}
        )


def _positions(row: _Row) -> range:
    return range(row.first, row.first + row.tokens)


def test_leader_computes_for_all_when_a_group_decodes_whatever_the_order_of_rows() -> None:
    spans = [span("a", 9, member=member) for member in (2, 0, 3, 1)]

    assert sources(spans, least=1) == [1, 1, 1, 1]


def test_member_that_lags_behind_computes_for_itself() -> None:
    spans = [span("a", 9, member=0), span("a", 9, member=1), span("a", 4, 5, member=2)]

    assert sources(spans, least=1) == [0, 0, 2]


def test_longer_span_computes_for_a_shorter_one_inside_it() -> None:
    spans = [span("a", 6, 2, member=0), span("a", 4, 5, member=1)]

    assert sources(spans, least=1) == [1, 1]


@pytest.mark.parametrize(("users", "kept"), [(1, 4), (2, 4), (5, 5)])
def test_four_rows_are_kept_at_least(users: int, kept: int) -> None:
    spans = [span(f"user-{user}", user, member=member) for user in range(users) for member in range(4)]

    chosen = sources(spans, least=4)

    assert len(set(chosen)) == kept


@pytest.mark.parametrize(
    ("spans", "depth"),
    [
        ([], 0),
        ([span("a", 1, first_layer=3), span("b", 1, first_layer=2)], 2),
        ([span("a", 1, first_layer=3), span(None, 1)], 0),
        ([span("a", 1, first_layer=0)], 0),
    ],
    ids=["no rows", "two ensembles", "an ordinary request", "adapters everywhere"],
)
def test_layers_are_bare_below_every_adapter_of_the_step(spans: list[Span], depth: int) -> None:
    assert bare_depth(spans) == depth
