"""A server that answers every question alike, for clients of `softspec serve` without an engine.

In: nothing. Out: chat completions as such a server gives them, under the policy that the request names.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

MUTUAL_INFORMATION = 0.66
NUMBERS = {
    "mutual_information": MUTUAL_INFORMATION,
    "total_entropy": 0.7,
    "aleatoric_entropy": 0.3,
    "epistemic": 0.4,
    "member_weights": [0.5, 0.5],
    "member_log_probs": [-0.1, -0.1],
}


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """The answer `red`, withheld where the policy says so."""
    policy = request["uncertainty"]["policy"]
    withheld = policy["action"] == "abstain" and policy.get("threshold", math.inf) < MUTUAL_INFORMATION
    reason = f"{policy['metric']} 0.66 > {policy['threshold']:.2f}" if withheld else None
    numbers = {**NUMBERS, "decision": "abstain" if withheld else "answer", "reason": reason}
    message = {
        "role": "assistant",
        "content": None if withheld else "red",
        "refusal": "..." if withheld else None,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "uncertainty": numbers}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [choice],
    }


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps(completion(request)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def answering() -> Iterator[str]:
    """Serve until the block ends; yields the URL that `OpenAI(base_url=...)` takes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
