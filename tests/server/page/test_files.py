"""The page's files as they are served: what they may do in a browser, and that they need nothing but this server."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from softspec.server.page.routes import FOLDER, MEDIA_TYPES, add_page_routes

FILES = sorted(FOLDER.iterdir())
MODULES = [path for path in FILES if path.suffix == ".js"]
INDEX = (FOLDER / "index.html").read_text(encoding="utf-8")
NAMESPACES = {"http://www.w3.org/2000/svg"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = FastAPI()
    add_page_routes(app)
    with TestClient(app) as client:
        yield client


def test_the_page_is_at_the_root(client: TestClient) -> None:
    answer = client.get("/")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text == INDEX


@every_file
def test_each_file_is_served_as_what_it_is(client: TestClient, path: Path) -> None:
    answer = client.get(f"/playground/{path.name}")

    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"] == MEDIA_TYPES[path.suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("place", ["/", "/playground/main.js"])
def test_a_browser_runs_and_asks_nothing_but_this_server(client: TestClient, place: str) -> None:
    policy = client.get(place).headers["content-security-policy"]

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_a_file_that_did_not_change_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/playground/page.css")

    same = client.get("/playground/page.css", headers={"If-None-Match": f'W/"old", {first.headers["etag"]}'})
    other = client.get("/playground/page.css", headers={"If-None-Match": client.get("/").headers["etag"]})

    assert first.headers["cache-control"] == "no-cache"
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("name", ["nothing.js", "../routes.py", "routes.py", "__init__.py", ""])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/playground/{quote(name, safe='')}").status_code == 404


def test_it_works_below_a_path(client: TestClient) -> None:
    """As behind a proxy with `--root-path`: every address in the page is relative to where it is."""
    below = TestClient(client.app, root_path="/behind")
    addresses = re.findall(r"(?:src|href)=\"([^\"#]+)", INDEX)

    assert len(addresses) == 3
    assert [below.get(f"/behind/{address}").status_code for address in addresses] == [200] * 3
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"from \"((?!\./)[^\"]+)", text) == []
        assert re.findall(r"(?:fetch|get|post|stream|urlOf)\([\"'`]/", text) == []


@every_file
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert set(re.findall(r"\w+://[^\s\"'`)]+", text)) <= NAMESPACES
    assert not re.search(r"[\"'(]//\w", text)


@every_module
def test_no_text_becomes_markup_or_code(path: Path) -> None:
    """Answers, errors and names are text nodes, whatever they say."""
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    )
    forbidden += r"|\beval\b|new Function|setTimeout\(\s*[\"'`]|setAttribute\(\"(?:style|on)|javascript:"

    assert re.findall(forbidden, path.read_text(encoding="utf-8")) == []


def test_the_page_itself_has_no_script_and_no_style() -> None:
    """The policy would forbid both."""
    assert re.findall(r"<script(?![^>]+src=)|<style|\sstyle=|\son\w+=", INDEX) == []


@every_module
def test_modules_import_files_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for names, module in re.findall(r"import {([^}]+)} from \"\./(\w+\.js)\"", text):
        there = (FOLDER / module).read_text(encoding="utf-8")
        exported = set(
            re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", there, re.MULTILINE)
        )
        imported = {name.strip() for name in names.split(",")}
        assert imported <= exported, f"{module} exports no {imported - exported}"
        for name in imported:
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is imported and not used"


@every_module
def test_what_modules_look_for_is_in_the_page(path: Path) -> None:
    named = set(re.findall(r"byId\(\"([\w-]+)\"\)", path.read_text(encoding="utf-8")))

    assert named <= set(re.findall(r"\sid=\"([\w-]+)\"", INDEX))


def test_every_file_is_in_use() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)

    assert [path.name for path in FILES if path.name != "index.html" and f"/{path.name}" not in text] == []
