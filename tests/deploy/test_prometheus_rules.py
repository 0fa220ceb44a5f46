"""Prometheus' own tool reads its files, the alerts do what their cases say, and each has a case and an explanation.

That the series exist is in `test_watched_server.py`.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from softspec.server.ops.metrics import METRICS
from tests.deploy.tools import PROMTOOL

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
TESTS = ("rules_test.yml", "rules_week_test.yml")
promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: apt-get download prometheus")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True)


@promtool
@pytest.mark.parametrize(
    "words", ["check config --lint-fatal prometheus.yml", "check rules --lint-fatal rules.yml"]
)
def test_files_are_understood(words: str) -> None:
    done = run(*words.split())

    assert done.returncode == 0, done.stdout + done.stderr


@promtool
@pytest.mark.parametrize("file", TESTS)
def test_alerts_fire_when_they_should_and_not_before(file: str) -> None:
    done = run("test", "rules", file)

    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_a_case_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    text = (FOLDER / "rules_test.yml").read_text(encoding="utf-8").replace("rules.yml", f"{FOLDER}/rules.yml")
    (tmp_path / "wrong.yml").write_text(text.replace('alertname="SoftspecDown"', 'alertname="Other"'))

    assert run("test", "rules", str(tmp_path / "wrong.yml")).returncode == 1


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = "".join((FOLDER / file).read_text(encoding="utf-8") for file in TESTS)

    named = {rule["alert"] for rule in alerts()}

    assert named == set(re.findall(r"alertname(?:: |=\")(\w+)", cases))


def test_every_alert_says_what_is_wrong_and_where_to_read_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(rule["alert"] for rule in alerts()) == sorted(headings)
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"deploy/prometheus/README.md#{rule['alert'].lower()}"


def test_our_metrics_in_rules_are_metrics() -> None:
    text = (FOLDER / "rules.yml").read_text(encoding="utf-8")

    named = set(re.findall(r"(?<![\w:])softspec_\w+(?=[\[{) ])", text))

    assert named
    assert named <= {metric.name for metric in METRICS}


def test_what_must_never_happen_has_an_alert() -> None:
    """Whatever `METRICS` says of a counter that it must stay 0."""
    text = (FOLDER / "rules.yml").read_text(encoding="utf-8")
    never = [metric.name for metric in METRICS if "must stay 0" in metric.help]

    assert len(never) == 2
    assert all(f"increase({name}[" in text for name in never)
