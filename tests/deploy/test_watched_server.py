"""A real Prometheus with our configuration, rules and dashboard watches a real server that is asked many things.

Whatever a rule or a panel names is there, moves when it should, and stays 0 when it should.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from softspec.app.child_server import free_port
from softspec.artefact.manifest import load_manifest
from softspec.server.ops.metrics import METRICS
from tests.deploy.dashboard import expressions
from tests.deploy.tools import PROMETHEUS
from tests.support.calibrations import ANSWERS
from tests.support.real_server import RealServer, softspec_server
from tests.support.scripted_upstream import ScriptedUpstream, answer, chat_answer, error
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus: apt-get download prometheus"),
]

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
NAME, SHADOW = "law", "law-2"
STILL = {
    "softspec_lockstep_errors_total",
    "softspec_mixing_errors_total",
    "softspec_record_errors_total",
    "softspec_group_preemptions_total",
    "vllm:num_preemptions_total",
}
"""Counters that nothing here may move; they are there all the same."""


@dataclass
class Watcher:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that an expression is now.

        Raises:
            HTTPStatusError: Prometheus does not understand it.
        """
        response = httpx2.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        assert response.status_code == 200, f"{expression}: {response.text}"
        return list(response.json()["data"]["result"])

    def value(self, expression: str) -> float:
        """The one number that an expression is now; NaN where it is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else float("nan")

    def rules(self) -> list[dict[str, Any]]:
        groups = httpx2.get(f"{self.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def comes_to(self, state: Callable[[], bool], timeout_s: float = 60) -> bool:
        """Whether something becomes true within so many seconds."""
        deadline = time.monotonic() + timeout_s
        while not state() and time.monotonic() < deadline:
            time.sleep(0.2)
        return state()


@dataclass
class Watched:
    server: RealServer
    prometheus: Watcher


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Both processes, when Prometheus has seen the traffic."""
    folder = tmp_path_factory.mktemp("watched")
    base = tiny_llama(folder / "base")
    ensemble = random_adapters(base, folder / NAME, num_members=2, name=NAME)
    calibrated = load_manifest(ensemble).model_copy(update={"calibration": ANSWERS})
    (ensemble / "ensemble.json").write_text(calibrated.model_dump_json())
    shadow = random_adapters(base, folder / SHADOW, num_members=2, name=SHADOW)
    settings = folder / "server.yaml"
    settings.write_text(yaml.safe_dump({"shadows": {SHADOW: {"of": NAME, "share": 1}}}))
    with ExitStack() as stack:
        large = stack.enter_context(ScriptedUpstream([answer(chat_answer("Ask a lawyer."))]))
        broken = stack.enter_context(ScriptedUpstream([error(500)]))
        once = "max_retries=0,circuit_failures=1,circuit_open_s=600"
        flags = [
            "--server-config",
            str(settings),
            "--upstream",
            f"large={large.url},model=big-1",
            "--upstream",
            f"broken={broken.url},model=x,{once}",
        ]
        server = stack.enter_context(softspec_server([ensemble, shadow], folder / "log", *flags))
        server.wait_until_ready()
        prometheus = stack.enter_context(_prometheus(folder, server.url))
        assert prometheus.comes_to(lambda: prometheus.value('up{job="softspec"}') == 1)
        assert server.chat(NAME, max_tokens=1).status_code == 200
        # vLLM's own count of answers begins at 1: it has risen once there was a scrape between two of them.
        assert prometheus.comes_to(lambda: bool(prometheus.query('http_requests_total{handler=~"/v1/.*"}')))
        _ask_all_kinds_of_things(server)
        seen = 'softspec_upstream_circuit_open{upstream="broken"} == 1'
        assert prometheus.comes_to(lambda: bool(prometheus.query(seen)))
        assert prometheus.comes_to(
            lambda: bool(prometheus.query("job_model:softspec_requests:increase6h > 0"))
        )
        yield Watched(server, prometheus)


@contextmanager
def _prometheus(folder: Path, target: str) -> Iterator[Watcher]:
    """Prometheus with our files, but for whom it asks and how often."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / file) for file in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "metrics",
        "web.listen-address": address,
    }
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [str(PROMETHEUS), *(f"--{name}={value}" for name, value in flags.items())],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    watcher = Watcher(f"http://{address}")
    try:
        assert watcher.comes_to(lambda: _answers(f"{watcher.url}/-/ready")), (
            folder / "prometheus.log"
        ).read_text()
        yield watcher
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def _ask_all_kinds_of_things(server: RealServer) -> None:
    """Whatever a metric counts or measures: answered, withheld, routed, refused; questions and existing answers."""

    def policy(action: str, **more: Any) -> dict[str, Any]:
        fields = {"action": action, "metric": "max_epistemic", "threshold": 0.0, **more}
        return {"uncertainty": {"policy": fields}}

    def post(path: str, **body: Any) -> int:
        return httpx2.post(f"{server.url}{path}", json={"model": NAME, **body}, timeout=120).status_code

    for _ in range(3):
        assert server.chat(NAME, n=40, max_tokens=2, temperature=1).status_code == 200
    assert server.chat(NAME, stream=True, max_tokens=8).status_code == 200
    assert server.chat(f"{NAME}/member-0", max_tokens=4).status_code == 200
    for more in (policy("abstain"), policy("route", upstream="large"), policy("route", upstream="broken")):
        assert server.chat(NAME, max_tokens=4, **more).status_code == 200
    assert server.chat(NAME, temprature=1).status_code == 400
    question = {"type": "predicate", "name": "allowed", "instructions": "It is allowed."}
    assert post("/v1/decisions", input="May I?", questions=[question]) == 200
    said = {
        "messages": [{"role": "user", "content": "May I?"}],
        "answers": ["Yes."],
        "finish_reason": "length",
    }
    assert post("/v1/uncertainty", **said) == 200


def test_every_panel_shows_numbers(watched: Watched) -> None:
    empty = []
    for title, expression in expressions("1m"):
        found = watched.prometheus.query(
            expression.replace(" offset 1w", "")
        )  # nobody asked anything last week
        if not any(sample["value"][1] != "NaN" for sample in found):
            empty.append(f"{title}: {expression}")

    assert empty == []


def test_every_rule_can_be_evaluated(watched: Watched) -> None:
    def all_evaluated() -> bool:
        return all(rule["health"] == "ok" for rule in watched.prometheus.rules())

    assert watched.prometheus.comes_to(all_evaluated), [
        rule.get("lastError") for rule in watched.prometheus.rules()
    ]
    assert len(watched.prometheus.rules()) == 14


def named() -> set[str]:
    """Every metric of a rule or a panel, as Prometheus knows it."""
    asked = [expression for _, expression in expressions("1m")]
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    text = re.sub(r"\"[^\"]*\"", "", " ".join(asked))
    return set(re.findall(r"\b(?:job_\w+:)?(?:softspec_|vllm:|http_)[\w:]+|\bup\b", text))


def test_every_metric_that_is_named_has_samples(watched: Watched) -> None:
    missing = [name for name in sorted(named()) if not watched.prometheus.query(name)]

    assert len(named()) > 25
    assert missing == []


@pytest.mark.parametrize("name", sorted(each for each in named() if each.endswith(("_total", "_bucket"))))
def test_what_counts_has_moved_and_faults_have_not(name: str, watched: Watched) -> None:
    moved = watched.prometheus.value(f"sum(increase({name}[10m]))")

    assert moved == 0 if name in STILL else moved > 0


@pytest.mark.parametrize("decision", ["answer", "abstain", "route"])
def test_decisions_are_counted_from_the_first(decision: str, watched: Watched) -> None:
    """Also of a kind that had not been taken before."""
    counted = f'softspec_requests_total{{decision="{decision}", model="{NAME}"}}'

    assert watched.prometheus.value(f"increase({counted}[10m])") > 0
    assert watched.prometheus.value(f"min_over_time({counted}[10m])") == 0


def test_models_are_told_apart_where_it_matters(watched: Watched) -> None:
    found = watched.prometheus.query("softspec_lockstep_errors_total")

    assert {sample["metric"]["model"] for sample in found} == {
        each for name in (NAME, SHADOW) for each in (name, f"{name}/member-0", f"{name}/member-1")
    }
    assert {sample["value"][1] for sample in found} == {"0"}


def test_when_series_began_is_not_kept(watched: Watched) -> None:
    assert watched.prometheus.query('{__name__=~"softspec_.+_created"}') == []
    assert watched.prometheus.query('{__name__=~"softspec_.+"}')


def test_only_the_upstream_that_is_left_alone_raises_an_alert(watched: Watched) -> None:
    def raised() -> set[tuple[str, str]]:
        found = watched.prometheus.query("ALERTS")
        return {(each["metric"]["alertname"], each["metric"].get("upstream", "")) for each in found}

    assert watched.prometheus.comes_to(lambda: bool(raised()))
    assert raised() - {("SoftspecConfidenceDrifted", "")} == {("SoftspecUpstreamOpen", "broken")}


def test_our_metrics_that_nothing_shows_are_few() -> None:
    """What is in no panel and in no rule was left out on purpose."""
    shown = {re.sub(r"_bucket$", "", name) for name in named()}

    assert {metric.name for metric in METRICS} - shown == {
        "softspec_epistemic_nats",
        "softspec_confidence_ratio",
    }


def test_server_that_is_gone_is_noticed(watched: Watched) -> None:
    """The last test of this file: it ends the server."""
    watched.server.process.send_signal(signal.SIGTERM)
    assert watched.server.process.wait(60) == 0

    found = 'ALERTS{alertname="SoftspecDown"}'
    assert watched.prometheus.comes_to(lambda: bool(watched.prometheus.query(found)))
