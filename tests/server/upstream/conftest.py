"""What makes hundreds of clients quick: short pauses between attempts, and certificates that are read once."""

from ssl import SSLContext

import httpx2
import pytest

from softspec.server.upstream import call


@pytest.fixture(scope="session")
def certificates() -> SSLContext:
    """Reading them takes longer than most calls do."""
    return httpx2.create_ssl_context()


@pytest.fixture(autouse=True)
def quick_clients(monkeypatch: pytest.MonkeyPatch, certificates: SSLContext) -> None:
    monkeypatch.setattr(call, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("httpcore2.default_ssl_context", lambda **_: certificates)
