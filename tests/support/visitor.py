"""Somebody who uses the page in a browser: what they do and see, and what their browser complains of.

In: a browser and a page's address. Out: a tab to act in. Whoever is done calls `leave`, which fails on any complaint
and on any request to another host.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "there is no chromium: apt-get install chromium"
PATIENCE_MS = 20_000
"""How long something may take to show; a machine that does much else may need it."""
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. While it runs, this thread can run no event loop of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """One tab, in a profile of its own."""

    def __init__(self, browser: Browser, url: str, **settings: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"viewport": DESK, **settings})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        # A browser says so of every answer that is an error; what the page makes of it is looked at.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def leave(self) -> None:
        """Close the tab."""
        self.context.close()
        host = urlsplit(self.url).netloc
        assert [url for url in self.asked if urlsplit(url).netloc != host] == []
        assert self.complaints == []

    def the(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def ready(self) -> "Visitor":
        """Wait until the models are listed."""
        expect(self.the("#model option")).not_to_have_count(0)
        return self

    def ask(self, question: str) -> None:
        """Ask, and wait for the end of the answer."""
        turns = self.the(".turn").count()
        self.the("#question").fill(question)
        self.the("#question").press("Enter")
        expect(self.the(".answer[aria-busy=false]")).to_have_count(turns + 1)

    def tokens(self) -> Locator:
        """The tokens of the last answer."""
        return self.the(".turn").last.locator(".token")

    def alert(self) -> Locator:
        return self.the("#alert")

    def style(self, element: Locator, name: str) -> str:
        """A computed style."""
        value = element.evaluate("(element, name) => getComputedStyle(element).getPropertyValue(name)", name)
        return str(value)

    def call(self, module: str, body: str, *arguments: Any) -> Any:
        """What a function of one of the page's modules gives; `body` sees the module as `m`, and arguments as `a`."""
        code = f"async ([url, text]) => {{ const m = await import(url); const a = JSON.parse(text); {body} }}"
        return self.page.evaluate(code, [f"{self.url}playground/{module}.js", json.dumps(arguments)])
