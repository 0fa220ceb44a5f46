"""What travels in the wheel, and that an installed softspec does not care what else is called `train` or `server`."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from softspec import __version__
from tests.support.tiny_training import write_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HOSTILE = "raise ImportError('this file is not part of softspec')\n"


def tracked() -> list[str]:
    """Files and links of the repository, those not yet committed too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Let setuptools make a wheel or an sdist of `tree`, as pip and build do."""
    hook = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", hook, str(folder)], cwd=tree, capture_output=True, check=True)
    (built,) = folder.iterdir()
    return built


def pip_install(source: Path, target: Path) -> None:
    """Install without dependencies, which the environment has, and without asking an index."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--upgrade", "--target", str(target), str(source)]
    subprocess.run(command, check=True)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without what builds and tests left in it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in tracked():
        if (ROOT / name).exists() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content, and beside it a stranger's packages `train` and `server`."""
    target = tmp_path_factory.mktemp("site")
    pip_install(wheel, target)
    stranger = tmp_path_factory.mktemp("stranger")
    for name in ("train", "server"):
        (stranger / name).mkdir()
        (stranger / name / "__init__.py").write_text("OWNER = 'stranger'\n")
    project = (
        '[project]\nname = "stranger"\nversion = "1"\n[tool.setuptools]\npackages = ["train", "server"]\n'
    )
    (stranger / "pyproject.toml").write_text(project)
    pip_install(stranger, target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user works: a tiny training run, and files of theirs with the names of our folders."""
    folder = tmp_path_factory.mktemp("work")
    write_config(folder, max_steps=2)
    for name in ("train.py", "server.py", "app.py", "engine.py"):
        (folder / name).write_text(HOSTILE)
    return folder


def environment(installed: Path) -> Mapping[str, str]:
    """Puts the installed copy before the environment's editable one."""
    return {**os.environ, "PYTHONPATH": str(installed)}


def run(
    installed: Path, folder: Path, command: list[str], check: bool = True
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, env=environment(installed), capture_output=True, text=True, check=check
    )


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    """In particular none that is called `train` or `server`."""
    assert {name.partition("/")[0] for name in contents(wheel)} == {
        "softspec",
        f"softspec-{__version__}.dist-info",
    }


def test_every_file_of_the_packages_travels_except_documents(wheel: Path) -> None:
    """Recipes, ensembles, templates and pages too."""
    files = {
        name if name.startswith("softspec/") else f"softspec/{name}"
        for name in tracked()
        if name.startswith(("softspec/", "train/", "server/")) and (ROOT / name).is_file()
    }
    documents = {name for name in files if name.endswith(".md")}

    assert {name for name in contents(wheel) if name.startswith("softspec/")} == files - documents
    assert "softspec/train/recipes/sft.yaml" in files


def test_an_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    for name in ("sdist", "unpacked", "wheel"):
        (tmp_path / name).mkdir()
    with tarfile.open(build("sdist", tree, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    again = build("wheel", unpacked, tmp_path / "wheel")

    assert contents(again) == contents(wheel)


def test_the_installed_copy_is_the_one_that_runs(installed: Path, folder: Path) -> None:
    code = "import softspec.train, softspec.server, softspec.app.cli.main as m; "
    code += "print(softspec.__file__, softspec.train.__file__, softspec.server.__file__, m.__file__)"

    done = run(installed, folder, [sys.executable, "-c", code])

    assert all(Path(path).is_relative_to(installed) for path in done.stdout.split())


def test_files_and_packages_of_others_are_found_by_their_owners(installed: Path, folder: Path) -> None:
    """Without this the tests below would show nothing."""
    hostile = run(installed, folder, [sys.executable, "-c", "import train"], check=False)
    stranger = run(installed, folder, [sys.executable, "-P", "-c", "import train; print(train.OWNER)"])

    assert "this file is not part of softspec" in hostile.stderr
    assert stranger.stdout == "stranger\n"


@pytest.mark.parametrize("launcher", ["script", "module"])
def test_commands_run_whatever_else_is_called_train_or_server(
    launcher: str, installed: Path, folder: Path
) -> None:
    command = {
        "script": [str(installed / "bin" / "softspec")],
        "module": [sys.executable, "-m", "softspec.app.cli"],
    }[launcher]

    version = run(installed, folder, [*command, "--version"])
    trained = run(installed, folder, [*command, "train", "config.yaml", "--set", f"output_dir={launcher}"])
    shown = run(installed, folder, [*command, "inspect", launcher])
    refused = run(installed, folder, [*command, "serve", "nowhere"], check=False)

    assert version.stdout == f"softspec {__version__}\n"
    assert trained.stdout.startswith("wrote ")
    assert "2 of LoRA rank 4" in shown.stdout
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
