"""How the page looks, and how it is used without a mouse, without colours, in the dark and on a phone.

Pictures of what a test has seen are in its temporary folder, as `*.png`.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.page.conftest import Visit
from tests.server.page.test_decisions_view import ask_all
from tests.support.visitor import PHONE, Visitor

pytestmark = pytest.mark.slow

SCHEMES = ["light", "dark"]
Rgb = tuple[float, ...]

# Machado, Oliveira and Fernandes 2009: what linear RGB becomes for whoever lacks one kind of cone.
SIGHT = {
    "all colours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "without red": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "without green": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "without blue": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def linear(colour: str) -> Rgb:
    """A computed colour as linear RGB."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    return tuple(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)


def luminance(rgb: Rgb) -> float:
    red, green, blue = (min(1.0, max(0.0, part)) for part in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lightness(rgb: Rgb) -> float:
    """CIE L*."""
    light = luminance(rgb)
    return 116 * math.cbrt(light) - 16 if light > 0.008856 else 903.3 * light


def contrast(one: str, other: str) -> float:
    """WCAG's ratio."""
    low, high = sorted(luminance(linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def seen(rgb: Rgb, sight: str) -> Rgb:
    return tuple(sum(weight * part for weight, part in zip(row, rgb, strict=True)) for row in SIGHT[sight])


def shades(visitor: Visitor) -> list[tuple[str, str]]:
    """Background and letters of a token of every shade."""
    visitor.ask("torn")
    token = visitor.tokens().first
    found = []
    for step in range(10):
        token.evaluate("(token, step) => { token.className = `token shade-${step}` }", step)
        found.append((visitor.style(token, "background-color"), visitor.style(token, "color")))
    return found


# Colours


@pytest.mark.parametrize("scheme", SCHEMES)
def test_letters_stand_out_from_every_shade(scheme: str, visit: Visit) -> None:
    found = shades(visit(color_scheme=scheme).ready())

    assert len(set(found)) == 10
    assert [round(contrast(*pair), 2) for pair in found if contrast(*pair) < 4.5] == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sight", SIGHT)
def test_shades_keep_their_order_for_whoever_sees_fewer_colours(
    scheme: str, sight: str, visit: Visit
) -> None:
    """In steps of lightness that are nearly equal, so that equal differences in nats look equal."""
    found = [
        lightness(seen(linear(background), sight))
        for background, _ in shades(visit(color_scheme=scheme).ready())
    ]

    away = [after - before for before, after in pairwise(found)]
    steps = [-step for step in away] if scheme == "light" else away
    assert min(steps) > 4
    assert max(steps) < 2 * min(steps)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_lines_stand_out(scheme: str, visit: Visit) -> None:
    visitor = visit(color_scheme=scheme).ready()

    def colour(name: str) -> str:
        probe = """name => {
          const e = document.createElement('i');
          document.body.append(e);
          e.style.color = `var(--${name})`;
          const found = getComputedStyle(e).color;
          e.remove();
          return found;
        }"""
        return str(visitor.page.evaluate(probe, name))

    for ground in ("page", "panel"):
        texts = {
            name: contrast(colour(name), colour(ground)) for name in ("text", "quiet", "accent", "warning")
        }
        lines = {
            name: contrast(colour(name), colour(ground))
            for name in ("line", *(f"member-{k}" for k in range(6)))
        }
        assert {name: ratio for name, ratio in texts.items() if ratio < 4.5} == {}
        assert {name: ratio for name, ratio in lines.items() if ratio < 3} == {}
    assert contrast(colour("on-accent"), colour("accent")) > 4.5


# Sizes


def full(visitor: Visitor) -> None:
    """Fill every panel of the chat, with words that have no place to break."""
    visitor.the("summary").filter(has_text="Settings").click()
    visitor.page.get_by_label("The answer is JSON").check()
    visitor.ask("x" * 200)
    visitor.ask("form")
    visitor.the("#belief summary").click()
    visitor.the("#ask-members").click()
    expect(visitor.the("#ask-members")).to_be_enabled()


def is_too_wide(visitor: Visitor) -> bool:
    return bool(visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", ["desk", "phone"])
def test_nothing_is_wider_than_the_screen(scheme: str, screen: str, visit: Visit, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"viewport": PHONE, "has_touch": True} if screen == "phone" else {}
    chat = visit(color_scheme=scheme, **settings).ready()
    full(chat)
    chat.page.screenshot(path=tmp_path / "chat.png", full_page=True)
    assert not is_too_wide(chat)
    chat.tokens().nth(2).click()
    expect(chat.the("#token-title")).to_have_text("Token 3 of 7")
    chat.page.screenshot(path=tmp_path / "token.png")
    assert not is_too_wide(chat)

    if screen == "phone":
        chat.the("#token-close").click()
    chat.the("#policy-sent").check()
    chat.ask("torn")
    chat.page.screenshot(path=tmp_path / "withheld.png", full_page=True)
    assert not is_too_wide(chat)

    decisions = visit("#decisions", color_scheme=scheme, **settings).ready()
    ask_all(decisions)
    decisions.page.screenshot(path=tmp_path / "decisions.png", full_page=True)
    assert not is_too_wide(decisions)


def test_on_a_phone_the_numbers_of_a_token_lie_over_the_page_until_closed(visit: Visit) -> None:
    visitor = visit(viewport=PHONE, has_touch=True).ready()
    visitor.ask("torn")
    visitor.tokens().nth(2).tap()

    expect(visitor.the("#token-title")).to_have_text("Token 3 of 10")
    above, sheet = visitor.tokens().nth(2).bounding_box(), visitor.the("#token").bounding_box()
    assert above
    assert sheet
    assert above["y"] + above["height"] <= sheet["y"] < sheet["y"] + sheet["height"] <= PHONE["height"]
    visitor.page.get_by_role("button", name="Close", exact=True).tap()
    expect(visitor.the("#token-title")).to_have_text("Token")


# The keyboard and whoever listens


def focused(visitor: Visitor) -> str:
    """The element with the focus, by its id, class or text."""
    return str(
        visitor.page.evaluate("(e => e.id || e.className || e.textContent.trim())(document.activeElement)")
    )


def test_a_talk_without_a_mouse(visitor: Visitor) -> None:
    keyboard = visitor.page.keyboard
    keyboard.press("Tab")
    assert focused(visitor) == "skip"
    expect(visitor.the(".skip")).to_be_in_viewport()
    keyboard.press("Enter")
    while focused(visitor) != "question":
        keyboard.press("Tab")
    keyboard.type("torn")
    keyboard.press("Enter")
    expect(visitor.tokens()).to_have_count(10)
    expect(visitor.the(".answer[aria-busy=false]")).to_have_count(1)

    keyboard.press("Shift+Tab")
    expect(visitor.tokens().nth(0)).to_be_focused()
    for _ in range(2):
        keyboard.press("ArrowRight")
    expect(visitor.tokens().nth(2)).to_be_focused()
    expect(visitor.the("#token-title")).to_have_text("Token 3 of 10")
    expect(visitor.the("#token-spoken")).to_have_text("Members 0: 98.0\u00a0%, 1: 2.0\u00a0%, 2: 0.0\u00a0%")
    assert visitor.style(visitor.tokens().nth(2), "outline-style") == "solid"
    for key, number in (("End", 9), ("ArrowRight", 9), ("ArrowLeft", 8), ("Home", 0)):
        keyboard.press(key)
        expect(visitor.tokens().nth(number)).to_be_focused()
    keyboard.press("Tab")
    assert focused(visitor) == "question"
    keyboard.press("Shift+Tab")
    expect(visitor.tokens().nth(0)).to_be_focused()  # one stop, at the token where one was


@pytest.mark.parametrize("view", ["#chat", "#decisions"])
def test_the_tab_key_reaches_everything_and_gets_out_again(view: str, visit: Visit) -> None:
    visitor = visit(view).ready()
    if view == "#chat":
        full(visitor)
        visitor.tokens().first.focus()  # its numbers come into the page
        expect(visitor.the("#token-title")).to_have_text("Token 1 of 7")
    else:
        ask_all(visitor)
    tabbable = "a, button, input, select, textarea, summary, [tabindex='0']"
    number = visitor.page.evaluate(
        """tabbable => [...document.querySelectorAll(tabbable)].filter(e => !e.disabled && e.tabIndex >= 0
             && e.checkVisibility({ visibilityProperty: true }) && (e.type !== 'radio' || e.checked)).length""",
        tabbable,
    )
    visitor.page.evaluate(
        """() => {
          window.reached = new Set();
          addEventListener('focusin', (event) => reached.add(event.target));
          document.querySelector('.skip').focus();
        }"""
    )

    for _ in range(number - 1):
        visitor.page.keyboard.press("Tab")

    assert number > 20
    assert visitor.page.evaluate("reached.size") == number
    visitor.page.keyboard.press("Tab")
    assert visitor.page.evaluate("document.activeElement.matches('body, .skip')")


@pytest.mark.parametrize("view", ["#chat", "#decisions"])
def test_every_control_has_a_name_and_every_reference_leads_somewhere(view: str, visit: Visit) -> None:
    visitor = visit(view).ready()
    if view == "#chat":
        full(visitor)
    else:
        ask_all(visitor)

    nameless = """[...document.querySelectorAll('input, select, textarea, button, a, summary')].filter(e =>
      !(e.getAttribute('aria-label') || [...(e.labels ?? [])].some(l => l.textContent.trim()) || e.textContent.trim()
        && !['SELECT', 'TEXTAREA'].includes(e.tagName))).filter(e => e.checkVisibility()).map(e => e.outerHTML)"""
    assert visitor.page.evaluate(nameless) == []
    dangling = """[...document.querySelectorAll('[aria-labelledby], [aria-describedby], [for]')].flatMap(e =>
      ['aria-labelledby', 'aria-describedby', 'for'].flatMap(name => (e.getAttribute(name) ?? '').split(' ')))
      .filter(id => id && !document.getElementById(id))"""
    assert visitor.page.evaluate(dangling) == []
    ids = visitor.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_page_has_landmarks_and_its_parts_have_roles(visitor: Visitor) -> None:
    visitor.ask("torn")
    page = visitor.page

    for role in ("banner", "navigation", "main", "complementary"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text("softspec")
    expect(page.get_by_role("listbox", name="Tokens of the answer")).to_be_visible()
    expect(
        page.get_by_role("option", name=re.compile("token 3, “black”, epistemic 0.613, aleatoric 0.080 nats"))
    ).to_be_visible()
    expect(page.get_by_role("img", name="Belief in each member after every token")).to_be_visible()
    expect(page.get_by_role("img", name="Shades from 0 to 1.099 nats")).to_be_visible()
    expect(page.get_by_role("article", name=re.compile("is asked: torn"))).to_be_visible()


def test_headings_leave_no_level_out(visitor: Visitor) -> None:
    full(visitor)
    levels: Sequence[int] = visitor.page.evaluate(
        "[...document.querySelectorAll('#chat h2, #chat h3, #chat h4')].map(e => Number(e.tagName[1]))"
    )

    assert levels[0] == 2
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_nothing_moves_by_itself(visitor: Visitor) -> None:
    """Whoever wants no motion need not say so."""
    full(visitor)
    names = ("transition-duration", "animation-name", "scroll-behavior")
    moving = (
        "name => [...document.querySelectorAll('*')].map(e => getComputedStyle(e).getPropertyValue(name))"
    )

    assert [set(visitor.page.evaluate(moving, name)) for name in names] == [{"0s"}, {"none"}, {"auto"}]
