"""`softspec bench`: the table of the benchmarks."""

import textwrap
from collections.abc import Mapping

from cyclopts import App

BENCHMARKS = {
    "load": "A running server under load: times, failures and decisions.",
    "serve": "An ensemble beside other ways to its answers: time to first token, per token, tokens per second.",
    "train": "A training step of K members beside other ways to it: seconds, memory, tokens per second.",
}
"""Benchmark -> what it measures. It is the `app` of the module `bench_` and its name in this folder."""


def listed(meanings: Mapping[str, str]) -> str:
    """Names and what they mean, for the end of a help page."""
    width = 4 + max(map(len, meanings))
    return "\n".join(
        textwrap.fill(meaning, 80, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width)
        for name, meaning in meanings.items()
    )


app = App(
    "bench",
    help_epilogue="'softspec bench serve --help', and so on, has the options, and examples.",
)
for place, (name, what) in enumerate(BENCHMARKS.items()):
    app.command(f"softspec.app.cli.bench_{name}:app", name=name, help=what, sort_key=place)
