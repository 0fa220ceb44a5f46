"""The document of a load as a table for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from softspec.app.bench.load.run import MEASURES


def format_load(document: Mapping[str, Any]) -> str:
    """The table."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    rate, users = document["settings"]["rate"], document["users"]
    pace = "users who ask again when answered" if rate is None else f"{rate:g} requests a second, Poisson"
    at_once = f"{users} {pace}" if rate is None else f"{pace}{f', at most {users} at once' if users else ''}"
    yield f"{document['server']}, {document['model']}: {at_once}"
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(document["statuses"].items()))
    yield f"{document['requests']} requests, {document['answered']} answered, {document['failed']} failed: {statuses}"
    if document["first_error"]:
        yield f"first error: {document['first_error']}"
    yield (
        f"{document['duration_s']:.2f} s, {document['requests_per_s']:.2f} answers a second, "
        f"{document['output_tokens_per_s']:.1f} tokens a second"
    )
    yield ""
    yield f"{'ms':24}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p99"))
    for measure, meaning in MEASURES.items():
        spread = document["times"][measure]
        values = ("-",) * 4 if spread is None else tuple(f"{value:.1f}" for value in spread.values())
        yield f"{meaning:24}" + "".join(f"{value:>10}" for value in values)
    if document["decisions"]:
        yield ""
        yield "decisions: " + ", ".join(f"{name} {count}" for name, count in document["decisions"].items())
    if document["mutual_information_nats"] is not None:
        yield f"mutual information, mean: {document['mutual_information_nats']:.4f} nats"
