"""The commands of the documents work: every block is run as it stands, or the reason why not is here.

Nothing of a block is rewritten but what `SUBSTITUTIONS` says: small numbers and a tiny random base in place of large
ones, and the port of a server around a scripted engine. A block that nobody knows fails.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from softspec.app.cli.main import main
from softspec.errors import Interrupted
from softspec.train.config import load_config
from softspec.train.data.preferences import read_preferences
from softspec.train.data.reading import Reading, read_examples
from softspec.train.run import train_ensemble
from tests.support.documents import ROOT, Block, blocks
from tests.support.key_files import key_file
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer
from tests.support.tiny_training import chat_rows, write_rows
from tests.support.training_runs import signal_in_step

BASE = "base"
SUBSTITUTIONS = {
    "~/.cache/softspec/models/smollm2-135m-instruct": BASE,
    "max_steps: 200": "max_steps: 4",
}
"""In configurations. In clients `localhost:8000` becomes the address of the scripted server."""
RUN = {
    "softspec train my.yaml": "train",
    "softspec train my.yaml --resume": "resume",
    "torchrun --nproc-per-node 2 --no-python softspec train my.yaml": "train",
    "from pathlib import Path": "python",
    "import json\nimport random": "python",
    "import softspec": "python",
    "from anthropic import Anthropic": "ask",
    "from openai import OpenAI": "ask",
    "from json import loads": "ask",
    "curl localhost:8000/v1/chat/completions": "ask",
    "curl localhost:8000/v1/decisions": "ask",
    "curl localhost:8000/v1/load_ensemble": "ask",
    "curl localhost:8000/v1/uncertainty": "ask",
    "softspec key new": "python",
    "softspec plan": "plan",
    "softspec serve runs/my": "serve",
    "softspec serve runs/my runs/my-v2": "serve",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 softspec serve runs/my": "serve",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 softspec serve runs/my --max-loras 8": "serve",
}
"""How a block is run, by what its first line begins with; the longest match counts."""
NOT_RUN = {
    "make setup": "the environment of this test is what it makes",
    "import matplotlib": "asks a real model a thousand times; tests/ensemble asks a tiny one the same way",
    "make ray": "starts a real engine; tests/deploy/test_ray.py serves a tiny ensemble the same way",
    "ray start --head": "needs Ray's dashboard; tests/deploy/test_ray.py starts Ray and Serve without it",
    "make try": "starts a real engine; tests/app/demo asks the shipped ensemble behind a scripted one",
    "docker": "needs a Docker engine; tests/deploy takes the steps of the image without one",
    "softspec demo": "takes minutes and an engine; tests/app/demo runs it on a tiny base and scripted answers",
    "softspec bench train": "takes minutes; tests/app/bench runs it on a tiny base",
    "softspec alias": "asks a server that has an alias; tests/server/rollout runs it against one",
    "softspec compare": "asks a server that was asked a lot; tests/app/compare runs it against one",
    "softspec diagnose": "takes minutes; tests/train/diagnosis runs it on a tiny base",
    "softspec evaluate": "takes minutes; tests/app/test_evaluate.py runs it on a tiny ensemble",
    "softspec calibrate": "needs rows with a truth; tests/calibration runs it on scripted and tiny ensembles",
    "softspec report": "needs a run and its scores; tests/app/report runs it on a tiny ensemble and in a browser",
    "softspec baselines": "trains five models; tests/app/baselines runs it on a tiny base",
    "softspec score": "starts a real engine; tests/app/score runs it on a tiny base",
    "softspec select": "takes minutes; tests/train/selection runs it on a tiny base",
    "softspec serve runs/my --port 8000 --print-vllm-command": "tests/server/test_vllm_command.py runs what it prints",
    "CONFIG=my.yaml NPROC=8 deploy/train/torchrun.sh": "wants GPUs; tests/deploy/test_train_recipes.py runs all of it",
    "kubectl create namespace": "needs a cluster; tests/deploy renders the chart and checks what comes out",
    "softspec bench load": "asks a running server; tests/app/bench runs it on scripted ones",
    "softspec bench serve": "takes minutes and an engine; tests/app/bench runs it on a tiny base",
}
"""Why a block is not run; its commands and flags are checked by name in `test_documents.py`."""
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
"""The `config.json` of plans."""
MY_YAML = next(block for block in blocks() if block.document == "README.md" and block.language == "yaml")
LANGUAGES = {"sh", "python"}


def beginning(block: Block) -> str | None:
    """Which entry of RUN or NOT_RUN is about a block."""
    known = [start for start in (*RUN, *NOT_RUN) if block.text.startswith(start)]
    return max(known, key=len, default=None)


def to_run(*ways: str) -> list[Any]:
    """The blocks that are run in one of these ways, as parameters."""
    found = [block for block in blocks() if block.language in LANGUAGES]
    return [pytest.param(block, id=block.place) for block in found if RUN.get(beginning(block) or "") in ways]


def test_every_block_is_known() -> None:
    unknown = [block.place for block in blocks() if block.language in LANGUAGES and beginning(block) is None]

    assert unknown == [], "say in RUN how to run it, or in NOT_RUN why not"


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "json"], ids=lambda block: block.place
)
def test_shown_rows_can_be_read(block: Block) -> None:
    row = json.loads(block.text)
    if "uncertainty" in row:
        pytest.skip("an answer, which test_documents.py compares with a real one")
    if "request_id" in row or "span_id" in row:
        pytest.skip("a line of a log or a span, which tests/server/observe compares with real ones")
    read: Any = read_preferences if "chosen" in row else read_examples
    tokenizer = tiny_tokenizer()

    units = list(read([(block.place, row)], Reading(tokenizer, {tokenizer.eos_token_id}, 1024)))

    assert len(units) == len(row.get("votes", "1"))


def substituted(text: str, substitutions: dict[str, str]) -> str:
    for found, instead in substitutions.items():
        text = text.replace(found, instead)
    return text


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What a reader has before the first command: data, README's `my.yaml`, and a key."""
    tiny_llama(tmp_path / BASE)
    rows = [
        json.loads(block.text)
        for block in blocks()
        if block.document == "README.md" and '"source"' in block.text
    ]
    write_rows(tmp_path / "train.jsonl", rows + chat_rows())
    write_rows(tmp_path / "held_out.jsonl", chat_rows(4))
    key_file(tmp_path, first={})
    (tmp_path / "my.yaml").write_text(substituted(MY_YAML.text, SUBSTITUTIONS), encoding="utf-8")
    return tmp_path


def run(block: Block, folder: Path, **environment: str) -> str:
    """Run a block in a folder; returns what it printed. `softspec` is this checkout's."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "softspec"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m softspec.app.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (folder / ".curlrc").write_text("fail\nsilent\nshow-error\n", encoding="utf-8")
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-e", "-c"]
    done = subprocess.run(
        [*program, block.text],
        cwd=folder,
        env={
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "CURL_HOME": str(folder),
            "NO_PROXY": "*",
            "ACCELERATE_USE_CPU": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", to_run("train"))
def test_training_commands_write_the_ensemble_they_promise(block: Block, workspace: Path) -> None:
    printed = run(block, workspace)

    assert "wrote " in printed
    assert (workspace / "runs" / "my" / "ensemble.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("block", to_run("resume"))
def test_resuming_commands_go_on_from_a_checkpoint(block: Block, workspace: Path) -> None:
    with signal_in_step(2, signal.SIGTERM), pytest.raises(Interrupted):
        train_ensemble(load_config(workspace / "my.yaml"))

    printed = run(block, workspace)

    assert "wrote " in printed


@pytest.mark.slow
@pytest.mark.parametrize("block", to_run("plan"))
def test_plans_are_printed_as_they_are_shown(block: Block, workspace: Path) -> None:
    """The text that follows a command in its document."""
    (workspace / "llama-8b").mkdir()
    (workspace / "llama-8b" / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    behind = next((b for b in blocks() if b.document == block.document and b.line > block.line), None)

    printed = run(block, workspace)

    assert behind is None or behind.language != "text" or behind.text == printed


@pytest.mark.slow
@pytest.mark.parametrize("block", to_run("python"))
def test_programs_run_beside_the_configuration_and_an_ensemble(block: Block, workspace: Path) -> None:
    random_adapters(workspace / BASE, workspace / "runs" / "my", num_members=2, name="my")

    run(block, workspace)


@pytest.mark.vllm
@pytest.mark.parametrize("block", to_run("serve"))
def test_serving_commands_are_understood_by_vllm(block: Block, workspace: Path) -> None:
    """All but the engine: our command line, the arguments that it makes, and vLLM's own parser."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in ("my", "my-v2"):
        random_adapters(workspace / BASE, workspace / "runs" / name, num_members=2, name=name)
    words = shlex.split(block.text, comments=True)
    command = words[words.index("softspec") + 1 :]

    with (
        chdir(workspace),
        patch.dict(os.environ),
        patch("softspec.engine.start.serve.run") as start_vllm,
    ):
        assert main(command) == 0

    model, *arguments = start_vllm.call_args.args[0]
    assert make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", model, *arguments]).enable_lora


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with `runs/my` and `runs/demo`, and the address at which both are served by a scripted engine."""
    import uvicorn

    from tests.support.scripted_vllm import serving

    folder = tmp_path_factory.mktemp("served")
    tiny_llama(folder / BASE)
    for name in ("my", "demo"):
        random_adapters(folder / BASE, folder / "runs" / name, num_members=2, name=name)
    with (
        chdir(folder),  # where the server looks for the ensembles that it is asked to load
        serving(folder / "runs" / "my", "--max-loras", "8", VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as server,
    ):
        listener = socket.create_server(("127.0.0.1", 0))  # who connects before it is served waits
        web = uvicorn.Server(uvicorn.Config(server.app, lifespan="off", log_level="warning"))
        thread = threading.Thread(target=lambda: server.run(web.serve(sockets=[listener])))
        thread.start()
        yield folder, f"127.0.0.1:{listener.getsockname()[1]}"
        web.should_exit = True
        thread.join()


def load(address: str, name: str) -> None:
    """Serve an ensemble anew, whatever the blocks before this one did with it."""
    body = json.dumps({"path": f"runs/{name}", "replace": True}).encode()
    headers = {"Content-Type": "application/json"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(urllib.request.Request(f"http://{address}/v1/load_ensemble", body, headers)).close()


@pytest.mark.vllm
@pytest.mark.parametrize("block", to_run("ask"))
def test_clients_are_answered(block: Block, served: tuple[Path, str]) -> None:
    folder, address = served
    for name in ("my", "demo"):
        load(address, name)

    printed = run(replace(block, text=block.text.replace("localhost:8000", address)), folder)

    assert re.search(r"mutual_information|nats|Success", printed)
