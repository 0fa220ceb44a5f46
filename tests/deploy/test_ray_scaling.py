"""The application for Ray Serve, under a load that comes and goes: replicas come and go with it."""

import threading
import time
from pathlib import Path

import openai
import pytest

from tests.support.ray_cluster import ray_cluster
from tests.support.tiny import random_adapters

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.ray]

NUM_CALLERS = 6


def test_replicas_come_and_go_with_the_load_and_no_request_is_lost(tiny_base: Path, tmp_path: Path) -> None:
    ensemble = random_adapters(tiny_base, tmp_path / "law", num_members=2, name="law")
    scaling = {"max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 2, "downscale_delay_s": 10}
    flags = ("--enforce-eager", "--max-num-seqs", "32")
    errors: list[openai.OpenAIError] = []
    over = threading.Event()

    with (
        ray_cluster(ensemble, tmp_path, flags, min_replicas=1, **scaling) as cluster,
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=0, timeout=120) as client,
    ):

        def ask() -> None:
            try:
                client.completions.create(
                    model="law", prompt="May I?", max_tokens=200, extra_body={"ignore_eos": True}
                )
            except openai.OpenAIError as error:
                errors.append(error)

        def call() -> None:
            while not over.is_set():
                ask()

        first = cluster.wait_for_replicas(1)
        callers = [threading.Thread(target=call) for _ in range(NUM_CALLERS)]
        for caller in callers:
            caller.start()
        under_load = cluster.wait_for_replicas(2)
        over.set()
        for caller in callers:
            caller.join()
        deadline = time.monotonic() + 120
        while len(cluster.processes("VLLM::EngineCor")) > 1 and time.monotonic() < deadline:
            ask()
        at_rest = cluster.replicas()

    assert (len(first), len(under_load), len(at_rest)) == (1, 2, 1)
    assert errors == []
