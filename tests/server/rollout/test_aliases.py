"""Which ensemble an alias stands for: by weight over all callers, and always the same for one of them."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from softspec.errors import ConfigError
from softspec.server.rollout.aliases import Aliases, model_at, point_of, sticky_in
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.settings import Shadow, with_aliases

WEIGHTS = st.dictionaries(st.text(max_size=5), st.floats(0, 1_000_000), min_size=1).filter(
    lambda weights: any(weights.values())
)
POINTS = st.floats(0, 1, exclude_max=True)
CALLERS = [f"caller-{number}" for number in range(10_000)]


@given(WEIGHTS, POINTS)
def test_only_ensembles_with_a_weight_are_chosen(weights: dict[str, float], point: float) -> None:
    assert weights[model_at(weights, point)] > 0


@given(WEIGHTS, POINTS, st.randoms())
def test_order_in_which_weights_are_given_changes_nothing(
    weights: dict[str, float], point: float, random: Any
) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)

    assert model_at(dict(shuffled), point) == model_at(weights, point)


@given(POINTS, st.integers(0, 100), st.integers(0, 100))
def test_of_two_ensembles_the_one_that_grows_keeps_its_callers(point: float, one: int, other: int) -> None:
    less, more = sorted((one, other))

    before = model_at({"old": 100 - less, "new": less}, point)
    after = model_at({"old": 100 - more, "new": more}, point)

    assert (before, after) != ("new", "old")


@given(st.text(), st.text())
def test_every_text_has_one_place(alias: str, sticky: str) -> None:
    assert 0 <= point_of(alias, sticky) < 1
    assert point_of(alias, sticky) == point_of(alias, sticky)


@pytest.mark.parametrize("weights", [{"a": 90, "b": 10}, {"a": 1, "b": 1, "c": 2}, {"a": 0.05, "b": 0.95}])
def test_callers_divide_as_the_weights_do(weights: dict[str, float]) -> None:
    """Within five standard deviations of the binomial distribution."""
    aliases = Aliases({"my": weights})

    counted = Counter(aliases.chosen("my", caller) for caller in CALLERS)

    for name, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = math.sqrt(len(CALLERS) * share * (1 - share))
        assert abs(counted[name] - len(CALLERS) * share) < 5 * deviation


def test_two_aliases_divide_callers_in_ways_of_their_own() -> None:
    aliases = Aliases({"one": {"a": 1, "b": 1}, "two": {"a": 1, "b": 1}})

    alike = sum(aliases.chosen("one", caller) == aliases.chosen("two", caller) for caller in CALLERS)

    assert abs(alike - 5000) < 5 * 50


class Parsed(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("read", [dict, Parsed.model_validate], ids=["fields", "parsed"])
@pytest.mark.parametrize(
    ("fields", "sticky"),
    [
        ({"prompt_cache_key": "talk", "safety_identifier": "s", "user": "u"}, "talk"),
        ({"safety_identifier": "s", "user": "u"}, "s"),
        ({"user": "u", "metadata": {"user_id": "m"}}, "u"),
        ({"metadata": {"user_id": "m"}}, "m"),
        ({"user": "", "metadata": None, "prompt_cache_key": 3}, None),
        ({}, None),
    ],
)
def test_a_request_belongs_to_what_it_says_most_narrowly(
    read: Any, fields: dict[str, Any], sticky: str | None
) -> None:
    assert sticky_in(read(fields)) == sticky


# What an operator may say


def test_flags_take_the_place_of_the_aliases_of_the_file() -> None:
    file = {"my": {"demo": 1.0}, "other": {"demo": 1.0}}

    assert with_aliases(file, ["my=demo:90,demo-v2:10.5"]) == {
        "my": {"demo": 90, "demo-v2": 10.5},
        "other": {"demo": 1},
    }


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["my"], "--alias is 'my': expected NAME=ENSEMBLE:WEIGHT,..., such as my=demo:90,demo-v2:10"),
        (["my="], "--alias my: '': expected an ensemble and its weight, such as demo:90"),
        (["my=demo"], "--alias my: 'demo': expected an ensemble and its weight, such as demo:90"),
        (["my=demo:x"], "--alias my: 'demo:x': expected an ensemble and its weight"),
        (["my=demo:nan"], "--alias my: 'demo:nan': expected an ensemble and its weight"),
        (["my=demo:1,demo:2"], "--alias my: 'demo' is there twice: keep one"),
        (["my=demo:-1"], "--alias my.demo: expected a number of at least 0 (found -1.0)"),
        (["my=demo:inf"], "--alias my.demo: expected a number of at most 1000000"),
        (["my=demo:0"], "--alias my: expected ensembles with weights, at least one of them above 0"),
        (["my=demo:1", "my=demo:2"], "--alias names 'my' twice"),
        (["a/b=demo:1"], "an alias is named 'a/b': expected up to 64 letters"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_in_one_line(flags: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_aliases({}, flags)

    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


# What is served


def rollout(**aliases: dict[str, float]) -> Rollout:
    names = ["demo", "demo-v2"]
    return Rollout(names, lambda: [*names, "demo/member-0", "base"], Aliases(aliases))


def test_alias_may_name_an_ensemble_that_comes_later_with_weight_0() -> None:
    rollout(my={"demo": 1, "demo-v3": 0}).require_served()


@pytest.mark.parametrize(
    ("alias", "weights", "complaint"),
    [
        (
            "my",
            {"demo": 1, "demo-v3": 1},
            "'demo-v3', which is no ensemble that is served: expected demo, demo-v2",
        ),
        ("my", {"base": 1}, "'base', which is no ensemble"),
        ("my", {"my": 1}, "'my', which is no ensemble"),
        ("demo", {"demo-v2": 1}, "'demo' is a model that is served: give the alias another name"),
        ("base", {"demo": 1}, "'base' is a model that is served"),
    ],
)
def test_alias_that_leads_nowhere_is_refused(alias: str, weights: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        rollout(**{alias: weights}).require_served()

    assert complaint in str(error.value)


def test_ensemble_stays_while_an_alias_leads_to_it() -> None:
    running = rollout(my={"demo": 1, "demo-v2": 0})

    with running.unloading("demo-v2"):
        pass
    with (
        pytest.raises(ConfigError, match="alias 'my' stands for 'demo' too: give it weight 0 first"),
        running.unloading("demo"),
    ):
        pass


def test_ensemble_cannot_take_the_name_of_an_alias() -> None:
    with pytest.raises(ConfigError, match="'my' is an alias here"), rollout(my={"demo": 1}).loading("my"):
        pass


@pytest.mark.parametrize("move", ["loading", "unloading"])
def test_alias_and_ensemble_do_not_pass_each_other(move: str) -> None:
    running = rollout(my={"demo": 1})

    with getattr(running, move)("demo-v2"):
        for alias in ("my", "demo-v2"):
            with pytest.raises(ConfigError, match="'demo-v2' is being loaded or unloaded"):
                running.change({alias: {"demo-v2": 1}}, {})

    running.change({"my": {"demo-v2": 1}}, {})
    assert running.aliases["my"] == {"demo-v2": 1}


@pytest.mark.parametrize("move", ["loading", "unloading"])
def test_requests_can_be_led_away_from_what_comes_or_goes(move: str) -> None:
    running = rollout(my={"demo": 1})

    with getattr(running, move)("demo-v2"):
        running.change({"my": {"demo": 2, "demo-v2": 0}}, {"demo-v2": Shadow(of="my", share=0)})

    assert running.aliases["my"]["demo"] == 2
