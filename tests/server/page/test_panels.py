"""What the page tells of an answer beside its text is what the server says, or would say."""

import contextlib
import io
import json
import re
import subprocess
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.server.page.conftest import Visit
from tests.server.page.test_talk import numbers_of, percent
from tests.support.fake_engine import ENSEMBLE
from tests.support.page_server import PageServer, refusal
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow

METRICS = {
    "mutual_information": (0.001, 0.35, 0.6, 0.7),
    "max_epistemic": (0.0, 0.004, 0.612, 0.613),
    "max_disagreement": (0.02, 0.613),
    "epistemic": (0.013, 0.2, 0.3),
    "disagreement": (0.1, 0.9),
    "total_entropy": (0.43, 0.5, 3.0),
    "aleatoric_entropy": (0.3, 0.41, 0.42),
}
"""Metric -> thresholds on both sides of what the answer to `torn` reaches, and some that it meets exactly."""


def set_policy(visitor: Visitor, **fields: Any) -> None:
    for name, value in fields.items():
        field = visitor.the(f"#policy-{name.replace('_', '-')}")
        field.select_option(value) if name in ("action", "metric") else field.fill(str(value))


def weights(visitor: Visitor) -> list[float]:
    """The belief that the page shows beside the plot."""
    shown = visitor.the("[data-weight]").all()
    return [float(each.get_attribute("data-weight") or "nan") for each in shown]


# The belief


@pytest.mark.parametrize("question", ["torn", "rising"])
def test_belief_ends_where_the_server_says(question: str, visitor: Visitor, server: PageServer) -> None:
    visitor.ask(question)

    assert weights(visitor) == pytest.approx(numbers_of(server, question)["member_weights"], abs=1e-6)


def test_belief_of_a_withheld_answer_ends_at_the_token_that_decided(
    visitor: Visitor, server: PageServer
) -> None:
    visitor.the("#policy-sent").check()
    visitor.ask("torn")

    policy = {"action": "abstain", "metric": "mutual_information", "threshold": 0.35}
    told = numbers_of(server, "torn", policy=policy)
    assert weights(visitor) == pytest.approx(told["member_weights"], abs=1e-6)
    expect(visitor.the(".plot desc")).to_contain_text("After 3 tokens")


def test_belief_is_a_table_too(visitor: Visitor, server: PageServer) -> None:
    visitor.ask("torn")
    visitor.the("#belief summary").click()

    rows = visitor.the("#belief tbody tr").all_inner_texts()
    last = [percent(weight) for weight in numbers_of(server, "torn")["member_weights"]]
    assert len(rows) == 11
    assert rows[0].split("\t") == ["before", "50.0\u00a0%", "30.0\u00a0%", "20.0\u00a0%"]
    assert rows[-1].split("\t")[1:] == last


def test_lines_of_members_differ_in_more_than_colour(visitor: Visitor) -> None:
    visitor.ask("torn")

    lines = visitor.the(".plot polyline").all()
    dashes = [line.get_attribute("stroke-dasharray") for line in lines]
    marks = [line.locator("xpath=..").locator("path").first.get_attribute("d") for line in lines]
    assert len(set(dashes)) == len(set(marks)) == len(lines) == 3


# The policy


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("min_tokens", [1, 4])
def test_the_slider_says_what_the_server_decides(
    metric: str, min_tokens: int, visitor: Visitor, server: PageServer
) -> None:
    visitor.ask("torn")
    set_policy(visitor, metric=metric, min_tokens=min_tokens)

    for threshold in METRICS[metric]:
        set_policy(visitor, threshold=threshold)
        policy = {
            "action": "abstain",
            "metric": metric,
            "threshold": threshold,
            "min_tokens": min_tokens,
        }
        decided_at = numbers_of(server, "torn", policy=policy)["decided_at"]
        says = f"refused at token {decided_at}:" if decided_at else "Would have been answered"
        expect(visitor.the("#policy-verdict")).to_contain_text(says)
        expect(visitor.the(".token.decides")).to_have_count(1 if decided_at else 0)


def test_the_slider_moves_with_the_keyboard(visitor: Visitor) -> None:
    visitor.ask("torn")
    visitor.the("#policy-slider").focus()
    visitor.page.keyboard.press("End")
    expect(visitor.the("#policy-verdict")).to_contain_text("Would have been answered")
    visitor.page.keyboard.press("Home")

    expect(visitor.the("#policy-verdict")).to_contain_text("Would have been refused at token 1:")
    expect(visitor.the("#policy-threshold")).to_have_value("0")
    assert visitor.the("#policy-slider").get_attribute("aria-valuetext") == "0.000 nats"


def test_a_crossing_after_the_held_tokens_is_too_late_to_route(visitor: Visitor) -> None:
    """As the server decides on a stream of the same policy."""
    visitor.ask("rising")
    set_policy(visitor, action="route", metric="max_epistemic", threshold=0.5)

    expect(visitor.the("#policy-verdict")).to_contain_text("refused at token 18:")
    expect(visitor.the("#policy-verdict")).to_contain_text("Too late to route")
    set_policy(visitor, threshold=0.1)
    expect(visitor.the("#policy-verdict")).to_contain_text("routed at token 5:")
    set_policy(visitor, threshold=0.5)
    visitor.the("#policy-sent").check()
    visitor.ask("rising")
    expect(visitor.the("#summary strong")).to_contain_text("at token 18; too late to route")


def test_a_policy_is_sent_only_when_that_is_asked(visitor: Visitor, server: PageServer) -> None:
    set_policy(visitor, metric="max_epistemic", threshold=0.9, min_tokens=2)
    visitor.ask("torn")
    visitor.the("#policy-sent").check()
    visitor.ask("torn")

    expect(visitor.the("#request pre").first).to_contain_text('"threshold": 0.9')
    first, second = (json.loads(each) for each in server.orders.bodies)
    assert first["uncertainty"] == {"detail": "tokens"}
    assert second["uncertainty"]["policy"] == {
        "action": "abstain",
        "metric": "max_epistemic",
        "threshold": 0.9,
        "min_tokens": 2,
    }


# The whole answer, and its fields


def test_all_numbers_of_the_answer_are_shown(visitor: Visitor, server: PageServer) -> None:
    visitor.ask("torn")

    told = numbers_of(server, "torn")
    rows = dict(row.split("\t", 1) for row in visitor.the("#summary tbody tr").all_inner_texts())
    assert list(rows) == [*(name for name in told if name != "tokens"), "x-request-id"]
    assert rows["mutual_information"] == f"{told['mutual_information']:.3f}"
    assert rows["log_prob"] == f"{told['log_prob']:.3f}".replace("-", "−")
    assert rows["member_log_probs"].split()[-1] == "−∞"
    assert rows["seed"] == "100"
    assert re.fullmatch("[0-9a-f]{32}", rows["x-request-id"])


def test_doubtful_fields_come_first_and_lead_to_their_tokens(visitor: Visitor) -> None:
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("The answer is JSON").check()
    visitor.ask("form")

    rows = [row.split("\t") for row in visitor.the("#fields tbody tr").all_inner_texts()]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("/Denum", '"black"', "0.522"),
        ("/Labron", '"brown"', "0.030"),
    ]
    visitor.page.get_by_role("button", name="/Denum").click()
    expect(visitor.tokens().nth(1)).to_be_focused()


def test_an_answer_that_is_no_json_says_so(visitor: Visitor) -> None:
    visitor.ask("torn")
    expect(visitor.the("#fields-panel")).to_be_hidden()
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("The answer is JSON").check()
    visitor.ask("torn")

    expect(visitor.the("#fields")).to_have_text("No JSON was found in the answer.")


def test_a_schema_is_sent_and_a_broken_one_is_not(visitor: Visitor, server: PageServer) -> None:
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("The answer is JSON").check()
    visitor.page.get_by_label("JSON schema").fill('{"type": "object"')
    visitor.the("#question").fill("form")
    visitor.the("#question").press("Enter")
    expect(visitor.alert()).to_contain_text("The JSON schema is no JSON")
    visitor.page.get_by_label("JSON schema").fill('{"type": "object"}')
    visitor.ask("form")

    (body,) = map(json.loads, server.orders.bodies)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


# The members


def test_members_stand_side_by_side_with_what_each_alone_says(visitor: Visitor, server: PageServer) -> None:
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("Temperature").fill("0")
    visitor.ask("torn")
    visitor.the("#ask-members").click()

    expect(visitor.the(".side-by-side .said")).to_have_text(
        ["Black, of course.", "Green & nothing else.", "<i>Grey</i>"]
    )
    names = [f"{ENSEMBLE}/member-{k}" for k in range(3)]
    expect(visitor.the(".side-by-side h4")).to_have_text(names)
    whole, *alone = map(json.loads, server.orders.bodies)
    del whole["uncertainty"]
    assert sorted(alone, key=lambda body: str(body["model"])) == [{**whole, "model": name} for name in names]


def test_a_member_that_fails_does_not_take_the_others_along(visitor: Visitor, server: PageServer) -> None:
    visitor.ask("torn")
    server.orders.instead = [refusal(429, "busy")]
    visitor.the("#ask-members").click()

    expect(visitor.the(".side-by-side .said").filter(has_text=re.compile(r"\w"))).to_have_count(2)
    expect(visitor.the(".side-by-side .note").filter(has_text="busy")).to_have_count(1)
    expect(visitor.the("#ask-members")).to_be_enabled()


# The request


def snippet(visitor: Visitor, name: str) -> str:
    code: Locator = visitor.page.get_by_role("region", name=f"The request as {name}", exact=True)
    return str(code.first.text_content())


def run_python(code: str) -> Any:
    """What a snippet prints, read as JSON."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "snippet", "exec"), {})
    return json.loads(printed.getvalue())


QUESTIONS = ["torn", 'It\'s "quoted", $HOME `ls` \\ and\ntwo lines – 🙂']


@pytest.mark.parametrize("question", QUESTIONS, ids=["plain", "with signs of the shell"])
def test_snippets_give_the_answer_that_is_shown(question: str, visitor: Visitor, server: PageServer) -> None:
    visitor.the("#policy-sent").check()
    set_policy(visitor, threshold=0.9)
    visitor.ask(question)
    shown = "".join(visitor.tokens().all_text_contents())

    command = ["bash", "-c", snippet(visitor, "curl")]
    by_curl = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    by_python = run_python(snippet(visitor, "Python"))

    asked, *again = map(json.loads, server.orders.bodies)
    del asked["stream"]
    assert again == [asked, asked]
    for answer in (by_curl, by_python):
        assert answer["choices"][0]["message"]["content"] == shown
        tokens = answer["choices"][0]["uncertainty"]["tokens"]
        assert "".join(token["token"] for token in tokens) == shown


def test_snippets_name_no_key_but_where_it_lies(
    visit: Visit, server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.orders.key = "secret"
    visitor = visit()
    visitor.the("#key").fill("secret")
    visitor.the("#key-form button").click()
    visitor.ready().ask("torn")
    curl, python = snippet(visitor, "curl"), snippet(visitor, "Python")
    monkeypatch.setenv("SOFTSPEC_API_KEY", "secret")

    done = subprocess.run(["bash", "-c", curl], capture_output=True, check=True)

    assert "secret" not in curl + python
    assert json.loads(done.stdout)["model"] == run_python(python)["model"] == ENSEMBLE


def test_a_snippet_can_be_copied(visit: Visit) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"]).ready()
    visitor.page.get_by_role("button", name="Copy the request as curl").first.click()

    expect(visitor.the("#request").get_by_text("copied")).to_be_visible()
    assert visitor.page.evaluate("navigator.clipboard.readText()") == snippet(visitor, "curl")
