"""What stands in place of vLLM's HTTP server where another one serves the app."""

import asyncio

import pytest

pytestmark = pytest.mark.vllm


def test_a_process_leaves_once_however_often_its_server_is_told_to_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from softspec.engine.start import mounted

    monkeypatch.setattr(mounted, "LAST_WORDS_S", 0)

    async def left() -> int:
        departures: list[None] = []
        server = mounted.StandIn(lambda: departures.append(None))
        server.should_exit = False
        for _ in range(2):
            server.should_exit = True
        assert server.should_exit
        assert departures == [], "answers could not be sent any more"
        await asyncio.sleep(0.01)
        return len(departures)

    assert asyncio.run(left()) == 1
