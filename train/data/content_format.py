"""Whether a chat template takes a turn's content as text or as a list of parts, told from its source as vLLM does.

In: the source of a template. Out: yes or no. A template that loops over the content of a message is given parts.
"""

from collections.abc import Iterator
from functools import lru_cache

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template


@lru_cache(maxsize=32)
def takes_parts(template: str) -> bool:
    """Whether the template loops over the parts of a message's content.

    Raises:
        jinja2.TemplateError: it cannot be parsed.
    """
    tree = _compile_jinja_template(template).environment.parse(template)
    turns = _names_of_turns(tree)
    loops = list(tree.find_all(nodes.For))
    if any(_reads(loop.iter, turn, "content") for loop in loops for turn in turns):
        return True
    macros = list(tree.find_all(nodes.Macro))
    inside = {id(loop): macro for macro in macros for loop in macro.find_all(nodes.For)}
    for loop in loops:
        if not isinstance(loop.iter, nodes.Name):
            continue
        if id(loop) not in inside:
            if loop.iter.name == "content":
                return True
        elif loop.iter.name in _given_content(tree, inside[id(loop)], turns):
            return True
    return False


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Whether an expression is the variable (or its `key`), perhaps filtered, tested or sliced."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is not None:
        if isinstance(node, nodes.Getitem):
            named = isinstance(node.arg, nodes.Const) and node.arg.value == key
        else:
            named = isinstance(node, nodes.Getattr) and node.attr == key
        if not named or not isinstance(node, nodes.Getitem | nodes.Getattr):
            return False
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _names_of_turns(tree: nodes.Template) -> set[str]:
    """Loop variables that run over `messages`, or over what was assigned from it."""
    lists, found = ["messages"], set()
    for name in lists:  # grows while it is read
        for assignment in tree.find_all(nodes.Assign):
            target = assignment.target
            if isinstance(target, nodes.Name) and target.name not in lists and _reads(assignment.node, name):
                lists.append(target.name)
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.target, nodes.Name) and any(_reads(loop.iter, name) for name in lists):
            found.add(loop.target.name)
    return found


def _given_content(tree: nodes.Template, macro: nodes.Macro, turns: set[str]) -> Iterator[str]:
    """Parameters of a macro that somewhere are given the content of a message."""
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
            continue
        given = list(zip([each.name for each in macro.args], call.args, strict=False))
        given += [(each.key, each.value) for each in call.kwargs if isinstance(each, nodes.Keyword)]
        for name, value in given:
            if any(_reads(value, turn, "content") for turn in turns):
                yield name
