"""The boundaries between the parts, read from the imports; and that README names things that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from softspec.app.cli.main import build_parser
from softspec.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def modules(*folders: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every import of every file in these folders, inside functions too."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    yield str(path.relative_to(ROOT)), name


def importers(package: str, *folders: str) -> set[str]:
    return {file for file, name in modules(*folders) if name.partition(".")[0] == package}


def test_only_the_engine_and_the_server_plugin_import_vllm() -> None:
    files = importers("vllm", "softspec", "train", "server")

    assert {file for file in files if not file.startswith("softspec/engine/")} == {"server/plugin.py"}


@pytest.mark.parametrize("command", ["train", "serve", "inspect", "demo", "bench"])
def test_every_command_is_in_the_readme(command: str) -> None:
    assert command in build_parser().format_help()
    assert f"softspec {command}" in README or f"make {command}" in README


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    named = set(re.findall(r"make ([a-z-]+)", README)) - {"sure"}

    assert named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_configuration_keys_of_the_readme_exist() -> None:
    block = README.split("`my.yaml`;")[1].split("    softspec train")[0]
    keys = re.findall(r"^    (\w+):", block, re.MULTILINE)

    assert len(keys) > 5
    assert set(keys) <= set(TrainConfig.model_fields)
