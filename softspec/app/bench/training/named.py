"""The ways to a training step by their names; each is imported only if it is asked for.

In: one of `WAYS`. Out: what makes it. A process imports no other way, whose libraries would count as its memory.
"""

from collections.abc import Callable

from softspec.app.bench.training.settings import BenchSettings, Cell
from softspec.app.bench.training.ways import Way


def way_named(name: str) -> Callable[[str, Cell, BenchSettings], Way]:
    """What makes the way of this name from base, cell and settings."""
    if name.startswith("softspec"):
        from softspec.app.bench.training import softspec_way

        return {
            "softspec": softspec_way.Softspec,
            "softspec-later": softspec_way.SoftspecLater,
            "softspec-unkept": softspec_way.SoftspecUnkept,
            "softspec-always": softspec_way.SoftspecAlways,
        }[name]
    if name == "trl":
        from softspec.app.bench.training.trl_way import Trl

        return Trl
    from softspec.app.bench.training.peft_ways import PeftMixed, PeftSeparate, PeftSwitching

    return {"peft-switching": PeftSwitching, "peft-mixed": PeftMixed, "peft-separate": PeftSeparate}[name]
