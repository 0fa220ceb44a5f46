"""Lets members share the layers below their adapters, once one answer has shown that it changes nothing.

In: the client, with its ensembles in the engine. Out: the worker, told to share or not, and one line in the log. How it
is done is in `softspec/engine/worker/lower/`.
"""

import logging

import torch

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.scoring import score_answers
from softspec.errors import EngineError

LEAST_TOKENS = 4
"""So many tokens of a step go through the lower layers at least: matrix products of fewer take a CPU longer."""
_PROMPT, _ANSWER = tuple(range(8)), tuple(range(3))
"""Shorter than a KV block together, so that nothing is found in the prefix cache; every vocabulary has them."""
_TOLERANCE = {torch.float32: 1e-2}
_COARSE_TOLERANCE = 0.5
"""Nats, of 16-bit numbers. What goes wrong in a layer goes wrong by more."""

_log = logging.getLogger(__name__)


async def share_lower_layers(client: EnsembleClient) -> None:
    """Compute layers without adapters once for all members, if the model allows it and a trial finds no change.

    Else every member computes them, as it does without this call, and the log says why.
    """
    reason = await _share(client, 1)
    if reason is None:
        reason = await _what_it_changes(client)
        await _share(client, LEAST_TOKENS if reason is None else None)
    if reason is not None and _sharing(client):
        _log.warning("layers below the adapters are computed for every member: %s", reason)


async def _share(client: EnsembleClient, least: int | None) -> str | None:
    """Tell the workers; returns why they cannot."""
    found: list[str | None] = await client.collective_rpc("share_lower_layers", args=(least,))
    return next((reason for reason in found if reason is not None), None)


def _sharing(client: EnsembleClient) -> list[str]:
    """The ensembles whose members have layers to share."""
    served = client.registry.ensembles.items()
    return [name for name, each in served if each.first_layer and len(each.adapters) > 1]


async def _what_it_changes(client: EnsembleClient) -> str | None:
    """What is different if the first ensemble that can share does; None if nothing is, or there is none."""
    for name in _sharing(client)[:1]:
        try:
            shared = await _numbers(client, name)
            await _share(client, None)
            apart = await _numbers(client, name)
        except EngineError as error:
            return f"'{name}' does not answer ({error})"
        tolerance = _TOLERANCE.get(client.model_config.dtype, _COARSE_TOLERANCE)
        for one, other in zip(shared, apart, strict=True):
            if not abs(one - other) <= tolerance:
                return f"log-probabilities of '{name}' would change from {one:.3f} to {other:.3f} nats"
    return None


async def _numbers(client: EnsembleClient, name: str) -> list[float]:
    """The log-probabilities of a known answer's tokens under every member."""
    (trace,) = await score_answers(client, name, _PROMPT, [_ANSWER], "shared-layers")
    return [value for token in trace.tokens for value in token.member_log_probs]
