"""The guard at the engine's door: no ensemble's answer leaves by a route that ignores the server's policy.

In: the server's policy. Out: a check for the engine's client, through which every route of vLLM asks. A route follows
the policy when it reads the trace of its request; the others have none.
"""

from collections.abc import Callable

from softspec.engine.trace import current_trace
from softspec.errors import ConfigError
from softspec.server.policy.policy import Policy


def policy_guard(policy: Policy) -> Callable[[str], None]:
    """A check that takes the name of the ensemble about to be asked, and raises where it may not be.

    The check raises:
        ConfigError: the server has a policy, and the route does not follow it.
    """

    def require_followed(ensemble: str) -> None:
        if policy.action != "answer" and current_trace.get() is None:
            raise ConfigError(
                f"this route does not follow the server's policy '{policy.action}': ask "
                f"'{ensemble}' at /v1/chat/completions or /v1/completions"
            )

    return require_followed
