"""What may be said to the chart: every value is explained, and a wrong one is refused before anything is installed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.support.chart import CHART, EXAMPLES, LEAST, default_values, explained_values

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def paths(value: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Where the leaves of a mapping are."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from paths(inner, *above, key)
    else:
        yield above


def complaints(values: Mapping[str, Any]) -> list[str]:
    """Where values are wrong, of the defaults with these in their place."""
    found = Draft7Validator(SCHEMA).iter_errors({**default_values(), **values})
    return [".".join(map(str, error.absolute_path)) for error in found]


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA)


def test_every_value_is_explained() -> None:
    explained = {path for path, _, _ in explained_values()}

    assert [path for path in paths(default_values()) if not {path[:1], path[:2], path} & explained] == []


def test_every_value_has_a_line_in_the_schema_and_a_default() -> None:
    # Helm itself gives `global` to every chart.
    assert SCHEMA["properties"].keys() - {"global"} == default_values().keys()
    for name, value in default_values().items():
        if inner := SCHEMA["properties"][name].get("properties"):
            assert not value or inner.keys() == value.keys(), name


def test_the_defaults_lack_an_ensemble_and_nothing_else() -> None:
    assert complaints({}) == ["ensembles"]
    assert complaints(LEAST) == []


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_say_nothing_unknown(example: Any) -> None:
    assert complaints({**LEAST, **yaml.safe_load(example.read_text(encoding="utf-8"))}) == []


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"replicaCount": 3}, ""),
        ({"keys": {"inline": "sk-1"}}, "keys"),
        ({"ensembles": [{"name": "my"}]}, "ensembles.0"),
        ({"ensembles": [{"name": "my", "claim": "a", "image": "b"}]}, "ensembles.0"),
        ({"ensembles": [{"name": "My", "claim": "a"}]}, "ensembles.0.name"),
        ({"ensembles": [{"name": "my", "claim": "a", "subPath": "../b"}]}, "ensembles.0.subPath"),
        ({"ensembles": [{"name": "my", "hostPath": "/a"}]}, "ensembles.0"),
        ({"base": {"subPath": "a"}}, "base"),
        ({"args": ["my"]}, "args.0"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": {"A-B": "1"}}, "env"),
        ({"secretEnv": {"A": "sk-1"}}, "secretEnv.A"),
        ({"image": {"digest": "latest"}}, "image.digest"),
        ({"opsPort": 8000}, "opsPort"),
        ({"preStopSeconds": 0}, "preStopSeconds"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget.maxUnavailable"),
        ({"autoscaling": {"minReplicas": 0}}, "autoscaling.minReplicas"),
        ({"networkPolicy": {"clients": {}}}, "networkPolicy.clients"),
        ({"networkPolicy": {"egress": [{}]}}, "networkPolicy.egress.0"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_wrong_values_are_refused_where_they_are(values: Mapping[str, Any], place: str) -> None:
    assert place in complaints({**LEAST, **values})
