"""The dashboard is one that Grafana can read, and one that can be read. No Grafana runs here.

Its file is held against Grafana's own types (grafana-foundation-sdk); that its series exist is in
`test_watched_server.py`.
"""

import json
import re
from copy import deepcopy
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from softspec.server.ops.metrics import METRICS
from tests.deploy.dashboard import FILE, document, panels

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
"""Colours that people with any colour vision tell apart (Okabe and Ito, 2008)."""
SUBJECTS = {
    "traffic": "softspec_requests_total",
    "latency for users": "softspec_request_seconds",
    "first token": "softspec_time_to_first_token_seconds",
    "latency of vLLM": "vllm:e2e_request_latency_seconds",
    "mutual information": "softspec_mutual_information_nats",
    "disagreement": "softspec_disagreement_ratio",
    "drift": "softspec_confidence_drift_ratio",
    "decisions": "softspec_decisions_total",
    "rates of abstention and routing": "job_model_decision:softspec_requests:ratio_rate6h",
    "upstreams": "softspec_upstream_requests_total",
    "breaker": "softspec_upstream_circuit_open",
    "lockstep": "softspec_lockstep_errors_total",
    "preemptions": "softspec_group_preemptions_total",
    "KV cache": "vllm:kv_cache_usage_perc",
}
TEXT = FILE.read_text(encoding="utf-8")


def unknown_to_grafana(dashboard: dict[str, Any]) -> list[str]:
    """The places in a dashboard that Grafana's types do not keep."""
    plugins.register_default_plugins()
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    return list(lost(dashboard, kept, ""))


def lost(given: Any, kept: Any, place: str) -> list[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = [f"{place}.{key}" for key in given.keys() - kept.keys()]
        return missing + [
            each
            for key in given.keys() & kept.keys()
            for each in lost(given[key], kept[key], f"{place}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [each for number, (one, other) in pairs for each in lost(one, other, f"{place}[{number}]")]
    return [] if given == kept else [place]


def test_every_field_is_one_of_grafanas() -> None:
    assert unknown_to_grafana(document()) == []


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    wrong = deepcopy(document())
    wrong["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
    wrong["panels"][0]["targets"][0]["query"] = "up"
    wrong["panels"][0]["options"]["colour"] = "red"

    assert len(unknown_to_grafana(wrong)) == 3


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subject_has_a_panel(subject: str) -> None:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]

    assert any(SUBJECTS[subject] in text for text in asked)


def test_every_panel_says_what_it_shows_in_which_unit_and_what_to_do() -> None:
    for panel in panels():
        assert len(panel["description"]) > 20
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    ids = [panel["id"] for panel in document()["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in document()["panels"]]

    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


def test_everybody_can_tell_the_colours_apart() -> None:
    named = set(re.findall(r"\"(?:fixedColor|color)\": \"([^\"]+)\"", TEXT))

    assert named - {"transparent"} <= OKABE_ITO
    assert "palette-classic" not in TEXT
    for panel in panels():
        fixed = [
            each["value"]["fixedColor"]
            for override in panel["fieldConfig"]["overrides"]
            for each in override["properties"]
            if each["id"] == "color"
        ]
        assert len(fixed) == len(set(fixed)), panel["title"]


def test_models_can_be_chosen() -> None:
    variables = {each["name"]: each for each in document()["templating"]["list"]}

    assert set(variables) == {"datasource", "model"}
    assert variables["model"]["query"]["query"] == "label_values(softspec_requests_total, model)"
    of_models = [text for text in re.findall(r"softspec_\w+\{[^}]*", TEXT) if "upstream" not in text]
    assert all("$model" in text for text in of_models)


def test_lines_are_drawn_where_alerts_begin() -> None:
    rules = yaml.safe_load((FILE.parents[2] / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    limits = {
        rule["alert"]: rule["expr"].split(" > ")[-1]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }

    drawn = {panel["title"]: panel["fieldConfig"]["defaults"].get("thresholds") for panel in panels()}

    assert drawn["Confidence drift"]["steps"][1]["value"] == float(limits["SoftspecConfidenceDrifted"])
    assert drawn["KV cache in use"]["steps"][1]["value"] == float(limits["SoftspecKVCacheFull"])


def test_our_metrics_in_it_are_metrics() -> None:
    named = set(re.findall(r"(?<![\w:])softspec_\w+?(?=_bucket\b|[\[{), ])", TEXT)) - {
        "softspec_requests_total"
    }

    assert named
    assert named <= {metric.name for metric in METRICS}
