"""The scripted engine of the fast tests answers as vLLM's own routes do, chunk by chunk and field by field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.fake_engine import AGREED, FakeEngine, make_app
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

ASK: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "text": ("/v1/completions", {"prompt": "hello"}),
}
USAGE = {
    "no usage": None,
    "usage at the end": {"include_usage": True},
    "usage all the time": {"include_usage": True, "continuous_usage_stats": True},
}
NAMES = ("object", "finish_reason", "index", "role")
"""Fields whose values are compared; of all others only the kind is."""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM's routes; the engine behind them draws three tokens."""
    from tests.support.scripted_vllm import serving

    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "tiny-base")
    with serving(random_adapters(base, folder / "ensemble", num_members=2)) as server:
        yield server


def outline(value: Any, name: str = "") -> Any:
    """An answer with its texts and numbers replaced by their kinds."""
    if isinstance(value, dict):
        return {key: outline(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [outline(each) for each in value]
    return value if value is None or name in NAMES else type(value).__name__


def common(found: Any, like: Any) -> Any:
    """What `found` has of the fields of `like`, at every depth but in a delta, of which all counts."""
    if isinstance(like, dict) and isinstance(found, dict):
        return {
            key: found[key] if key == "delta" else common(found[key], like[key])
            for key in like
            if key in found
        }
    if isinstance(like, list) and isinstance(found, list) and len(found) == len(like):
        return [common(*pair) for pair in zip(found, like, strict=True)]
    return found


def events(page: str) -> list[Any]:
    """The chunks of a stream, and how it ends."""
    lines = [line.removeprefix("data: ") for line in page.splitlines() if line]
    return [line if line == "[DONE]" else outline(json.loads(line)) for line in lines]


@pytest.mark.parametrize("usage", USAGE.values(), ids=USAGE)
@pytest.mark.parametrize("kind", ASK)
def test_scripted_chunks_are_vllms(vllm: Any, kind: str, usage: dict[str, bool] | None) -> None:
    path, fields = ASK[kind]
    body = {**fields, "stream": True, **({"stream_options": usage} if usage else {})}

    scripted = events(
        TestClient(make_app(FakeEngine([AGREED[:3]]))).post(path, json={**body, "model": "base"}).text
    )

    assert scripted == common(events(vllm.post(path, {**body, "model": "tiny-base"}).text), scripted)


@pytest.mark.parametrize("kind", ASK)
def test_scripted_bodies_are_vllms(vllm: Any, kind: str) -> None:
    path, fields = ASK[kind]

    client = TestClient(make_app(FakeEngine([AGREED[:3]])))
    scripted = outline(client.post(path, json={**fields, "model": "base"}).json())

    assert scripted == common(outline(vllm.post(path, {**fields, "model": "tiny-base"}).json()), scripted)
