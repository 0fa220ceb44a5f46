"""What `import softspec` offers to programs, and what it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softspec

ROOT = Path(__file__).parent.parent
SOURCE = Path(softspec.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", softspec.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(softspec, name) is not None
    assert name in dir(softspec)


def test_editors_and_type_checkers_see_the_names_that_are_imported_late() -> None:
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)]
    seen = {(alias.name, node.module) for node in imports for alias in node.names if alias.asname}

    assert seen == {(name, getattr(softspec, name).__module__) for name, _ in seen}
    assert {name for name, _ in seen} | {"SoftspecError", "UserError", "__version__"} == set(softspec.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'softspec' has no attribute 'sumarise'"):
        getattr(softspec, "sumarise")  # noqa: B009


def test_importing_softspec_loads_no_other_package() -> None:
    code = "import sys; before = set(sys.modules); import softspec; print(*(set(sys.modules) - before))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"softspec"}


def test_the_version_is_written_once() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert re.search(r'^__version__ = "[\d.]+"$', SOURCE, re.MULTILINE)
    assert not re.search(r"^version = \"", project, re.MULTILINE)
