"""The page's second view: questions with known options."""

import json
import subprocess
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.server.page.conftest import Visit
from tests.server.page.test_panels import run_python
from tests.server.page.test_talk import percent
from tests.support.fake_engine import ENSEMBLE
from tests.support.page_server import PageServer, refusal
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow

CHOICE = {
    "type": "choice",
    "name": "colour",
    "instructions": "Which colour?",
    "choices": [{"value": "green"}, {"value": "black", "description": "as coal"}, {"value": "grey"}],
}


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    return visit("#decisions").ready()


def fill(
    visitor: Visitor, number: int, kind: str, instructions: str, options: str = "", name: str = ""
) -> None:
    """Fill the form of one question."""
    box = visitor.the("#questions fieldset").nth(number)
    box.get_by_label("Kind").select_option(kind)
    box.get_by_label("Name, if any").fill(name)
    box.get_by_label("What is asked").fill(instructions)
    if options:
        box.locator(".options").fill(options)


def ask_all(visitor: Visitor) -> None:
    """Ask a question of each kind."""
    visitor.page.get_by_label("Input, which").fill("What colour is each? Denum")
    fill(visitor, 0, "predicate", "It is allowed.")
    visitor.the("#add-question").click()
    fill(visitor, 1, "choice", "Which colour?", "green\nblack | as coal\n\ngrey\n", name="colour")
    visitor.the("#add-question").click()
    fill(visitor, 2, "score", "How grave?", "low\nhigh")
    visitor.the("#decide-send").click()
    expect(visitor.the("#decided article")).to_have_count(3)


def answers(server: PageServer, **body: Any) -> list[Any]:
    """The server's own answers."""
    found = httpx2.post(f"{server.url}v1/decisions", json={"model": ENSEMBLE, "input": "?", **body}).json()
    return list(found["answers"])


def test_views_have_addresses_of_their_own(visitor: Visitor) -> None:
    expect(visitor.the("#decisions")).to_be_visible()
    expect(visitor.the("#chat")).to_be_hidden()
    assert visitor.page.title() == "Decisions – softspec"
    visitor.page.get_by_role("link", name="Chat").click()

    expect(visitor.the("#chat")).to_be_visible()
    expect(visitor.the("nav [aria-current=page]")).to_have_text("Chat")
    visitor.page.go_back()
    expect(visitor.the("#decisions")).to_be_visible()


def test_questions_are_sent_as_they_are_typed(visitor: Visitor, server: PageServer) -> None:
    ask_all(visitor)

    (body,) = map(json.loads, server.orders.bodies)
    assert body == {
        "model": ENSEMBLE,
        "input": "What colour is each? Denum",
        "questions": [
            {"type": "predicate", "instructions": "It is allowed."},
            CHOICE,
            {"type": "score", "instructions": "How grave?", "levels": [{"label": "low"}, {"label": "high"}]},
        ],
    }


def test_every_option_shows_its_probability_under_every_member(visitor: Visitor, server: PageServer) -> None:
    ask_all(visitor)

    (told,) = answers(server, questions=[CHOICE])
    rows = visitor.the("#decided article").nth(1).locator("tbody tr").all_inner_texts()
    members = told["uncertainty"]["member_probabilities"]
    assert [[cell.strip() for cell in row.split("\t")] for row in rows] == [
        [each["value"], percent(each["probability"]), *(percent(member[place]) for member in members)]
        for place, each in enumerate(told["probabilities"])
    ]
    facts = visitor.the("#decided article").nth(1).locator(".facts").inner_text()
    assert f"label mass\n{percent(told['uncertainty']['label_mass'])}" in facts
    assert f"epistemic\n{told['uncertainty']['epistemic']:.3f} nats" in facts


def test_each_kind_of_answer_has_its_verdict(visitor: Visitor, server: PageServer) -> None:
    ask_all(visitor)

    predicate, choice, score = visitor.the("#decided strong").all_inner_texts()
    (yes,) = answers(server, questions=[{"type": "predicate", "instructions": "It is allowed."}])
    assert predicate == f"yes: {percent(yes['probability'])}"
    assert choice.startswith("black: ")
    assert score.endswith(" expected")


def test_a_withheld_answer_shows_why_and_no_option(visitor: Visitor) -> None:
    visitor.page.get_by_label("Abstain where").check()
    ask_all(visitor)

    choice = visitor.the("#decided article").nth(1)
    expect(choice.locator("strong")).to_have_text("Withheld: epistemic 0.55 > 0.35.")
    expect(choice.locator("table")).to_have_count(0)
    expect(visitor.the("#decided article").first.locator("table")).to_have_count(1)


def test_how_it_is_asked_can_be_set(visitor: Visitor, server: PageServer) -> None:
    visitor.page.get_by_label("Show the options").uncheck()
    visitor.page.get_by_label("Compare options by").check()
    visitor.the("#model").select_option(f"{ENSEMBLE}/member-0")
    visitor.page.get_by_label("Abstain where").check()
    fill(visitor, 0, "predicate", "It is allowed.")
    visitor.the("#decide-send").click()
    expect(visitor.the("#decided article")).to_have_count(1)

    (body,) = map(json.loads, server.orders.bodies)
    assert (body["list_options"], body["length_normalise"]) == (False, True)
    assert "uncertainty" not in body  # a member alone has no policy


def test_a_question_can_be_removed(visitor: Visitor) -> None:
    visitor.the("#add-question").click()
    visitor.the("#questions fieldset").first.get_by_role("button", name="Remove").click()

    expect(visitor.the("#questions legend")).to_have_text(["Question 1"])
    expect(visitor.the("#questions .type")).to_have_value("choice")
    expect(visitor.the("#add-question")).to_be_focused()


@pytest.mark.parametrize("instead", [True, False], ids=["of the server", "of the request"])
def test_errors_are_told(instead: bool, visitor: Visitor, server: PageServer) -> None:
    if instead:
        server.orders.instead = [refusal(503, "the server is shutting down")]
    fill(visitor, 0, "choice", "Which?", "green")
    visitor.the("#decide-send").click()

    expect(visitor.alert()).to_contain_text("shutting down" if instead else "questions.0")
    expect(visitor.the("#decide-send")).to_be_enabled()


def test_the_request_as_curl_and_python_gives_the_same_answers(visitor: Visitor, server: PageServer) -> None:
    visitor.page.get_by_label("Abstain where").check()
    ask_all(visitor)
    curl, python = visitor.the("#decide-request code").all_text_contents()

    by_curl = json.loads(subprocess.run(["bash", "-c", curl], capture_output=True, check=True).stdout)
    by_python = run_python(python)

    first, *others = map(json.loads, server.orders.bodies)
    assert others == [first, first]
    assert by_curl["answers"] == by_python["answers"]
