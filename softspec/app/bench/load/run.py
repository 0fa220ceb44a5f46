"""One run of a load: who is asked, what was measured, what becomes of it.

In: a URL and settings. Out: a document of plain JSON types. vLLM's generator is imported late: it takes seconds.
"""

import json
import os
import statistics
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from softspec.app.bench.load.conversations import conversations
from softspec.app.bench.load.settings import LoadSettings
from softspec.app.bench.load.tally import Tally
from softspec.errors import BenchError, ConfigError

MEASURES = {
    "ttft_ms": "to the first token",
    "tpot_ms": "a token after it",
    "itl_ms": "between two chunks",
    "e2el_ms": "a whole answer",
}
"""Measure, as vLLM calls it -> what it is."""
_PATIENCE_S = 30
"""With a server that is asked for its models."""


def bench_load(url: str, model: str | None, settings: LoadSettings) -> dict[str, Any]:
    """Ask a running server, and say what it took.

    Args:
        url: of the server, with or without `/v1`.
        model: None asks the first that the server lists.
    Raises:
        ConfigError: there is no server, or it does not let us in.
        DataError: the file of prompts has no question.
        BenchError: nothing was answered.
    """
    asked = conversations(settings)
    server = url.rstrip("/").removesuffix("/v1")
    model = model or _first_model(server)
    from softspec.engine.start.load import Offer, offer_load

    tally = Tally()
    offer = Offer(asked, settings.output_tokens, settings.ignore_eos, settings.users, settings.rate)
    found = offer_load(server, model, offer, tally.hear)
    errors = [
        error for error, length in zip(found["errors"], found["output_lens"], strict=True) if not length
    ]
    if not found["completed"]:
        raise BenchError(f"none of {len(asked)} requests was answered: {_last_line(errors[0])}")
    return {
        "schema_version": 1,
        "server": server,
        "model": model,
        "settings": {**asdict(settings), "prompts": settings.prompts and str(settings.prompts)},
        "users": settings.users,
        "requests": len(asked),
        "answered": found["completed"],
        "failed": found["failed"],
        "statuses": dict(tally.statuses),
        "first_error": _last_line(errors[0]) if errors else None,
        "duration_s": found["duration"],
        "requests_per_s": found["request_throughput"],
        "output_tokens": found["total_output_tokens"],
        "output_tokens_per_s": found["output_throughput"],
        "prompt_tokens": found["total_input_tokens"],
        "times": {name: _spread(values) for name, values in _times(found).items()},
        "decisions": dict(tally.decisions),
        "mutual_information_nats": tally.mean_mutual_information,
    }


def _first_model(server: str) -> str:
    """The name of an ensemble comes first in a softspec server's list."""
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{server}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except urllib.error.HTTPError as error:
        error.close()
        hint = ": is OPENAI_API_KEY right?" if error.code in (401, 403) else ""
        raise ConfigError(
            f"'{server}/v1/models' answered {error.code}{hint or ', expected a list'}"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"'{server}' has no list of models ({error}): give the URL of a running server, or --model"
        ) from error


def _times(found: dict[str, Any]) -> dict[str, list[float]]:
    """The times of what was answered, in milliseconds."""
    lengths = found["output_lens"]
    answered = [number for number, length in enumerate(lengths) if length]
    first, whole = found["ttfts"], found["latencies"]
    times = {
        "ttft_ms": [first[n] for n in answered],
        "tpot_ms": [(whole[n] - first[n]) / (lengths[n] - 1) for n in answered if lengths[n] > 1],
        "itl_ms": [gap for n in answered for gap in found["itls"][n]],
        "e2el_ms": [whole[n] for n in answered],
    }
    return {name: [1e3 * value for value in values] for name, values in times.items()}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if values[1:] else list(values) * 99
    return {"mean": statistics.fmean(values), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1] if lines else "no reason was given"
