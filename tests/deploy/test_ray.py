"""The application for Ray Serve: two replicas on this machine, of which one after the other dies under load.

The tests rely on their order: the replicas are started once, and stopped by the last test.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from softspec.artefact.activation import BlockActivation
from tests.support.ray_cluster import REPLICA, Cluster, environment, ray_cluster
from tests.support.tiny import random_adapters

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.ray]

NUM_MEMBERS = 2
QUESTIONS = range(10)
NUM_CALLERS = 6
FLAGS = ("--enforce-eager", "--max-num-seqs", "32")


@pytest.fixture(scope="module")
def cluster(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    ensemble = random_adapters(
        tiny_base, folder / "law", num_members=NUM_MEMBERS, activation=BlockActivation(), name="law"
    )
    with ray_cluster(ensemble, folder, FLAGS, min_replicas=2, max_replicas=2) as cluster:
        cluster.wait_for_replicas(2)
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=8, timeout=120) as client:
        yield client


def question(number: int, **fields: Any) -> dict[str, Any]:
    """A request whose answer the seed decides, and which takes a while."""
    return {
        "model": "law",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": number,
        "extra_body": {"ignore_eos": True},
        **fields,
    }


def asked(client: openai.OpenAI, number: int) -> tuple[str, str, int]:
    """The text of an answer, the replica that gave it, and how often the client asked again."""
    raw = client.chat.completions.with_raw_response.create(**question(number))
    return raw.parse().choices[0].message.content, raw.headers[REPLICA], raw.retries_taken


@pytest.fixture(scope="module")
def truth(client: openai.OpenAI) -> dict[int, str]:
    """The answers while nobody dies."""
    return {number: asked(client, number)[0] for number in QUESTIONS}


class Load:
    """Callers that ask at once, each every question."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.answers: list[tuple[int, str, str, int]] = []
        self.errors: list[Exception] = []
        self.enough = threading.Event()
        self._client = client
        self._callers = [threading.Thread(target=self._ask_all) for _ in range(NUM_CALLERS)]
        for caller in self._callers:
            caller.start()

    def wait(self) -> None:
        for caller in self._callers:
            caller.join()

    def _ask_all(self) -> None:
        for number in QUESTIONS:
            try:
                self.answers.append((number, *asked(self._client, number)))
            except openai.OpenAIError as error:
                self.errors.append(error)
            if len(self.answers) >= 2 * NUM_CALLERS or self.errors:
                self.enough.set()


def test_replicas_give_the_same_answer_to_the_same_seed(cluster: Cluster, client: openai.OpenAI) -> None:
    given: dict[str, tuple[str, float]] = {}
    while len(given) < 2:
        raw = client.chat.completions.with_raw_response.create(**question(7))
        choice: Any = raw.parse().choices[0]
        given[raw.headers[REPLICA]] = (choice.message.content, choice.uncertainty["mutual_information"])

    first, second = given.values()

    assert first[0] == second[0]
    assert first[1] == pytest.approx(second[1], abs=1e-4)


def test_surface_is_that_of_the_server(cluster: Cluster) -> None:
    answers = {
        path: httpx2.get(f"{cluster.url}{path}", timeout=30) for path in ("/", "/health", "/v1/models")
    }
    refused = httpx2.post(
        f"{cluster.url}/v1/chat/completions", json={"model": "tort", "messages": []}, timeout=30
    )
    named = httpx2.get(f"{cluster.url}/health", headers={"x-request-id": "mine"}, timeout=30)

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert answers["/v1/models"].json()["data"][0]["id"] == "law"
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "NotFoundError")
    assert named.headers.get_list("x-request-id") == ["mine"]


def test_all_rows_of_a_request_run_in_one_replica_until_its_reader_leaves(
    cluster: Cluster, client: openai.OpenAI
) -> None:
    cluster.wait_until_running([0, 0])

    with client.chat.completions.create(**question(0, max_tokens=900, stream=True)) as stream:
        next(stream)
        cluster.wait_until_running([0, NUM_MEMBERS])

    cluster.wait_until_running([0, 0])


def test_no_request_is_lost_when_a_replica_is_killed_under_load(
    cluster: Cluster, client: openai.OpenAI, truth: dict[int, str]
) -> None:
    before = cluster.replicas()
    load = Load(client)
    load.enough.wait()

    cluster.processes("ray::ServeRepli")[0].kill()
    load.wait()

    assert load.errors == []
    assert [(number, text) for number, text, _, _ in load.answers if text != truth[number]] == []
    assert len(load.answers) == NUM_CALLERS * len(QUESTIONS)
    assert max(retries for *_, retries in load.answers) >= 1, "nobody was being answered by the one that died"
    cluster.killed |= before - cluster.replicas()
    assert len(cluster.killed) == 1


def test_a_killed_replica_is_replaced_and_leaves_no_engine(cluster: Cluster) -> None:
    replicas = cluster.wait_for_replicas(2)

    assert not replicas & cluster.killed
    assert len(cluster.processes("VLLM::EngineCor")) == 2


def test_a_replica_whose_engine_dies_leaves_at_once_and_no_request_is_lost(
    cluster: Cluster, client: openai.OpenAI, truth: dict[int, str]
) -> None:
    load = Load(client)
    load.enough.wait()
    engine = cluster.processes("VLLM::EngineCor")[0]
    replica = engine.parent()
    assert replica is not None

    engine.kill()
    psutil.wait_procs([replica], timeout=30)
    load.wait()

    assert not replica.is_running()
    assert load.errors == []
    assert {(number, text) for number, text, _, _ in load.answers} == set(truth.items())
    assert len(load.answers) == NUM_CALLERS * len(QUESTIONS)


def test_a_stopped_replica_finishes_its_answers_first(cluster: Cluster, client: openai.OpenAI) -> None:
    reasons, refused = [], 0
    with client.chat.completions.create(**question(0, max_tokens=900, n=8, stream=True)) as stream:
        next(stream)
        cluster.delete()
        for number, chunk in enumerate(stream):
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
            if not refused and number % 100 == 0:
                status = httpx2.get(f"{cluster.url}/ready", timeout=30).status_code
                refused = 0 if status == 200 else number

    assert refused, "the answer was finished before anything was stopped"
    assert reasons == ["length"] * 8
    psutil.wait_procs(engines := cluster.processes("VLLM::"), timeout=60)
    assert [engine for engine in engines if engine.is_running()] == []


# Without a cluster

TOLD = """
import json, os, sys
from deploy.ray.serve import Arguments, app, claimed_port, settings_of
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built

def refusal(call, *args):
    try:
        call(*args)
    except Exception as error:
        return str(error)

deployment = built(app, {"ensemble": "runs/law", "server_config": "server.yaml"})._bound_deployment
arguments = deployment.init_args[0]
first, claim = claimed_port(20001)
second, other = claimed_port(20001)
claim.close()
print(json.dumps({
    "ensemble": arguments.ensemble,
    "record": str(settings_of(arguments, {}, "r1").record.path),
    "unknown": refusal(built, app, {"ensembles": "runs/law"}),
    "hot loads": refusal(settings_of, arguments, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, "r1"),
    "ports": [first, second, claimed_port(20001)[0]],
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the application says in a process of its own, as Ray is not installed in this one."""
    folder = tmp_path_factory.mktemp("app").resolve()
    (folder / "server.yaml").write_text("record: rows.jsonl\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TOLD],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


def test_paths_are_those_of_whoever_builds_the_application(told: dict[str, Any]) -> None:
    assert told["ensemble"] == [str(told["folder"] / "runs" / "law")]


def test_each_replica_has_a_record_of_its_own(told: dict[str, Any]) -> None:
    assert told["record"] == str(told["folder"] / "rows.r1.jsonl")


def test_unknown_arguments_are_refused(told: dict[str, Any]) -> None:
    assert "ensembles\n  Extra inputs are not permitted" in told["unknown"]


def test_loading_into_one_replica_of_several_is_refused(told: dict[str, Any]) -> None:
    assert "a load would reach one replica of several" in told["hot loads"]


def test_replicas_of_a_node_claim_different_ports_for_metrics(told: dict[str, Any]) -> None:
    assert told["ports"] == [20001, 20002, 20001]
