"""Lower layers are shared once an answer has shown that nothing changes, and not if anything does."""

import asyncio
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch

from softspec.errors import MixingError

if TYPE_CHECKING:
    from tests.support.engine_harness import EngineHarness

pytestmark = pytest.mark.vllm


class Client:
    """An engine client whose workers answer as they are told, and note what they were told."""

    def __init__(self, first_layer: int = 20, members: int = 4, obstacle: str | None = None) -> None:
        ensemble = SimpleNamespace(first_layer=first_layer, adapters=[None] * members)
        self.registry = SimpleNamespace(ensembles={"jurists": ensemble})
        self.model_config = SimpleNamespace(dtype=torch.float32)
        self.told: list[int | None] = []
        self._obstacle = obstacle

    async def collective_rpc(self, method: str, args: tuple[int | None]) -> list[str | None]:
        assert method == "share_lower_layers"
        self.told += args
        return [self._obstacle]


def start(client: Client, *numbers: float | Exception) -> None:
    """Switch sharing on; the trial's answers have these numbers, with sharing and without."""
    from softspec.engine.front import sharing

    told = iter(numbers)

    async def score(*_: Any) -> list[Any]:
        if isinstance(number := next(told), Exception):
            raise number
        return [SimpleNamespace(tokens=[SimpleNamespace(member_log_probs=(-1.0, number))])]

    with patch.object(sharing, "score_answers", score):
        asyncio.run(sharing.share_lower_layers(client))  # type: ignore[arg-type]


def test_real_engine_shares_after_its_trial(tiny_engine: "EngineHarness") -> None:
    from softspec.engine.front.sharing import share_lower_layers

    (before,) = tiny_engine.call_workers("lower_layer_tokens")
    tiny_engine.run(share_lower_layers(tiny_engine.client))
    (after,) = tiny_engine.call_workers("lower_layer_tokens")
    tiny_engine.call_workers("share_lower_layers", 1)

    computed, lowest = (now - then for now, then in zip(after, before, strict=True))
    # One of two equal answers, of eight and two tokens, was given by two members together.
    assert (computed, lowest) == (40, 30)


def test_trial_that_finds_no_change_leaves_sharing_on() -> None:
    client = Client()

    start(client, -2.0, -2.0001)

    assert client.told == [1, None, 4]


@pytest.mark.parametrize("numbers", [(-2.0, -2.5), (-2.0, float("nan"))])
def test_trial_that_finds_a_change_leaves_sharing_off_and_says_so(
    numbers: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()

    with caplog.at_level(logging.WARNING):
        start(client, *numbers)

    assert client.told == [1, None, None]
    assert (
        "computed for every member: log-probabilities of 'jurists' would change from -2.000 to" in caplog.text
    )


def test_ensemble_that_cannot_answer_leaves_sharing_off(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()

    with caplog.at_level(logging.WARNING):
        start(client, MixingError("no finite numbers"))

    assert client.told == [1, None]
    assert "'jurists' does not answer (no finite numbers)" in caplog.text


def test_model_that_cannot_share_is_told_of_where_there_were_layers_to_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        start(Client(first_layer=0, obstacle="OddLayer takes other arguments"))
        assert not caplog.text
        start(Client(obstacle="OddLayer takes other arguments"))

    assert "computed for every member: OddLayer takes other arguments" in caplog.text


@pytest.mark.parametrize(("first_layer", "members"), [(0, 4), (20, 1)])
def test_nothing_is_tried_where_nothing_is_shared_yet(first_layer: int, members: int) -> None:
    """An ensemble that is loaded later may have something to share."""
    client = Client(first_layer, members)

    start(client)

    assert client.told == [1, 4]
