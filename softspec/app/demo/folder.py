"""The demo's folder: whose it is, what of it is finished, and what of it may be replaced.

In: a path and the demo's settings. Out: `demo.json` as far as it has come, so that an interrupted demo goes on where it
was. Trains, serves and prints nothing.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softspec.app.demo.settings import DemoSettings
from softspec.artefact.manifest import MANIFEST_NAME
from softspec.errors import ConfigError
from softspec.train.loop.folder import LOG_NAME, TENSORBOARD

SETTINGS_NAME = "demo-settings.json"
RESULTS_NAME = "demo.json"
TRAIN_NAME = "train.jsonl"
HELD_OUT_NAME = "held_out.jsonl"
MEASURED_NAME = "measured.json"
SERVER_LOG_NAME = "serve.log"
RESULT_KEYS = (
    "held_out",
    "lowest_nll",
    "gain_over_single",
    "mutual_information",
    "disagreement_tests",
    "renyi_alpha",
    "facts_per_example",
    "optimizer_steps",
    "planned_steps",
    "seconds",
    "answers",
    "policy",
)
"""What `demo.json` always has; null is what was not measured."""
PARTS = ("base_model", "probe", "train_ensemble", "serve_and_ask", "measure", "train_single", "train_alpha_0")
"""Keys of `seconds`. `probe` is of earlier versions, which timed a few steps to see how many they could afford."""
_MADE = (
    RESULTS_NAME,
    TRAIN_NAME,
    HELD_OUT_NAME,
    MEASURED_NAME,
    SERVER_LOG_NAME,
    MANIFEST_NAME,
    LOG_NAME,
    TENSORBOARD,
    *(f"{model}{ending}" for model in ("ensemble", "single", "alpha_0") for ending in ("", ".partial")),
)


class DemoFolder:
    """One demo on disk; `results` is the content of `demo.json`. Use `open_folder`.

    `was_there`: it was begun before, so there may be something to go on from.
    """

    def __init__(self, path: Path, was_there: bool) -> None:
        self.path = path
        self.was_there = was_there
        self.results: dict[str, Any] = dict.fromkeys(RESULT_KEYS)
        self.results["seconds"] = dict.fromkeys(PARTS)
        if (path / RESULTS_NAME).is_file():
            self.results |= read_json(path / RESULTS_NAME)

    def lacks(self, key: str) -> bool:
        """Whether this result has not been measured yet."""
        return self.results[key] is None

    def record(self, **results: Any) -> None:
        """Keep these results, on disk too."""
        assert results.keys() <= self.results.keys()
        self.results |= results
        write_json(self.path / RESULTS_NAME, self.results)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add to the seconds of one of `PARTS`, of a part that is interrupted too."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = (self.results["seconds"][part] or 0) + time.monotonic() - started
            self.record(seconds=self.results["seconds"] | {part: round(seconds, 1)})


def open_folder(path: Path, settings: DemoSettings, overwrite: bool = False) -> DemoFolder:
    """The demo of these settings in `path`, begun or not; with `overwrite` it begins anew.

    Raises:
        ConfigError: `path` holds something else, or a demo of other settings.
    """
    own = path / SETTINGS_NAME
    # Through JSON, as it will be read again.
    ours = json.loads(json.dumps(asdict(settings)))
    if own.is_file() and not overwrite:
        _require_same(path, read_json(own), ours)
    elif own.is_file():
        _clear(path)
    elif path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"'{path}' is not a folder of this demo, so it is left alone; give --output OTHER")
    was_there = own.is_file() and not overwrite
    path.mkdir(parents=True, exist_ok=True)
    write_json(own, ours)
    return DemoFolder(path, was_there)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _require_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    before, now = dict(_flat(found)), dict(_flat(expected))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"'{path}' is a demo with {key} {before.get(key)!r}, not {now.get(key)!r}; "
                "give --output OTHER, or --overwrite to begin anew"
            )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting, those of inner mappings under `outer.inner`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in _flat(value))
        else:
            yield key, value


def _clear(path: Path) -> None:
    """Delete what the demo made, and nothing else; the settings, which say whose folder it is, stay."""
    for made in (*(path / name for name in _MADE), *path.glob("member-[0-9]*")):
        if made.is_dir() and not made.is_symlink():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)
