"""Which decoder layers of a base `--layers` names.

In: the flag's text and a base, with or without weights. Out: numbers. The rule of `top_third` is that of training.
"""

from torch import nn

from softspec.app.bench.core.flags import parse_layers
from softspec.errors import ConfigError
from softspec.train.members.spec import decoder_layers, resolve_spec


def adapted_layers(base: nn.Module, text: str) -> tuple[int, ...]:
    """The numbers of the layers of this base that the flag names.

    Raises:
        ConfigError: the flag is wrong, or the base does not have them.
    """
    chosen, last = parse_layers(text), len(decoder_layers(base)) - 1
    if not isinstance(chosen, str) and chosen[-1] > last:
        raise ConfigError(f"--layers is '{text}': expected layers that the base has, 0 to {last}")
    return resolve_spec(base, 1, 1, "all-linear", chosen).layers
