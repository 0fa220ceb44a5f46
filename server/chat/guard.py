"""No ensemble's answer leaves by a route that ignores the server's policy.

In: the server's policy. Out: refusals, at the door before vLLM's routes, and behind it at the engine's client, through
which every route asks. A route follows the policy when it reads the trace of its request; the others have none.
"""

from collections.abc import Callable

from softspec.engine.trace import current_trace
from softspec.errors import ConfigError
from softspec.server.access.callers import require_policy
from softspec.server.policy.policy import Policy


def refuse_unfollowed(policy: Policy, ensemble: str, route: str) -> None:
    """Refuse to let an ensemble answer at a route that withholds nothing, where the server wants answers withheld.

    Raises:
        ConfigError: the policy wants that.
    """
    if policy.action != "answer":
        raise ConfigError(
            f"{route} does not follow the server's policy '{policy.action}': ask '{ensemble}' at "
            "/v1/chat/completions or /v1/completions"
        )


def policy_guard(policy: Policy) -> Callable[[str], None]:
    """A check that takes the name of the ensemble about to be asked, and raises where it may not be.

    The check raises:
        ConfigError: the server has a policy, and the route does not follow it.
        ForbiddenError: whoever asks may not have answers without a policy.
    """

    def require_followed(ensemble: str) -> None:
        if current_trace.get() is None:
            refuse_unfollowed(policy, ensemble, "this route")
            require_policy(Policy())

    return require_followed
