"""The architecture: which room may import which. What breaks a rule is told where it belongs.

Rooms are the packages below `softspec`; their docstrings say what they hold. A room may import itself and what its
line names, `TYPE_CHECKING` included; within a room no two files may import each other in a circle.
"""

from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module

import grimp
import pytest

HOUSE = {
    "errors": (),
    "console": (),
    "maths": ("errors",),
    "artefact": ("errors", "maths"),
    "reference": ("errors", "maths", "artefact"),
    "engine": ("errors", "maths", "artefact"),
    "train": ("errors", "console", "maths", "artefact"),
    "server": ("errors", "maths", "artefact", "engine"),
    "ensemble": ("errors", "console", "maths", "artefact", "engine", "train", "server"),
    "evaluation": ("errors", "console", "maths", "artefact", "train", "ensemble"),
    "calibration": ("errors", "console", "maths", "artefact", "train", "ensemble", "evaluation"),
    "app": (
        "errors",
        "console",
        "maths",
        "artefact",
        "reference",
        "engine",
        "train",
        "server",
        "ensemble",
        "evaluation",
        "calibration",
    ),
}
"""The rooms of the house, each with those it may import."""

FLOORS = {
    "engine": (
        ("wire", "trace", "meter", "asked"),
        ("requirements", "options"),
        ("worker", "core", "front"),
        ("start",),
    ),
    "train": (
        ("places", "foreign_keys"),
        ("kinds",),
        ("config", "processes"),
        ("data",),
        ("members",),
        ("objective",),
        ("loop",),
        ("watch",),
        ("result",),
        ("run",),
        ("diagnosis",),
        ("selection",),
    ),
    "server": (
        ("policy", "fields", "upstream", "record", "observe"),
        ("access", "rollout"),
        ("ops",),
        ("chat",),
        ("ensembles", "scores", "decisions", "dialects", "page"),
        ("plugin",),
    ),
    "app": (
        ("child_server", "interruption", "outputs", "running_server", "smollm2"),
        ("baselines", "bench", "calibrate", "compare", "demo", "evaluate", "plan", "report", "score"),
        ("cli",),
    ),
    "app.bench": (("core",), ("load", "serving", "training")),
}
"""Rooms within rooms, from the bottom up: a floor may import those below it; rooms of one floor are strangers."""

OUTSIDE = {
    "vllm": ("engine", "server.plugin"),
    "fastapi": tuple(
        f"server.{room}"
        for room in (
            "rollout",
            "ops",
            "chat",
            "ensembles",
            "scores",
            "decisions",
            "dialects",
            "page",
            "plugin",
        )
    ),
    "httpx2": ("server.upstream",),
    "limits": ("server.access",),
    "uvicorn": ("server.access",),
    "peft": ("train.result", "train.members", "reference", "app.bench"),
    "cyclopts": ("app",),
}
"""Where a library may be imported. Whatever is about it belongs there."""

MATHEMATICS_NEEDS = {"torch", "math", "collections", "dataclasses", "typing", "softspec"}


@cache
def imports() -> grimp.ImportGraph:
    """The whole house and the libraries it uses, read from the source, functions and `TYPE_CHECKING` included."""
    return grimp.build_graph("softspec", include_external_packages=True, cache_dir=None)


def room(module: str, parent: str) -> str | None:
    """The room below `parent` that holds a module; None if it lies elsewhere."""
    prefix = f"softspec.{parent}." if parent else "softspec."
    return module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else None


def allowed_in(parent: str) -> dict[str, set[str]]:
    """Each room below `parent`, with the rooms beside it that it may import."""
    if not parent:
        return {name: set(names) for name, names in HOUSE.items()}
    floors = FLOORS[parent]
    return {
        name: {below for floor in floors[:number] for below in floor}
        for number, floor in enumerate(floors)
        for name in floor
    }


def wrong_arrows(graph: grimp.ImportGraph, parent: str) -> list[str]:
    """Every import that a rule about the rooms below `parent` forbids, with what to do about it."""
    allowed, found = allowed_in(parent), []
    for importer in sorted(graph.modules):
        here = room(importer, parent)
        if here is None or importer == "softspec":
            continue
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            there = room(imported, parent)
            if there is None or there in (here, *allowed.get(here, ())):
                continue
            line = graph.get_import_details(importer=importer, imported=imported)
            number = line[0]["line_number"] if line else "?"
            found.append(
                f"{importer}:{number} imports {imported}, but {here} may import only "
                f"{', '.join(sorted(allowed.get(here, ()))) or 'nothing of the house'}. "
                f"{there} is for: {purpose(parent, there)} What both need belongs into a room below; "
                "what one of them needs, its caller passes in."
            )
    return found


def purpose(parent: str, name: str) -> str:
    """What a room is for, in its own words."""
    words = import_module(".".join(filter(None, ("softspec", parent, name)))).__doc__ or "?"
    return words.split("\n")[0]


@pytest.mark.parametrize("parent", ["", *FLOORS], ids=lambda parent: parent or "house")
def test_rooms_import_only_what_lies_below_them(parent: str) -> None:
    assert not (found := wrong_arrows(imports(), parent)), "\n".join(found)


@pytest.mark.parametrize("parent", ["", *FLOORS], ids=lambda parent: parent or "house")
def test_every_room_has_a_place(parent: str) -> None:
    """A new room is a decision: name it here, and say what it may import."""
    found = {room(module, parent) for module in imports().modules} - {None, "softspec"}

    assert {name for name in found if name != "__main__"} == set(allowed_in(parent))


@pytest.mark.parametrize(
    ("importer", "imported", "parent"),
    [
        ("softspec.maths.mixture", "softspec.artefact.manifest", ""),
        ("softspec.train.run", "softspec.server.policy.policy", ""),
        ("softspec.engine.core.scheduler", "softspec.app.child_server", ""),
        ("softspec.train.data.rows", "softspec.train.loop.step", "train"),
        ("softspec.engine.front.client", "softspec.engine.worker.mixing", "engine"),
        ("softspec.server.policy.policy", "softspec.server.chat.wire", "server"),
        ("softspec.app.demo.story", "softspec.app.bench.core.spread", "app"),
    ],
)
def test_an_arrow_that_turns_is_noticed(importer: str, imported: str, parent: str) -> None:
    graph = grimp.build_graph("softspec", include_external_packages=True, cache_dir=None)
    graph.add_import(importer=importer, imported=imported)

    assert any(line.startswith(f"{importer}:? imports {imported}") for line in wrong_arrows(graph, parent))


def test_no_two_files_need_each_other() -> None:
    graph = imports()
    ours = {module for module in graph.modules if module.startswith("softspec")}
    needs = {module: graph.find_modules_directly_imported_by(module) & ours for module in ours}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as circle:
        pytest.fail(f"a circle of imports: {' <- '.join(circle.args[1])}")


@pytest.mark.parametrize("library", OUTSIDE)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    homes = tuple(f"softspec.{home}" for home in OUTSIDE[library])
    found = sorted(imports().find_modules_that_directly_import(library))

    strays = [module for module in found if not f"{module}.".startswith(tuple(f"{home}." for home in homes))]
    assert found, f"nothing imports {library}: remove its line"
    assert not strays, f"{strays} import {library}: what is about it belongs in {', '.join(homes)}"


def test_the_mathematics_needs_torch_and_nothing_else() -> None:
    graph = imports()
    modules = [module for module in graph.modules if module.startswith("softspec.maths.")]
    found = {name for module in modules for name in graph.find_modules_directly_imported_by(module)}

    assert modules
    assert {name.partition(".")[0] for name in found} <= MATHEMATICS_NEEDS
