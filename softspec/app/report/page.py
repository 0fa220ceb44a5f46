"""Views become one HTML file that loads nothing.

In: views. Out: text. Everything from data is escaped; only plots are put in as they are, and they hold no data's words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from softspec import __version__
from softspec.app.report.meanings import SECTIONS
from softspec.app.report.refusals import RedTeam
from softspec.app.report.views import ScoresView, TrainingView
from softspec.artefact.calibration import Calibration
from softspec.evaluation.rows import Prompt


@dataclass(frozen=True)
class Page:
    """All that a report shows; parts that are not there are None or empty, and `missing` says how to get them."""

    title: str
    facts: Sequence[tuple[str, str]]
    training: TrainingView | None
    scores: Sequence[ScoresView]
    calibration: Sequence[Calibration]
    red_team: RedTeam | None
    missing: Sequence[tuple[str, str]]


def as_html(page: Page) -> str:
    """The page, one file."""
    environment = Environment(
        loader=PackageLoader("softspec.app.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "turns": turns}
    template = environment.get_template("page.html")
    text = template.render(sections=SECTIONS, version=__version__, **vars(page))
    # A lone half of a surrogate pair, which JSON can name, is no text.
    return text.encode("utf-8", "replace").decode().lstrip()


def number(value: float | None, digits: int = 3) -> str:
    """A number as the tables have it; a dash for none."""
    if value is None or value != value:
        return "–"
    shown = f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.1e}"
    return shown.replace("-", "−") if shown.strip("-0.") else shown.lstrip("-")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def turns(prompt: Prompt) -> list[tuple[str | None, str]]:
    """Who says what; a prompt that is text has one turn of nobody."""
    if isinstance(prompt, str):
        return [(None, prompt)]
    return [(str(turn.get("role", "")), _content(turn.get("content"))) for turn in prompt]


def _content(content: Any) -> str:
    """The text of a message, whose content may be in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)
