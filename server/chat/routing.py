"""Whole answers that a policy routes: every such choice is asked of the upstream, all at the same time.

In: what the policy decided on each choice. Out: what became of each. Knows no HTTP.
"""

import asyncio
from collections.abc import Sequence

from softspec.errors import UpstreamError
from softspec.server.chat.forwarding import Forwarded, Forwarding
from softspec.server.chat.replies import Outcome, settle
from softspec.server.policy.policy import Policy


async def answered_elsewhere(
    judged: Sequence[Outcome], forwarding: Forwarding, policy: Policy
) -> list[Outcome]:
    """The choices, those to be routed with the upstream's answer or with what is done without one.

    Raises:
        UpstreamError: an upstream failed, and the policy says that this is an error.
    """

    async def answer(outcome: Outcome) -> Forwarded | UpstreamError | None:
        if outcome.decision.action != "route" or policy.upstream is None:
            return None
        try:
            return await forwarding.ask(policy.upstream, outcome.index)
        except UpstreamError as error:
            return error

    answers = await asyncio.gather(*map(answer, judged))
    return [
        outcome if found is None else settle(outcome, found, policy)
        for outcome, found in zip(judged, answers, strict=True)
    ]
