"""YAML as a configuration uses it: plain JSON values by the rules of YAML 1.2, every one written out and once.

In: the bytes of a file, or the text of one value. Out: mappings, lists, text, numbers, switches and nothing. PyYAML
follows YAML 1.1, in which `1e-4` is text, `010` is eight, `1:30` is ninety, `no` is false and a date is no text. Knows
no keys.
"""

import re
from typing import Any, ClassVar

import yaml

DEEPEST = 50
"""Levels of lists and mappings that are read."""
MOST_DIGITS = 300
NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs, which no file name and no model name can have."""
RESOLVED = {
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "bool": (r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
}
"""Tag -> which plain text has it, and with which characters that begins; any other plain text is text."""
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""Words that are switches in YAML 1.1; here where a switch is expected, and text elsewhere."""


class YamlError(ValueError):
    """Text is not such YAML; says why in one line, and in which line where that is known."""


class _Loader(yaml.SafeLoader):
    """Reads JSON's values only, every one where it stands, and every key once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "float", "str", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag not in (None, "!"):
            raise _at(event, "an anchor, alias or tag; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _at(key, "a key that is no text; put it in quotes")
            if key.value in seen:
                raise _at(key, f"the key {key.value!a} is there twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:  # more than any float, and than Python reads
            raise _at(node, f"a number of more than {MOST_DIGITS} digits")
        return int(node.value.replace("_", ""), 0)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads as the same, and PyYAML too where it can."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _name, (_pattern, _first) in RESOLVED.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), list(_first)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def parse_yaml(text: str | bytes) -> Any:
    """The one value that YAML text holds.

    Raises:
        YamlError: it is not YAML, holds other values than JSON can, or a key twice.
    """
    try:
        value = yaml.load(text, _Loader)
        _check(value, DEEPEST)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(line + " ".join(f"{error.context or ''} {error.problem or ''}".split())) from error
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).partition(' in "<')[0].split())) from error
    except RecursionError as error:
        raise YamlError(f"nested more than {DEEPEST} levels deep") from error
    return value


def dump_yaml(value: Any) -> str:
    """A JSON value as YAML that `parse_yaml` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _at(there: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=there.start_mark)


def _check(value: Any, levels: int) -> None:
    """Refuse text that cannot be written or shown."""
    if levels == 0:
        raise RecursionError
    if isinstance(value, str) and (found := NO_TEXT.search(value)):
        raise YamlError(f"the character {found[0].encode('unicode_escape').decode()} in {ascii(value)[:80]}")
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check(each, levels - 1)
