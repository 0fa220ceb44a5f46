"""The prefix posterior of every group between steps: how far each member is believed before the next token.

In: a group at a position, and the weights after its token. Out: the weights before it. Knows nothing of logits.
"""

from collections.abc import Iterable, Set

from torch import Tensor

from softspec.engine.worker.rows import GroupRows
from softspec.errors import LockstepError

_KEPT = 8
"""Positions of a group that are kept. A group goes back by the steps that were in flight when it was preempted, and
vLLM's asynchronous scheduling has two of them."""


class _History:
    """The log-weights (K,) before output tokens `first`, `first + 1`, ... of one group."""

    def __init__(self, prior: Tensor) -> None:
        self.first, self.weights = 0, [prior]

    def go_to(self, position: int) -> bool:
        """Forget what came after `position`; False if its own weights are not there."""
        del self.weights[max(position + 1 - self.first, 0) :]
        return len(self.weights) == position + 1 - self.first > 0

    def append(self, weights: Tensor) -> None:
        self.weights.append(weights)
        if len(self.weights) > _KEPT:
            del self.weights[0]
            self.first += 1


class PrefixPosteriors:
    """The weights of all groups that are in the engine. Those of a `fixed` rule are their prior for ever."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    @property
    def group_ids(self) -> Set[str]:
        """The groups with a prefix posterior."""
        return self._histories.keys()

    def forget(self, request_ids: Iterable[str]) -> None:
        """Free the weights of finished groups; ids that are no group's are ignored."""
        for request_id in request_ids:
            self._histories.pop(request_id, None)

    def before(self, group: GroupRows, prior: Tensor) -> Tensor:
        """The log-weights (K,) before output token `group.position`; a rewind (dropped output) finds its earlier ones.

        Raises:
            LockstepError: the group is at a position that it never reached, or that is too long ago.
        """
        if group.seat.spec.weights_rule == "fixed":
            return prior
        history = self._histories.setdefault(group.seat.group_id, _History(prior))
        if not history.go_to(group.position):
            raise LockstepError(
                f"request {group.seat.group_id} is at output token {group.position}, of which the prefix posterior is "
                f"not kept: expected at most {_KEPT} tokens back from where it was"
            )
        return history.weights[-1]

    def learn(self, group: GroupRows, weights: Tensor) -> None:
        """Keep the log-weights (K,) after output token `group.position`."""
        if group.seat.spec.weights_rule == "prefix_posterior":
            history = self._histories[group.seat.group_id]
            history.go_to(group.position)
            history.append(weights)
