"""Thousands of strangers at a real server: everybody is answered or told why not, and nothing stays behind."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.soak.flaky_upstream import flaky_upstream
from tests.server.soak.load import Outcome, send_all
from tests.server.soak.resources import Held, held_by, series
from tests.server.soak.traffic import COMING, ENSEMBLE, LARGEST_BODY, Ask, Traffic, leading_back, unloading
from tests.support.key_files import key_file, secret
from tests.support.real_server import RealServer, softspec_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LAUNCH = "from pathlib import Path; from tests.server.soak.resources import main; main(Path({!r}))"
KEYS: dict[str, dict[str, Any]] = {
    "good": {},
    "admin": {"admin": True},
    "narrow": {"models": [ENSEMBLE]},
    "busy": {"requests_per_minute": 20},
    "single": {"concurrent_requests": 1},
}
SECRETS = {name: secret(name) for name in KEYS}
CONFIG = """\
access: {{keys: {keys}, limits: {{max_body_bytes: {largest}}}}}
upstreams: {{big: {{url: "{url}", model: big-1, timeout_s: 5, max_retries: 1, circuit_open_s: 1}}}}
aliases: {{live: {{law: 1, tax: 0}}}}
"""
IDLE_CONNECTIONS = 2
"""How many more to the upstream may be kept open for the next request."""
MOST_GROWTH = 1.05
"""Of a process's memory, from the first to the second half of the requests."""


@contextmanager
def serving(folder: Path) -> Iterator[RealServer]:
    base = tiny_llama(folder / "tiny-base")
    ensemble = random_adapters(base, folder / ENSEMBLE, num_members=2, name=ENSEMBLE)
    random_adapters(base, folder / COMING, num_members=2, name=COMING, seed=7)
    log, config = folder / "log", folder / "server.yaml"
    launch = ("-c", LAUNCH.format(str(log.with_suffix(".tasks"))))
    with flaky_upstream(seed=1) as upstream:
        keys = key_file(folder, **KEYS)
        config.write_text(CONFIG.format(keys=keys, largest=LARGEST_BODY, url=upstream.url))
        flags = ("--server-config", str(config), "--max-loras", "4")
        allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        with softspec_server(ensemble, log, *flags, softspec=launch, **allowed) as server:
            server.wait_until_ready()
            yield server


def soak(server: RealServer, count: int, folder: Path) -> tuple[Outcome, Held, Held]:
    """Half of the requests, a look, the other half, another look; the same seeds have the same answers in both."""
    first, before = soak_once(server, Traffic(1, folder).asks(count // 2), seed=1)
    second, after = soak_once(server, Traffic(2, folder).asks(count // 2), seed=2)
    for number in first.replayed.keys() & second.replayed.keys():
        if first.replayed[number] != second.replayed[number]:
            second.problems.append(
                f"replay {number}: {first.replayed[number]} then {second.replayed[number]}"
            )
    total = Outcome(first.counts + second.counts, first.problems + second.problems, second.replayed)
    return total, before, after


def soak_once(server: RealServer, asks: Iterator[Ask], seed: int) -> tuple[Outcome, Held]:
    outcome = asyncio.run(send_all(server.url, SECRETS, asks, seed))
    for ask in (leading_back(), unloading()):
        asyncio.run(send_all(server.url, SECRETS, [ask], seed))
    return outcome, held_by(server, {"authorization": f"Bearer {SECRETS['good']}"})


@pytest.mark.parametrize(
    "count", [pytest.param(400), pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(5400)])]
)
def test_everybody_is_answered_and_nothing_stays_behind(count: int, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        outcome, before, after = soak(server, count, tmp_path)
        print(f"\n{count} requests: {dict(sorted(outcome.counts.items()))}\nbefore {before}\nafter  {after}")
        counted = series(server)
        lines = [json.loads(line) for line in server.requests.read_text("utf-8").splitlines()]

        assert not outcome.problems, "\n".join(outcome.problems[:20])
        assert outcome.answered == count // 2 * 2
        assert len(lines) >= outcome.counts.total() / 2
        assert {line["status"] for line in lines if line["status"] >= 500} <= {502}
        assert not [name for name, value in counted.items() if "_errors_total" in name and value]
        assert after.models == before.models
        assert after.tasks <= before.tasks
        assert all(now <= then for now, then in zip(after.threads, before.threads, strict=True))
        for now, then in zip(after.files, before.files, strict=True):
            assert now <= then + IDLE_CONNECTIONS
        for now, then in zip(after.memory, before.memory, strict=True):
            assert now < then * MOST_GROWTH, f"{then / 2**20:.0f} MiB, then {now / 2**20:.0f} MiB"
        assert "Traceback" not in server.log.read_text(errors="replace")
