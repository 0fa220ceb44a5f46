"""The documents say what is there: their tables come from the code, and whatever they name exists.

That their commands work is in `test_documented_commands.py`.
"""

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from softspec.server.ops.metrics import METRICS
from softspec.train.config import TrainConfig
from tests.support.documents import (
    DOCUMENTS,
    ROOMS,
    ROOT,
    TABLES,
    answered,
    around_table,
    blocks,
    commands,
    flags,
    prose,
    read,
)

TO_VLLM = {("serve",), ("bench", "serve")}
"""Commands that pass flags on."""
FOREIGN_FLAGS = {
    "--nproc-per-node": "torchrun",
    "--no-python": "torchrun",
    "--mixed_precision": "accelerate launch",
    "--logdir": "tensorboard",
    **dict.fromkeys(("--config_file", "--no_python", "--num_processes"), "accelerate launch"),
    **dict.fromkeys(("--nodes", "--gpus-per-node"), "sbatch"),
    "--workers": "deploy/train/ray_train.py",
    **dict.fromkeys(("--init", "--read-only", "--tmpfs", "--gpus", "--ipc"), "docker run"),
    "--from-file": "kubectl",
    "--head": "ray start",
    "--metrics-export-port": "ray start",
}
"""Flags that are neither ours nor vLLM's, and whose they are."""
ENGINE = "softspec/engine/README.md"
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MARKS = {"routes": [pytest.mark.vllm], "commands": [pytest.mark.slow]}


def code(document: str) -> Iterator[str]:
    """Whatever stands in a document as code: spans, and lines of shell blocks."""
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(document))
    for block in blocks():
        if block.document == document and block.language == "sh":
            yield from (line.partition(" #")[0] for line in block.text.splitlines())


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in TABLES])
def test_table_is_what_the_code_says(name: str) -> None:
    document, make = TABLES[name]
    _, shown, _ = around_table(name)

    assert shown == make(), f"the table '{name}' of {document} is stale: run 'make documents'"


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(read("README.md").splitlines()) <= 200


# What is named exists


def slugs(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", NAMES)
def test_links_lead_somewhere(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        if not target.startswith("http") and not (path.exists() and (not anchor or anchor in slugs(path))):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("document", NAMES)
def test_named_files_exist(document: str) -> None:
    pattern = re.compile(rf"(?<![\w./-])(?:(?:{'|'.join(ROOMS)})/[\w./-]*|[\w./-]+\.(?:py|md|toml))(?![\w/])")
    named = {name for span in code(document) for name in pattern.findall(span)}

    missing = [name for name in named if not _is_there(name, (ROOT / document).parent)]

    assert missing == []


def _is_there(name: str, beside: Path) -> bool:
    """From the root, from the document's folder, or, of a bare name, anywhere."""
    if "/" in name or name.endswith(".toml"):
        return (ROOT / name).exists() or (beside / name).exists()
    return any(any((ROOT / room).rglob(name)) for room in ROOMS) or (ROOT / name).exists()


def test_make_targets_exist_and_each_is_explained() -> None:
    makefile = read("Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    named = {
        target
        for document in NAMES
        for span in code(document)
        for target in re.findall(r"\bmake ([a-z-]+)", span)
    }

    assert phony
    assert named == set(phony[1].split())
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_named_metrics_exist() -> None:
    text = " ".join(read(document) for document in NAMES)

    named = set(re.findall(r"softspec_\w+_(?:total|nats|ratio|seconds|open)\b", text))

    assert named == {metric.name for metric in METRICS}


def test_named_training_keys_exist() -> None:
    """In YAML, and where prose says `key: value` about training. A server's file is tests/server/ops's to read."""
    files = [block for block in blocks() if block.language == "yaml" and block.document != "server/README.md"]
    named = {key for block in files for key in yaml.safe_load(block.text)}
    named |= {found[1] for span in code("train/README.md") if (found := re.match(r"(\w+): ", span))}

    assert len(named) > 10
    assert named <= set(TrainConfig.model_fields)


def test_named_extras_are_those_of_the_distribution() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    sentence = read("README.md").split("Extras: ")[1].split("\n\n")[0]

    assert set(re.findall(r"`([a-z-]+)`", sentence)) == set(project["optional-dependencies"])


def test_every_recipe_is_listed() -> None:
    recipes = {path.name for path in (ROOT / "train" / "recipes").glob("*.yaml")}

    assert recipes == set(re.findall(r"\(recipes/(\w+\.yaml)\)", read("train/README.md")))


def test_the_shown_answer_has_the_fields_of_a_real_one() -> None:
    shown = next(json.loads(block.text) for block in blocks() if '"member_weights"' in block.text)

    assert list(shown["uncertainty"]) == [name for name in answered() if name != "tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("document", NAMES)
def test_named_commands_and_flags_exist(document: str) -> None:
    known = commands()
    wrong = []
    for line in code(document):
        for words in re.findall(r"(?<![\w=])softspec ((?:[a-z]+ ?)+)", line):
            command = next((c for c in known if tuple(words.split()[: len(c)]) == c), None)
            if command is None and words.split() != ["bench"]:
                wrong.append(line)
            elif command and command not in TO_VLLM:
                given = re.findall(r"(?<!\S)--[a-z][\w-]*", line.partition("softspec " + words)[2])
                wrong += [f"{line}: {flag}" for flag in given if flag not in [*flags(*command), "--help"]]

    assert wrong == []


@pytest.mark.vllm
def test_every_named_flag_is_somebodys() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    vllms = set(make_arg_parser(FlexibleArgumentParser())._option_string_actions)
    ours = {flag for command in commands() for flag in flags(*command)} | {"--help", "--version"}
    named = {
        flag for name in NAMES for span in code(name) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span)
    }

    assert named - ours - vllms == set(FOREIGN_FLAGS)


# The engine's steps and its touch points


def rows_of(document: str, columns: int) -> Iterator[list[str]]:
    """The cells of every table row with so many columns."""
    for line in read(document).splitlines():
        cells = line.strip("|").split(" | ")
        if line.startswith("| ") and len(cells) == columns:
            yield cells


@cache
def definitions(file: str) -> set[str]:
    """Functions, classes and methods of a file: `name` and `Class.name`."""
    found = set()
    for node in ast.parse(read(file)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


@pytest.mark.parametrize("document", [ENGINE, "CONTRIBUTING.md"])
def test_named_functions_are_where_they_are_said_to_be(document: str) -> None:
    """`file.py` `name`, `file.py` (`name`, `name`): the names after a file are its own."""
    checked, wrong = 0, []
    for file, names in re.findall(r"`([\w/]+\.py)`:? \(?((?:`[\w.]+`(?:, )?)+)", prose(document)):
        for name in re.findall(r"`([\w.]+)`", names):
            checked += 1
            constants = re.findall(rf"^{name}\b", read(file), re.MULTILINE)
            if name not in definitions(file) and not constants:
                wrong.append(f"{file}: {name}")

    assert wrong == []
    assert checked > 8


def test_a_request_has_ten_steps_in_all_three_processes() -> None:
    steps = [cells for cells in rows_of(ENGINE, 4) if cells[0].strip().isdigit()]

    assert [int(cells[0]) for cells in steps] == list(range(1, 11))
    assert {process for cells in steps for process in cells[1].split(", ")} == {
        "front end",
        "engine core",
        "worker",
    }


@pytest.mark.vllm
def test_touch_points_exist_in_the_installed_vllm() -> None:
    places = re.findall(r"`(vllm\.[\w.]+)`", read(ENGINE))

    missing = [place for place in places if not _exists(place)]

    assert len(places) > 20
    assert missing == []


def test_every_file_that_imports_vllm_is_a_touch_point() -> None:
    listed = {file for cells in rows_of(ENGINE, 3) for file in re.findall(r"`([\w/]+\.py)`", cells[0])}
    importing = {
        str(path.relative_to(ROOT))
        for path in [ROOT / "server" / "plugin.py", *(ROOT / "softspec" / "engine").rglob("*.py")]
        if re.search(r"^(?:from|import) vllm", read(path), re.MULTILINE)
    }

    assert importing <= listed


def _exists(place: str) -> bool:
    """Whether a dotted name leads to a module, a class, a function, or a field of a class."""
    parts = place.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for number, name in enumerate(parts[length:], start=length):
            if not hasattr(found, name):
                is_last = number == len(parts) - 1
                return is_last and name in getattr(found, "__annotations__", {})
            found = getattr(found, name)
        return True
    return False


# How to add something


def test_every_how_to_has_five_steps_with_files() -> None:
    how_tos = read("CONTRIBUTING.md").split("## How to add")[1].split("\n## ")[0].split("\n### ")[1:]

    assert len(how_tos) == 5
    for how_to in how_tos:
        steps = re.findall(r"^(\d)\. (.*)$", how_to, re.MULTILINE)
        assert [number for number, _ in steps] == list("12345"), how_to.splitlines()[0]
        assert all("`" in text for _, text in steps), how_to.splitlines()[0]
