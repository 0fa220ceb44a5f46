"""`softspec compare` against a server whose metrics are known."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from softspec.app.cli.main import main
from softspec.maths.answer import AnswerUncertainty, summarise
from softspec.server.ops.metrics import METRICS, Metrics
from softspec.server.policy.policy import ANSWER, Decision
from tests.support.fake_engine import AGREED, UNIFORM
from tests.support.served_app import served

ABSTAIN = Decision("abstain", reason="x", decided_at=1)
ROUTE = Decision("route", reason="x", decided_at=1)


def summary(mutual_information: float) -> AnswerUncertainty:
    numbers = vars(summarise(AGREED, UNIFORM, "prefix_posterior"))
    return AnswerUncertainty(**{**numbers, "mutual_information": mutual_information})


def count(metrics: Metrics, model: str, number: int, decision: Decision, nats: float) -> None:
    for _ in range(number):
        metrics.of_request(model, 1)(decision, summary(nats), None)


class Server:
    """Two models that were asked; `between` happens after the first look."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.expect(["demo", "demo-v2", "idle"])
        self.between: Callable[[], None] | None = None
        count(self.metrics, "demo", 96, ANSWER, 0.04)
        count(self.metrics, "demo", 4, ABSTAIN, 0.6)
        count(self.metrics, "demo-v2", 80, ANSWER, 0.04)
        count(self.metrics, "demo-v2", 20, ABSTAIN, 0.6)
        self.metrics.first_token("demo", 0.5)
        self.metrics.first_token("demo", 1.5)
        self.app = Starlette(routes=[Route("/metrics", self.show)])

    async def show(self, _: Request) -> Response:
        text = generate_latest(self.registry).decode()
        if self.between is not None:
            self.between()
            self.between = None
        return PlainTextResponse(text)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with served(server.app) as url:
        yield url


def compared(url: str, folder: Path, *flags: str) -> dict[str, Any]:
    output = folder / "comparison.json"
    assert main(["compare", url, "demo", "demo-v2", "--json", str(output), *flags]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_what_both_did_and_how_they_differ(url: str, tmp_path: Path) -> None:
    found = compared(url, tmp_path)

    demo, new = found["models"]["demo"], found["models"]["demo-v2"]
    assert (demo["requests"], demo["decisions"]) == (100, {"answer": 96, "abstain": 4})
    assert new["shares"]["abstain"]["value"] == 0.2
    apart = found["differences"]["abstain"]
    assert (apart["value"], apart["more_than_chance"]) == (pytest.approx(0.16), True)
    assert found["differences"]["route"]["more_than_chance"] is False
    information = new["histograms"]["softspec_mutual_information_nats"]
    assert (information["count"], information["mean"]) == (100, pytest.approx(0.8 * 0.04 + 0.2 * 0.6))
    assert sum(information["counts"]) == 100
    assert demo["histograms"]["softspec_time_to_first_token_seconds"]["mean"] == 1
    # Of 96, 4 against 80, 20: expected 88 and 12 in each row.
    assert found["mutual_information"]["statistic"] == pytest.approx(2 * 64 / 88 + 2 * 64 / 12)
    assert found["mutual_information"]["degrees"] == 1


def test_terminal_says_it_in_words(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", f"{url}/v1", "demo", "demo-v2"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].split() == ["demo", "demo-v2"]
    assert lines[1].split() == ["requests", "100", "100"]
    assert lines[2].split(maxsplit=1) == ["withheld", "4.0% (1.6 to 9.8)           20.0% (13.3 to 28.9)"]
    assert f"{'first token':<20}{'1 s (mean of 2)':<28}-" in lines
    assert f"{'0.5 to 0.7':<20}{'#':<20} {'4.0%':<7}{'####':<20} 20.0%" in lines
    assert any(line.startswith("withheld: demo-v2 +16.0 points (+7.") for line in lines)
    assert lines[-1].startswith("mutual information: chi-square 12.1 on 1 degree(s) of freedom, p 0.0005")
    assert lines[-1].endswith(", more than chance")


def test_two_looks_count_what_came_between(server: Server, url: str, tmp_path: Path) -> None:
    def more() -> None:
        count(server.metrics, "demo", 10, ANSWER, 0.04)
        count(server.metrics, "demo-v2", 5, ROUTE, 0.6)

    server.between = more

    found = compared(url, tmp_path, "--seconds", "0.01")

    assert found["seconds"] == 0.01
    assert found["models"]["demo"]["decisions"] == {"answer": 10, "abstain": 0}
    assert found["models"]["demo-v2"]["decisions"] == {"answer": 0, "abstain": 0, "route": 5}
    assert found["models"]["demo-v2"]["histograms"]["softspec_mutual_information_nats"]["count"] == 5
    assert found["mutual_information"] is None


def test_server_that_was_started_anew_between_two_looks_is_noticed(
    server: Server, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def restart() -> None:
        server.registry = CollectorRegistry()
        Metrics(server.registry).expect(["demo", "demo-v2"])

    server.between = restart

    code = main(["compare", url, "demo", "demo-v2", "--seconds", "0.01"])

    assert code == 2
    assert "was started anew between the two looks" in capsys.readouterr().err


def test_model_without_requests_is_said_to_have_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", url, "demo", "idle"])

    assert code == 0
    assert capsys.readouterr().out.splitlines()[-1] == "idle answered no request: nothing to compare"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "nobody"], "found no metric of 'nobody': expected one of demo, demo-v2, idle"),
        (["demo", "demo-v2", "--seconds", "0"], "--seconds is 0: expected a number greater than 0"),
        (["demo", "demo-v2", "--json", "nowhere/x.json"], "there is no directory 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(
    url: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["compare", url, *arguments])

    told = capsys.readouterr().err
    assert code == 2
    assert complaint in told
    assert len(told.splitlines()) == 1


def test_names_of_the_metrics_are_those_that_servers_have() -> None:
    from softspec.app.compare import looks

    ours = {metric.name for metric in METRICS}

    assert {looks.REQUESTS, looks.INFORMATION, looks.TIMES["first token"]} <= ours
