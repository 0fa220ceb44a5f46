"""What takes minutes says from time to time that it still goes on."""

import logging
import time

import pytest

from softspec.engine.start.waiting import telling_how_long


def test_word_comes_until_the_wait_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "softspec")
    deadline = time.monotonic() + 10
    with telling_how_long("reading", every_s=0.5):
        while len(caplog.messages) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert caplog.messages[:2] == ["reading: 0.5 s so far", "reading: 1 s so far"]


def test_what_is_quick_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "softspec")

    with telling_how_long("reading"):
        pass

    assert caplog.messages == []
