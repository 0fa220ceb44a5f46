"""A talk with an ensemble as a person has it: what comes, what is withheld, what fails, and what is said of it."""

import math
import re
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.server.page.conftest import Visit
from tests.support.fake_engine import ENSEMBLE
from tests.support.page_server import PRIOR, TORN, VOCABULARY, PageServer, page_server, refusal
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow

TEXTS = [VOCABULARY[token.token_id] for token in TORN]
ANSWER = "".join(TEXTS)


def numbers_of(server: PageServer, question: str, **uncertainty: Any) -> dict[str, Any]:
    """The server's own `uncertainty` of an answer."""
    body = {
        "model": ENSEMBLE,
        "messages": [{"role": "user", "content": question}],
        "uncertainty": {"detail": "tokens", **uncertainty},
    }
    answer = httpx2.post(f"{server.url}v1/chat/completions", json=body).json()
    return dict(answer["choices"][0]["uncertainty"])


def percent(share: float) -> str:
    """As the page writes a share."""
    return "<\u00a00.1\u00a0%" if 0 < share < 0.0005 else f"{100 * share:.1f}\u00a0%"


def shade(visitor: Visitor, number: float) -> str:
    """The colour that the legend has for so many nats."""
    step = min(9, math.floor(10 * number / math.log(len(PRIOR))))
    return visitor.style(visitor.the(".swatch").nth(step), "background-color")


def test_models_are_listed_ensembles_first(visitor: Visitor) -> None:
    names = visitor.the("#model option").all_inner_texts()

    assert names == [ENSEMBLE, *(f"{ENSEMBLE}/member-{k}" for k in range(3)), "base"]
    assert visitor.the("#model").input_value() == ENSEMBLE


def test_an_answer_grows_token_by_token(visitor: Visitor, server: PageServer) -> None:
    visitor.the("#question").fill("slow")
    visitor.the("#send").click()

    expect(visitor.tokens()).to_have_text(TEXTS[:3])
    expect(visitor.the("#stop")).to_be_enabled()
    expect(visitor.the(".plot desc")).to_contain_text("After 3 tokens")
    server.talk.gate.set()
    expect(visitor.tokens()).to_have_text(TEXTS)
    expect(visitor.the("#stop")).to_be_disabled()
    expect(visitor.the(".plot desc")).to_contain_text("After 10 tokens")


def test_tokens_have_the_shade_of_their_epistemic_uncertainty(visitor: Visitor) -> None:
    visitor.ask("torn")

    found = [visitor.style(token, "background-color") for token in visitor.tokens().all()]
    assert found == [shade(visitor, token.epistemic) for token in TORN]
    assert len(set(found)) == 3


def test_a_switch_shades_by_aleatoric_uncertainty(visitor: Visitor) -> None:
    visitor.ask("torn")
    visitor.page.get_by_label("aleatoric uncertainty").check()

    expect(visitor.the("#scale")).to_contain_text("log 3 = 1.099 nats and more")
    found = [visitor.style(token, "background-color") for token in visitor.tokens().all()]
    assert found == [shade(visitor, token.aleatoric_entropy) for token in TORN]
    assert len(set(found)) == 7


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_token_shows_what_each_member_gave_it(how: str, visitor: Visitor, server: PageServer) -> None:
    visitor.ask("torn")
    visitor.tokens().nth(2).hover() if how == "hover" else visitor.tokens().nth(2).focus()

    told = numbers_of(server, "torn")["tokens"][2]
    expect(visitor.the("#token-title")).to_have_text("Token 3 of 10")
    rows = visitor.the("#token-details tbody tr").all_inner_texts()
    shares = [math.exp(log) for log in told["member_log_probs"]]
    assert [row.split("\t")[1].strip() for row in rows] == [percent(share) for share in shares]
    assert f"{told['epistemic']:.3f} nats" in visitor.the("#token-details").inner_text()
    bars = [bar.evaluate("bar => bar.style.getPropertyValue('--share')") for bar in visitor.the(".bar").all()]
    assert [float(bar) for bar in bars] == pytest.approx(shares)


def test_a_hovered_token_gives_way_to_the_chosen_one(visitor: Visitor) -> None:
    visitor.ask("torn")
    visitor.tokens().nth(0).focus()
    visitor.tokens().nth(2).hover()
    expect(visitor.the("#token-title")).to_have_text("Token 3 of 10")
    visitor.page.mouse.move(0, 0)

    expect(visitor.the("#token-title")).to_have_text("Token 1 of 10")


def test_a_pointer_that_rests_does_not_hold_the_keyboard_back(visitor: Visitor) -> None:
    visitor.ask("torn")
    visitor.tokens().nth(2).hover()
    expect(visitor.the("#token-title")).to_have_text("Token 3 of 10")
    visitor.tokens().nth(0).focus()
    visitor.page.keyboard.press("ArrowRight")

    expect(visitor.the("#token-title")).to_have_text("Token 2 of 10")


def test_no_text_is_taken_for_markup(visitor: Visitor) -> None:
    """Neither a question's, an answer's, an upstream's nor a member's."""
    visitor.ask("<img src=x onerror=alert(1)>")
    visitor.ask("torn")

    assert visitor.the(".turn img, .turn b").count() == 0
    expect(visitor.the(".question").first).to_contain_text("<img src=x onerror=alert(1)>")
    expect(visitor.tokens().nth(6)).to_have_text(" <b>they</b>")


def test_whoever_listens_hears_the_answer_once_it_is_there(visitor: Visitor) -> None:
    visitor.ask("torn")

    told = "Answered: no policy objected. 10 tokens, mutual information 0.680 nats."
    expect(visitor.the("#status")).to_have_text(f"{told} {ANSWER}")


def test_turns_before_are_part_of_the_next_request(visitor: Visitor, server: PageServer) -> None:
    visitor.the(
        "summary",
    ).filter(has_text="Settings").click()
    visitor.page.get_by_label("System message").fill("Be brief.")
    visitor.page.get_by_label("Temperature").fill("0.5")
    visitor.page.get_by_label("Seed").fill("7")
    visitor.ask("sure")
    visitor.ask("torn")

    request = server.talk.requests[-1]
    assert [(each["role"], each["content"]) for each in request.messages] == [
        ("system", "Be brief."),
        ("user", "sure"),
        ("assistant", " Brown."),
        ("user", "torn"),
    ]
    assert (request.temperature, request.seed, request.max_tokens) == (0.5, 7, 256)


def test_a_conversation_can_be_cleared(visitor: Visitor, server: PageServer) -> None:
    visitor.ask("sure")
    visitor.the("#clear").click()
    expect(visitor.the(".turn")).to_have_count(0)
    visitor.ask("torn")

    assert [each["content"] for each in server.talk.requests[-1].messages] == ["torn"]


def test_an_answer_can_be_stopped_and_keeps_what_came(visitor: Visitor, server: PageServer) -> None:
    visitor.the("#question").fill("slow")
    visitor.the("#question").press("Enter")
    expect(visitor.tokens()).to_have_count(3)
    visitor.the("#stop").click()

    expect(visitor.the(".answer .note")).to_have_text("You stopped this answer.")
    expect(visitor.tokens()).to_have_text(TEXTS[:3])
    expect(visitor.the("#send")).to_be_enabled()
    expect(visitor.alert()).to_be_empty()
    server.talk.gate.set()


def test_a_withheld_answer_shows_its_refusal_and_the_tokens_before(
    visitor: Visitor, server: PageServer
) -> None:
    visitor.ask("sure")
    visitor.tokens().first.click()
    visitor.the("#policy-sent").check()
    visitor.ask("torn")

    expect(visitor.tokens()).to_have_text(TEXTS[:2])
    expect(visitor.the("[aria-selected=true]")).to_have_count(0)
    expect(visitor.the(".refusal")).to_have_text(
        "No answer: the models behind this one are too uncertain (mutual_information 0.64 > 0.35 at token 3)."
    )
    expect(visitor.the("#summary strong")).to_have_text(
        "Withheld: mutual_information 0.64 > 0.35 at token 3."
    )
    visitor.ask("sure")
    contents = [each["content"] for each in server.talk.requests[-1].messages]
    assert contents == ["sure", " Brown.", "sure"]


def test_a_routed_answer_says_who_answered(visitor: Visitor) -> None:
    visitor.the("#policy-action").select_option("route")
    visitor.the("#policy-sent").check()
    visitor.ask("torn")

    expect(visitor.the(".answer .said")).to_have_text("Nobody knows <u>that</u>.")
    expect(visitor.the(".answer .note")).to_have_text(
        "Answered by the upstream “large” (big-1): its tokens have no numbers."
    )
    expect(visitor.tokens()).to_have_count(0)
    expect(visitor.the("#summary strong")).to_contain_text(
        "Answered by the upstream “large”: mutual_information"
    )


def test_a_member_alone_is_plain_text(visitor: Visitor, server: PageServer) -> None:
    visitor.the("#model").select_option(f"{ENSEMBLE}/member-1")
    visitor.ask("torn")

    expect(visitor.the(".answer .said")).to_have_text("Green & nothing else.")
    expect(visitor.the(".answer .note")).to_have_text("A single model: its tokens have no numbers.")
    assert "uncertainty" not in (server.talk.requests[-1].model_extra or {})


# What goes wrong


def test_an_error_is_told_in_the_servers_words_and_gives_the_question_back(
    visitor: Visitor, server: PageServer
) -> None:
    server.orders.instead = [refusal(400, "max_tokens is <b>too</b> large")]
    visitor.the("#question").fill("torn")
    visitor.the("#question").press("Enter")

    expect(visitor.alert()).to_contain_text("max_tokens is <b>too</b> large")
    expect(visitor.alert()).to_contain_text("status 400 · type Scripted · request asked-1")
    expect(visitor.the("#question")).to_have_value("torn")
    expect(visitor.the(".turn")).to_have_count(0)
    visitor.the("#send").click()
    expect(visitor.tokens()).to_have_count(10)
    expect(visitor.alert()).to_be_empty()


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_says_when_to_come_again(
    status: int, visitor: Visitor, server: PageServer
) -> None:
    server.orders.instead = [refusal(status, "too many requests", **{"retry-after": "70"})]
    visitor.the("#question").fill("torn")
    visitor.the("#question").press("Enter")

    expect(visitor.alert()).to_contain_text(re.compile(r"Try again in (70|69) s, at \d+:\d\d:\d\d"))


def test_a_date_to_come_again_is_understood(visitor: Visitor, server: PageServer) -> None:
    date = formatdate(4_000_000_000, usegmt=True)
    server.orders.instead = [refusal(503, "closed", **{"retry-after": date})]
    visitor.the("#question").fill("torn")
    visitor.the("#question").press("Enter")

    expect(visitor.alert().locator(".retry")).to_contain_text(re.compile(r"Try again in \d{9,10} s"))


def test_a_connection_that_breaks_keeps_what_came(visitor: Visitor, server: PageServer) -> None:
    visitor.the("#question").fill("cut")
    visitor.the("#question").press("Enter")
    expect(visitor.tokens()).to_have_count(3)
    server.talk.gate.set()

    expect(visitor.alert()).to_contain_text("The connection was lost while the answer was coming.")
    expect(visitor.alert()).to_contain_text(re.compile(r"request [0-9a-f]{32}"))
    expect(visitor.tokens()).to_have_text(TEXTS[:3])
    expect(visitor.the(".answer .note")).to_have_text("The answer broke off here; what came is kept.")


def test_an_error_in_the_middle_of_a_stream_keeps_what_came(visitor: Visitor) -> None:
    visitor.ask("fails")

    expect(visitor.alert()).to_contain_text("the members came apart")
    expect(visitor.tokens()).to_have_text(TEXTS[:3])


def test_a_server_that_is_gone_is_told(browser: Any) -> None:
    with page_server() as server:
        visitor = Visitor(browser, server.url).ready()
        visitor.ask("sure")
        server.stop()
        visitor.the("#question").fill("torn")
        visitor.the("#question").press("Enter")

        expect(visitor.alert()).to_contain_text("The server cannot be reached. Is it still running?")
        expect(visitor.the("#question")).to_have_value("torn")
        expect(visitor.the(".turn")).to_have_count(1)
        visitor.leave()


# The key


def test_a_server_that_wants_a_key_is_given_one(visit: Visit, server: PageServer) -> None:
    server.orders.key = "secret"
    visitor = visit()

    expect(visitor.alert()).to_contain_text("Unauthorized")
    expect(visitor.page.get_by_label("Key, kept in this tab only")).to_be_focused()
    visitor.page.keyboard.type("secret")
    visitor.page.keyboard.press("Enter")
    visitor.ready().ask("torn")
    expect(visitor.tokens()).to_have_count(10)
    expect(visitor.alert()).to_be_empty()


def test_a_key_is_kept_for_this_tab_and_shown_nowhere(visit: Visit, server: PageServer) -> None:
    server.orders.key = "secret"
    visitor = visit()
    visitor.the("#key").fill("secret")
    visitor.the("#key-form button").click()
    visitor.ready().page.reload()
    visitor.ready()

    assert visitor.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert "secret" not in visitor.the("body").inner_text()
    assert visitor.the("#key").get_attribute("type") == "password"
    other = visit()
    expect(other.alert()).to_contain_text("Unauthorized")


# Where the server lies


def test_below_a_path_the_page_asks_below_that_path(browser: Any) -> None:
    with page_server("/behind/here") as server:
        visitor = Visitor(browser, server.url).ready()
        visitor.ask("torn")

        expect(visitor.tokens()).to_have_count(10)
        expect(visitor.the("#request pre").first).to_contain_text("/behind/here/v1/chat/completions")
        visitor.leave()
