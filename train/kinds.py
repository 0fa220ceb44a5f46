"""What kinds of values settings have: nothing is taken for a value of another kind, such as a switch for a number.

In: plain values as YAML gives them. Out: annotations of fields, strict but for what means the same (`1e3` is a whole
number, `off` a switch, one name a list of one). Knows no keys.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from softspec.artefact.yaml_text import SWITCHES

LARGEST = 2**31 - 1
ALL_LINEAR = "all-linear"


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected text that is not empty")
    return text


def _folder(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("expected text")
    return Path(_not_blank(str(value)))


def _one_or_more(value: Any) -> Any:
    is_one = isinstance(value, str | int) and not isinstance(value, bool)
    return (value,) if is_one else tuple(value) if isinstance(value, list) else value


def _layers(value: Any) -> Any:
    return value if isinstance(value, str) else _one_or_more(value)


def _modules(value: Any) -> Any:
    if isinstance(value, str) and value.lower() == ALL_LINEAR:  # PEFT's word, which it reads in any case too
        return ALL_LINEAR
    names = _one_or_more(value)
    for name in names if isinstance(names, tuple) else ():
        if not isinstance(name, str):
            continue
        if name.lower().replace("_", "-") in ("all", "linear", ALL_LINEAR):
            raise ValueError(f"'{name}' is no module; expected {ALL_LINEAR} by itself for all linear layers")
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"'{name}' is a path or a pattern; expected the last part of names, such as q_proj, "
                f"in a list if there are several, or {ALL_LINEAR}"
            )
    return names


def _trackers(value: Any) -> Any:
    names = _one_or_more([] if value is None or value == "" else value)
    if not isinstance(names, tuple) or names == ("none",):
        return () if names == ("none",) else names
    for word in ("none", "all", ""):
        if word in names:
            raise ValueError(f"'{word}' is no tracker; expected names, such as wandb, or none by itself")
    return names


Text = Annotated[str, AfterValidator(_not_blank)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=LARGEST)]
Number = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=LARGEST)]
Modules = BeforeValidator(_modules)
Layers = BeforeValidator(_layers)
Trackers = Annotated[tuple[str, ...], BeforeValidator(_trackers)]
