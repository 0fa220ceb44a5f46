"""What the chart tells the server, and whether the server understands it."""

import os
import re
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pytest

from softspec.app.cli.main import main
from softspec.server.ops.server_config import read_server_config
from tests.support.chart import CASES, Manifest, container_of, only, pod_of, render
from tests.support.documents import read
from tests.support.key_files import key_file
from tests.support.tiny import random_adapters

pytestmark = pytest.mark.slow

AT_HOME = {"HOME", "USER"}
"""Variables of any program, which no document of ours explains."""


def arguments_here(manifests: list[Manifest], folder: Path) -> list[str]:
    """The container's arguments with what it would find lying in a folder, a file of keys among it."""
    key_file(folder, mine={})
    for manifest in manifests:
        for name, content in manifest.get("data", {}).items():
            (folder / name).write_text(content, encoding="utf-8")
    places = {"/ensembles/": f"{folder}/", "=/base": f"={folder}/base", "=/etc/softspec/": f"={folder}/"}
    arguments = container_of(manifests)["args"]
    for there, here in places.items():
        arguments = [argument.replace(there, here) for argument in arguments]
    return [
        f"--keys={folder}/keys.yaml" if argument.startswith("--keys=") else argument for argument in arguments
    ]


@pytest.mark.vllm
@pytest.mark.parametrize("case", ["the least", "on a CPU", "everything"])
def test_softspec_serve_understands_the_arguments(
    case: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the engine: our command line, the settings, the server's file, and vLLM's own parser."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    examples, values = CASES[case]
    manifests = render(*examples, values=values)
    (tmp_path / "base").symlink_to(tiny_base)
    for name in ("my", "law", "tax"):
        random_adapters(tiny_base, tmp_path / name, num_members=2, name=name)
    monkeypatch.setenv("LARGE_API_KEY", "sk-1")
    program, command = container_of(manifests)["command"]

    # What is served is told to vLLM by variables, which other tests must not inherit.
    with chdir(tmp_path), patch.dict(os.environ), patch("softspec.engine.start.serve.run") as start_vllm:
        assert main([command, *arguments_here(manifests, tmp_path)]) == 0

    model, *arguments = start_vllm.call_args.args[0]
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", model, *arguments])
    assert (program, command) == ("softspec", "serve")
    assert (parsed.port, parsed.host) == (8000, None)
    assert model == str(tmp_path / "base")


def test_the_servers_file_arrives_as_it_was_written(tmp_path: Path) -> None:
    """Helm reads every number as a float; what is a count must be one at the other end."""
    record = {"path": "/var/rows.jsonl", "max_bytes": 100_000_000}
    manifests = render("oci", values={"serverConfig": {"record": record}})
    (tmp_path / "server.yaml").write_text(
        only("ConfigMap", manifests)["data"]["server.yaml"], encoding="utf-8"
    )

    config = read_server_config(tmp_path / "server.yaml")

    assert config.record
    assert config.record.max_bytes == 100_000_000
    assert (config.policy.action, config.policy.threshold) == ("route", 0.5)


def test_ensembles_and_base_are_read_only_at_the_paths_of_the_arguments() -> None:
    manifests = render("oci")
    mounts = {mount["mountPath"]: mount for mount in container_of(manifests)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(manifests)["volumes"]}

    images = {
        path: volumes[mount["name"]]["image"]["reference"]
        for path, mount in mounts.items()
        if "image" in volumes[mount["name"]]
    }

    assert images == {
        "/base": "registry.example.com/bases/llama-8b:1",
        "/ensembles/law": "registry.example.com/ensembles/law:3",
        "/ensembles/tax": "registry.example.com/ensembles/tax:1",
    }
    assert all(mounts[path]["readOnly"] for path in images)
    assert container_of(manifests)["args"][:2] == ["/ensembles/law", "/ensembles/tax"]


def test_variables_are_those_of_the_operators_and_of_the_document(manifests: list[Manifest]) -> None:
    table = read("deploy/README.md").split("## Variables")[1]
    known = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table)) | AT_HOME
    given = {variable["name"] for variable in container_of(manifests)["env"]}

    assert given - known <= {"LARGE_API_KEY"}, "the name of an upstream's key is free"
