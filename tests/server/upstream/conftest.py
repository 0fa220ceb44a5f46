"""Pauses between attempts that a test can wait for."""

import pytest

from softspec.server.upstream import call


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "FIRST_PAUSE_S", 0.02)
