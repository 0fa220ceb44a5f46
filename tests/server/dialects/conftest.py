"""A server with tools, reasoning and vLLM's store of responses, for both dialects."""

from collections.abc import Iterator

import pytest

from tests.support.scripted_core import ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.spelled import says
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "tiny-base")
    tokenizer = tiny_tokenizer(vocab_size=318)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(base)
    ensemble = random_adapters(base, folder / NAME, num_members=2)
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_r1")
    with serving(ensemble, *flags, engine_of=ScriptedAsyncLLM, VLLM_ENABLE_RESPONSES_API_STORE="1") as server:
        says(server, "</think>ok")
        server.wait_until_ready()
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grammars are read in milliseconds, unless the machine has other things to do."""
    monkeypatch.setattr("softspec.engine.front.grammar.CHECK_LIMIT_S", 60)
