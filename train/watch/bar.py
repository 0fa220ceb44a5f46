"""How far a run is, on stderr: a bar on a terminal, and now and then a line where there is none.

In: the facts of each step. Out: step, remaining time, objective, mixture NLL, and how the members share the examples.
"""

import time

from tqdm import tqdm

from softspec.console import unbroken_stderr
from softspec.train.loop.facts import StepFacts

LINE_SECONDS = 60.0
"""Between lines in a log file."""


class Progress:
    """A bar on a terminal, or lines in a log file.

    A reader who has left costs the lines and never the run. Remaining time is estimated from the mean over this
    process's steps, evaluations and checkpoints included.
    """

    def __init__(self, total: int, finished: int) -> None:
        self._total, self._finished, self._done = total, finished, finished
        self._started, self._told = time.monotonic(), -LINE_SECONDS
        self._stream = unbroken_stderr()
        # smoothing=0 is the mean: a moving one jumps after every evaluation. disable=None is for a terminal only.
        self._bar = tqdm(
            total=total,
            initial=finished,
            unit="step",
            desc="training",
            mininterval=1.0,
            smoothing=0,
            disable=None,
            file=self._stream,
        )

    def advance(self, facts: StepFacts) -> None:
        """Show that one more step is done, and what it came to."""
        self._done += 1
        self._bar.set_postfix_str(short(facts), refresh=False)
        self._bar.update()
        if self._bar.disable and (time.monotonic() - self._told >= LINE_SECONDS or self._done == self._total):
            self._told = time.monotonic()
            self.say(
                tqdm.format_meter(
                    self._done,
                    self._total,
                    self._told - self._started,
                    ncols=0,
                    prefix="training",
                    unit="step",
                    postfix=short(facts),
                    initial=self._finished,
                )
            )

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        tqdm.write(line, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def short(facts: StepFacts) -> str:
    """A step in a few words: nats, the effective number of members, and their load in percent."""
    load = "/".join(f"{100 * share:.0f}" for share in facts.load)
    return f"loss={facts.loss:.3f}, nll={facts.mixture_nll:.3f}, routing={facts.routing_perplexity:.2f}, load={load}"
