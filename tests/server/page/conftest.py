"""A browser and a running server for the tests of one file."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.page_server import PageServer, page_server
from tests.support.visitor import CHROMIUM, NO_CHROMIUM, Visitor, chromium

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def running() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def server(running: PageServer) -> PageServer:
    running.restore()
    return running


@pytest.fixture
def visit(browser: Browser, server: PageServer) -> Iterator[Visit]:
    """Open the page; whatever the browser complained of fails the test at its end."""
    visitors: list[Visitor] = []

    def open_page(path: str = "", **settings: Any) -> Visitor:
        visitors.append(Visitor(browser, server.url + path, **settings))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.leave()


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    return visit().ready()
