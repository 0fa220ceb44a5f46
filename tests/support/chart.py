"""The Helm chart as data: what helm makes of it, and what its values.yaml says of every value.

In: values, as files or as a mapping. Out: the manifests. helm is the real one, of the version that
`requirements/kubernetes.txt` pins; it needs no cluster.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

HELM_ROOM = Path(__file__).parents[2] / "deploy" / "helm"
CHART = HELM_ROOM / "softspec"
EXAMPLES = HELM_ROOM / "examples"
NEWEST, OLDEST = "1.37", "1.30"
"""Versions of Kubernetes whose schemas are asked: helm's own, and the first that the chart allows."""
RELEASE, NAMESPACE = "my", "models"
PLACE = Path(sys.prefix) / "kubernetes"
"""Where `make test` installs requirements/kubernetes.txt."""

OPTIONAL = {
    "podDisruptionBudget": "PodDisruptionBudget",
    "autoscaling": "ScaledObject",
    "networkPolicy": "NetworkPolicy",
    "serviceMonitor": "ServiceMonitor",
}
"""Parts that can be switched -> the kind that they add."""
OFF = {part: {"enabled": False} for part in OPTIONAL}
ON = {part: {"enabled": True} for part in OPTIONAL}
LEAST = {"ensembles": [{"name": "my", "claim": "models"}]}
CASES: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "the least": (("claim",), {}),
    "on a CPU": (("claim", "cpu"), {}),
    "everything": (("oci",), {}),
    "no options": ((), {**LEAST, **OFF, "opsPort": 0}),
    "all options": (("claim",), {**ON, "runtimeClassName": "nvidia", "podLabels": {"team": "law"}}),
}
"""Examples and values beside them, which together reach every branch of the templates."""

Manifest = dict[str, Any]


class ChartError(Exception):
    """helm did not render the chart: what it said."""


@cache
def helm() -> Path:
    """The program, unpacked at its first use: a zip in a tarball in a wheel."""
    program = PLACE / "helm"
    if not program.exists():
        assert PLACE.is_dir(), f"no {PLACE}: run these tests with 'make test'"
        with tarfile.open(next(PLACE.glob("aws_cdk/*/_jsii/*.tgz"))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer
            unpacked = program.with_suffix(f".{os.getpid()}")
            unpacked.write_bytes(ZipFile(BytesIO(layer.read())).read("helm/helm"))
        unpacked.chmod(0o755)
        unpacked.replace(program)  # at once, as another process may unpack it too
    return program


def run_helm(*arguments: str | Path, values: Mapping[str, Any] | None = None) -> str:
    """What helm prints; `values` win over those of files.

    Raises:
        ChartError: helm refused.
    """
    done = subprocess.run(
        [helm(), *arguments, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ChartError(done.stdout + done.stderr)
    return done.stdout


def render(*examples: str, values: Mapping[str, Any] | None = None) -> list[Manifest]:
    """The manifests of the chart with the values of these examples, the last one first."""
    files = [word for name in examples for word in ("--values", EXAMPLES / f"{name}.yaml")]
    printed = run_helm("template", RELEASE, CHART, "--namespace", NAMESPACE, *files, values=values)
    return [manifest for manifest in yaml.safe_load_all(printed) if manifest]


def only(kind: str, manifests: list[Manifest]) -> Manifest:
    """The one manifest of this kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifests: list[Manifest]) -> dict[str, Any]:
    """What the Deployment says of its pods."""
    return only("Deployment", manifests)["spec"]["template"]["spec"]


def container_of(manifests: list[Manifest]) -> dict[str, Any]:
    """The one container of a pod."""
    (container,) = pod_of(manifests)["containers"]
    return container


def default_values() -> dict[str, Any]:
    """What values.yaml says."""
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def explained_values() -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Path, default and explanation of every value: whatever has a comment right above it in values.yaml."""
    path: list[str] = []
    words: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if comment := re.match(r" *# (.*)", line):
            words.append(comment[1])
        elif key := re.match(r"( *)(\w+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if words:
                yield tuple(path), _at(path), " ".join(words)
            words = []
        else:
            words = []  # the comment was about the file


def _at(path: list[str]) -> Any:
    value: Any = default_values()
    for part in path:
        value = value[part]
    return value
