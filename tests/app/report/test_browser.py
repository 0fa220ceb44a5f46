"""A report in a browser without network: it complains of nothing, asks for nothing, and fits a phone and paper."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from softspec.app.cli.main import main
from softspec.app.report.page import Page, as_html
from softspec.app.report.refusals import judge_refusals, refusal_rule
from softspec.app.report.samples import Sampled
from tests.support.reported_run import HOSTILE, log_training, scored_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--log-level=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
PROBE = """<!DOCTYPE html><title>probe</title><iframe style="width:{width}px;height:9000px" id="frame"
src="{page}"></iframe><p id="found"></p><script>
onload = () => {{
  const frame = document.getElementById("frame"), page = frame.contentDocument;
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  const own = page.documentElement, wide = [...page.querySelectorAll("svg")].filter(
    svg => !svg.closest(".wide") && svg.getBoundingClientRect().right > {width});
  document.getElementById("found").textContent = JSON.stringify({{
    scroll: own.scrollWidth, title: page.title, wide: wide.length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
    headings: [...page.querySelectorAll("h2, h3")].map(h => h.textContent.trim()),
    text: page.body.innerText.length }});
}};
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_ensembles: dict[str, Path]) -> Path:
    """Everything that a report can have, of texts that would break it if they could."""
    folder = tmp_path_factory.mktemp("browser")
    run = Path(shutil.copytree(tiny_ensembles["block-2"], folder / "run"))
    log_training(run)
    data, scores = scored_rows(folder, run)
    report = folder / "report.html"
    command = ["report", str(run), "--scores", str(scores), "--data", str(data), "--bootstrap", "20"]
    assert main([*command, "--output", str(report)]) == 0
    return report


def browse(address: str, profile: Path, *flags: str) -> tuple[str, str]:
    """What a browser says of a page: its document, and its log."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, address]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("width", [360, 1100], ids=["phone", "screen"])
def test_a_page_fits_and_asks_for_nothing(page: Path, tmp_path: Path, width: int) -> None:
    probe = page.with_name(f"probe-{width}.html")
    probe.write_text(PROBE.format(width=width, page=page.name), encoding="utf-8")

    document, log = browse(
        probe.as_uri(),
        tmp_path / "profile",
        "--allow-file-access-from-files",
        "--dump-dom",
        "--window-size=1400,9000",
    )

    text = re.search(r'<p id="found">(.*?)</p>', document, re.DOTALL)
    assert text is not None
    found = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["scroll"] <= width
    assert found["wide"] == 0
    assert found["loaded"] == 0
    assert found["title"] == "block-2"
    assert {"Training", "Load", "Reliability", "Risk and coverage", "Most contested"} <= set(
        found["headings"]
    )
    assert found["text"] > 40_000
    assert "CONSOLE" not in log
    assert "NAME_NOT_RESOLVED" not in log


def test_a_page_that_asks_for_something_would_be_noticed(tmp_path: Path) -> None:
    """The control: what the other tests look for is there when it should be."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://softspec.invalid/a.png"><script>undefined_name()</script>')

    _, log = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")

    assert "CONSOLE" in log


def test_a_page_can_be_printed(page: Path, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"

    browse(page.as_uri(), tmp_path / "profile", f"--print-to-pdf={printed}")

    assert printed.read_bytes().startswith(b"%PDF")
    assert printed.stat().st_size > 20_000


def test_a_red_team_of_hostile_prompts_runs_nothing(tmp_path: Path) -> None:
    sampled = [Sampled(HOSTILE, (("I cannot <script>",) * 4, ("Sure </td></table>",) * 4))]
    red_team = judge_refusals(sampled, (-0.6931471805599453,) * 2, refusal_rule(None))
    report = tmp_path / "report.html"
    report.write_text(as_html(Page("</title>red", [], None, [], [], red_team, [])), encoding="utf-8")

    document, log = browse(report.as_uri(), tmp_path / "profile", "--dump-dom")

    assert "<title>&lt;/title&gt;red</title>" in document
    assert "<script" not in document
    assert "CONSOLE" not in log
