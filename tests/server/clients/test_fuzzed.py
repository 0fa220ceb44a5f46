"""Requests that a fuzzer makes of the server's own OpenAPI document: no route answers one with an error of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.real_server import RealServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/decisions",
    "/v1/messages",
    "/v1/responses",
    "/v1/uncertainty",
    "/ready",
)
FEW: Any = {"type": "integer", "minimum": 1, "maximum": 4}
NARROWED = {
    "model": {"type": "string", "enum": ["law"]},
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), FEW),
}
"""Properties without which every request would be a 404, or take a minute."""


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.soak)])
def test_no_request_ends_in_an_error_of_the_server(
    server: RealServer, others: Path, tmp_path: Path, examples: int
) -> None:
    document = narrowed(httpx2.get(f"{server.url}/openapi.json").json())
    assert set(ROUTES) <= set(document["paths"])
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    included = [word for route in ROUTES for word in ("--include-path", route)]

    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "schemathesis.cli", "run", "openapi.json"),
            *("--url", server.url, *included, "--checks", "not_a_server_error", "--phases", "fuzzing"),
            *("--max-examples", str(examples), "--seed", "1", "--generation-deterministic"),
            *("--continue-on-failure", "--suppress-health-check", "all"),
            *("--request-timeout", "60", "--no-color"),
        ],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(others), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=3000,
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.get("/ready") == 200


def narrowed(document: Any) -> Any:
    """The document with NARROWED properties wherever they stand."""
    if isinstance(document, list):
        return [narrowed(each) for each in document]
    if not isinstance(document, dict):
        return document
    found = {key: narrowed(value) for key, value in document.items()}
    if isinstance(properties := found.get("properties"), dict):
        properties |= {name: NARROWED[name] for name in NARROWED if name in properties}
    return found
