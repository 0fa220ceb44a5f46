"""The documents as data: their blocks, links and names, and the tables in them that are made from the code.

In: the Markdown files of this checkout, and the code. Out: what the files say, and what their tables ought to say.
`make documents` writes the tables; `tests/test_documents.py` fails while one is stale.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from softspec.engine.options import TESTED_OPTIONS, flag_of
from softspec.server.access.keys import Key
from softspec.server.access.settings import AccessSettings, RequestLimits
from softspec.server.fields.alternatives import Alternative
from softspec.server.fields.doubt import FieldUncertainty
from softspec.server.ops.metrics import METRICS
from softspec.server.ops.server_config import ServerConfig
from softspec.train.config import TrainConfig
from tests.support.chart import explained_values
from tests.support.fake_engine import AGREED, ENSEMBLE, FakeEngine, client_of, make_app
from tests.support.planned import Cell, measured_cells

ROOT = Path(__file__).parents[2]
ROOMS = ("deploy", "server", "softspec", "tests", "train")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))])
LOADING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The switch of the routes that load ensembles."""

ANSWER_FIELDS = {
    "unit": ("the unit of the numbers", "nats"),
    "num_tokens": ("tokens of the answer that were judged", ""),
    "log_prob": ("log-probability of the answer under the mixture", "<= 0"),
    "mutual_information": (
        "how far this answer moved the belief over members away from the prior: KL(`member_weights` ‖ prior)",
        "0 to log K",
    ),
    "total_entropy": ("mean over tokens: uncertainty about the next token", ">= 0"),
    "aleatoric_entropy": ("the part of it on which the members agree", "0 to total"),
    "epistemic": ("the part on which they differ; total = aleatoric + epistemic", "0 to log K"),
    "max_epistemic": ("the largest `epistemic` of any token", "0 to log K"),
    "disagreement": (
        "mean over tokens: weighted share of members whose likeliest token is not the mixture's",
        "0 to 1",
    ),
    "max_disagreement": ("the largest `disagreement` of any token", "0 to 1"),
    "member_log_probs": ("log-probability of the answer under each member", "<= 0"),
    "member_weights": ("belief in each member after the last token", "sum to 1"),
    "confidence": ("P(correct) by the ensemble's calibration; null if it has none for answers", "0 to 1"),
    "seed": ("send it back to get exactly this answer again", ""),
    "decision": ("what the policy did", "`answer`, `abstain` or `route`"),
    "reason": ("the value that crossed the threshold, and the token at which; null when none did", ""),
    "decided_at": ("that token's number, from 1; null when the policy did not object", ">= 1"),
    "token": ("its text; U+FFFD if it is only a part of a character", ""),
    "token_id": ("its number in the vocabulary", ""),
    "bytes": ("its own bytes, in UTF-8; those of all tokens joined are the text", ""),
}
"""Field -> what it says, and its range; a token's numbers are described as an answer's."""
TOKEN_FIELDS = {
    "log_prob": ("log-probability of the token under the mixture", "<= 0"),
    "total_entropy": ("uncertainty about this token before it was drawn", ">= 0"),
    "disagreement": ("weighted share of members whose likeliest token is not the mixture's", "0 to 1"),
    "member_log_probs": ("log-probability of the token under each member", "<= 0"),
}
LEAF_FIELDS = {
    "path": ("JSON pointer (RFC 6901) to the value; `/tool_calls/0/arguments/...` in a tool call", ""),
    "epistemic": ("sum over the tokens that spell the value: how far the members differ on it", ">= 0"),
    "max_epistemic": ("the largest `epistemic` of these tokens", "0 to log K"),
    "log_prob": ("sum: log-probability of the value under the mixture, given what stands before it", "<= 0"),
    "disagreement": ("the largest `disagreement` of these tokens", "0 to 1"),
    "first_token": ("number of the first of these tokens in the answer, from 1", ">= 1"),
    "num_tokens": ("how many they are", ">= 1"),
    "alternatives": ("what the members would have begun the value with, where they part; else empty", ""),
    "text": (
        "JSON of the value: what the answer has of it, and the token these members find likeliest next",
        "",
    ),
    "complete": ("whether `text` is the whole value; else it is a beginning", ""),
    "weight": ("belief in these members at that token", "0 to 1"),
    "members": ("which members, from 0", ""),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `place` names it in messages."""

    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def read(document: Path | str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks() -> Iterator[Block]:
    """Every fenced block of every document."""
    for path in DOCUMENTS:
        text = read(path)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(str(path.relative_to(ROOT)), line, found[1], found[2])


def prose(document: Path | str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)


# The command line


@cache
def help_page(*command: str) -> str:
    """What `softspec COMMAND --help` prints, without the frames of its tables."""
    printed = subprocess.run(
        [sys.executable, "-m", "softspec.app.cli", *command, "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return printed.replace("│", " ")


def commands(*above: str) -> dict[tuple[str, ...], str]:
    """Every command that does something, with what its parent's help says of it."""
    found: dict[tuple[str, ...], str] = {}
    for name, what in re.findall(r"^ {2,4}([a-z]+) {2,}(\S.*?) *$", help_page(*above), re.MULTILINE):
        found |= commands(*above, name) if name in ("bench", "key") else {(*above, name): what}
    return found


def flags(*command: str) -> list[str]:
    """The flags of a command, in the order of its help."""
    found = re.findall(r"^[ *]+(?:-\w, )?(--[a-z][a-z0-9-]*)", help_page(*command), re.MULTILINE)
    return list(dict.fromkeys(flag for flag in found if flag not in ("--help", "--version")))


# Tables made from the code


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def keys_table() -> str:
    """Every key of a training configuration."""
    rows = (
        (f"`{name}`", _default(field), field.description or "")
        for name, field in TrainConfig.model_fields.items()
    )
    return table(("key", "default", "what it is"), rows)


def _default(field: FieldInfo) -> str:
    """The default as YAML has it, and what else may stand there when that is a choice of names."""
    if field.is_required():
        return "required"
    shown = "empty" if field.default in (None, "", ()) else f"`{_as_yaml(field.default)}`"
    others = [f"`{name}`" for name in _names(field.annotation) if name != field.default]
    return f"{shown}, or {', '.join(others)}" if others else shown


def _as_yaml(value: Any) -> str:
    plain = value.model_dump() if hasattr(value, "model_dump") else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000)
        .removesuffix("...\n")
        .strip()
    )


def _names(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def metrics_table() -> str:
    """Every metric that softspec adds to vLLM's."""
    return table(
        ("metric", "kind", "labels", "what it counts or measures"),
        (
            (
                f"`{metric.name}`",
                metric.kind,
                ", ".join(f"`{label}`" for label in metric.labels),
                metric.help,
            )
            for metric in METRICS
        ),
    )


def server_config_table() -> str:
    """Every key of a server's file."""
    rows = ((f"`{name}`", field.description or "") for name, field in ServerConfig.model_fields.items())
    return table(("key", "what it is"), rows)


def fields_table(model: type[BaseModel]) -> str:
    """Every key of a part of a file, with its default."""
    return table(
        ("key", "default", "what it is"),
        (
            (f"`{name}`", "" if field.default_factory else _default(field), field.description or "")
            for name, field in model.model_fields.items()
        ),
    )


def answered() -> dict[str, Any]:
    """The `uncertainty` field of an answer with all its details, from the real routes around a scripted engine."""
    with client_of(make_app(FakeEngine([AGREED]))) as client:
        answer = client.chat.completions.create(
            model=ENSEMBLE,
            messages=[{"role": "user", "content": "Is it allowed?"}],
            extra_body={"uncertainty": {"detail": "tokens"}},
        )
    return dict((answer.choices[0].model_extra or {})["uncertainty"])


def answer_table() -> str:
    """Every field of an answer's `uncertainty` but its tokens."""
    return _fields_table((name for name in answered() if name != "tokens"), ANSWER_FIELDS)


def token_table() -> str:
    """Every field of a token's entry."""
    return _fields_table(answered()["tokens"][0], ANSWER_FIELDS | TOKEN_FIELDS)


def leaf_table() -> str:
    """Every field of a leaf's entry, and of its alternatives'."""
    names = [each.name for each in fields(FieldUncertainty)]
    names += [each.name for each in fields(Alternative)]
    inner = {each.name: f"`alternatives[].{each.name}`" for each in fields(Alternative)}
    return table(
        ("field", "what it says", "range"),
        ((inner.get(name, f"`{name}`"), *LEAF_FIELDS[name]) for name in names),
    )


def _fields_table(names: Iterable[str], meanings: dict[str, tuple[str, str]]) -> str:
    return table(("field", "what it says", "range"), ((f"`{name}`", *meanings[name]) for name in names))


def routes() -> dict[tuple[str, str], tuple[str, bool]]:
    """(method, path) of every route that the plugin adds -> what it does, and whether it must be opened first."""
    from fastapi import FastAPI
    from fastapi.routing import APIRoute

    from softspec.server.plugin import SoftspecEndpoints

    found = {}
    for opened in ("1", "0"):
        app = FastAPI(openapi_url=None)
        with patch.dict(os.environ, {LOADING: opened}):
            SoftspecEndpoints().attach_router(app)
        for route in app.routes:
            assert isinstance(route, APIRoute)
            first_line = (route.endpoint.__doc__ or "").strip().split("\n")[0]
            found[(min(route.methods), route.path)] = first_line, opened == "1"
    return found


def routes_table() -> str:
    """Every route that the plugin adds to vLLM's server."""
    return table(
        ("route", "", "only with"),
        (
            (f"`{method} {path}`", what, f"`{LOADING}=1`" if must_be_opened else "")
            for (method, path), (what, must_be_opened) in routes().items()
        ),
    )


def commands_table() -> str:
    """Every command and its flags."""
    return table(
        ("command", "what it does", "flags"),
        (
            (f"`softspec {' '.join(command)}`", what, " ".join(f"`{flag}`" for flag in flags(*command)))
            for command, what in commands().items()
        ),
    )


def options_table() -> str:
    """Every engine option that may differ from vLLM's default, by what makes that all right."""
    rows: dict[str, list[str]] = {}
    for name, reason in TESTED_OPTIONS.items():
        rows.setdefault(reason, []).append(f"`{flag_of(name)}`")
    return table(("options", ""), ((" ".join(flags), reason) for reason, flags in rows.items()))


def chart_table() -> str:
    """Every value of the Helm chart."""
    return table(
        ("value", "default", "what it is"),
        (
            (f"`{'.'.join(path)}`", "empty" if default in ("", [], {}) else f"`{_as_yaml(default)}`", what)
            for path, default, what in explained_values()
        ),
    )


def planned_table() -> str:
    """What `softspec plan` says of the cells that `bench serve` measured, beside that."""
    cells: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in measured_cells():
        case = cell.case
        layers = "all" if case.lowest == 0 else "top third"
        load = (str(case.load.users), str(case.load.prompt))
        cells.setdefault((str(case.ensemble.members), layers, *load), {})[cell.which] = cell
    return table(
        (
            "K",
            "layers",
            "users",
            "prompt",
            "next token: planned",
            "measured",
            "first token: planned",
            "measured",
        ),
        (
            (*case, *(f"{number:.2f}" for cell in pair.values() for number in (cell.planned, cell.measured)))
            for case, pair in cells.items()
        ),
    )


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "keys": ("train/README.md", keys_table),
    "metrics": ("server/README.md", metrics_table),
    "server-config": ("server/README.md", server_config_table),
    "access": ("server/README.md", partial(fields_table, AccessSettings)),
    "key": ("server/README.md", partial(fields_table, Key)),
    "limits": ("server/README.md", partial(fields_table, RequestLimits)),
    "answer": ("server/README.md", answer_table),
    "token": ("server/README.md", token_table),
    "leaf": ("server/README.md", leaf_table),
    "routes": ("server/README.md", routes_table),
    "commands": ("softspec/app/README.md", commands_table),
    "options": ("softspec/engine/README.md", options_table),
    "chart": ("deploy/helm/README.md", chart_table),
    "planned": ("softspec/app/plan/README.md", planned_table),
}
"""Name between the markers -> the document that has it, and how it is made."""


def around_table(name: str) -> tuple[str, str, str]:
    """A document before a generated table, the table as it is, and what comes after it; the markers stay outside."""
    document, _ = TABLES[name]
    first, last = f"<!-- generated: {name} -->\n", f"<!-- /generated: {name} -->\n"
    before, begin, rest = read(document).partition(first)
    shown, end, after = rest.partition(last)
    assert end, f"{document} lacks the markers {first.strip()} and {last.strip()}"
    return before + begin, shown, end + after


def write_tables() -> None:
    """Bring every generated table up to date."""
    for name, (document, make) in TABLES.items():
        before, _, after = around_table(name)
        (ROOT / document).write_text(before + make() + after, encoding="utf-8")


if __name__ == "__main__":
    write_tables()
