"""What a run shows on stderr, on a terminal and in a log file."""

import re
from pathlib import Path
from typing import Any

import pytest

from softspec.train.loop.facts import StepFacts
from softspec.train.loop.health import Explosions
from softspec.train.run import train_ensemble
from softspec.train.watch.bar import Progress
from tests.support.tiny_training import write_config

FACTS = StepFacts(
    step=1,
    epoch=1.0,
    renyi_alpha=0.8,
    loss=1.25,
    mixture_nll=1.0,
    member_nll=1.5,
    load=[0.256, 0.744],
    routing_perplexity=1.5,
    active_members=2.0,
    skipped_responsibility=0.0,
    prior_penalty=0.0,
    learning_rate=1e-3,
    gradient_norms=[1.0, 2.0],
    starved=[],
    seconds=1.0,
)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("softspec.train.watch.bar.time.monotonic", lambda: self.now)


def test_a_line_says_step_remaining_time_and_how_the_members_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run: 10 steps in 100 s, evaluations included, leave 80 for 800 s; the 10 before do not count."""
    clock = Clock(monkeypatch)
    progress = Progress(total=100, finished=10)

    for seconds in (1, 1, 1, 1, 46, 1, 1, 1, 1, 46):
        clock.now += seconds
        progress.advance(FACTS)

    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("training:  11% 11/100 [00:01<01:29, ")
    assert "20/100 [01:40<13:20, " in last
    assert last.endswith("loss=1.250, nll=1.000, routing=1.50, load=26/74]")


def test_a_log_file_gets_the_first_step_then_a_line_a_minute_then_the_last_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    progress = Progress(total=100, finished=0)

    for _ in range(100):
        clock.now += 2
        progress.advance(FACTS)

    shown = [int(step) for step in re.findall(r"(\d+)/100 \[", capsys.readouterr().err)]
    assert shown == [1, 31, 61, 91, 100]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress(total=2, finished=0)

    progress.advance(FACTS)
    progress.say("softspec: something")
    progress.advance(FACTS)
    progress.close()

    shown = capsys.readouterr().err
    assert "\rtraining: 100%|" in shown
    assert "load=26/74]" in shown
    assert [line for line in re.split("[\r\n]", shown) if line.strip() and "|" not in line] == [
        "softspec: something"
    ]


def test_evaluations_and_the_end_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_ensemble(
        write_config(tmp_path, eval_file="train.jsonl", eval_steps=2, early_stopping_patience=5, max_steps=2)
    )

    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("softspec:") and "frozen" not in line]
    assert told[0] == "softspec: 12 of 12 held-out examples are in train_file too"
    assert re.fullmatch(r"softspec: step 2: held-out mixture NLL \d+\.\d{4} nats", told[1])
    assert re.fullmatch(
        r"softspec: ended after step 2; kept are the members of step 2, .* the best: \d.* nats", told[2]
    )


def warned_at(norms: list[Any], max_grad_norm: float = 1.0) -> list[int]:
    """Steps, from 1, that bring a warning."""
    explosions = Explosions(max_grad_norm)
    return [step for step, each in enumerate(norms, start=1) if explosions.warning(step, each)]


def test_a_gradient_a_hundred_times_the_median_is_told_of_once_in_a_while() -> None:
    usual = [[5.0, 7.0]] * 20

    assert warned_at([*usual, [5.0, 699.0]]) == []
    assert warned_at([*usual, [701.0, 5.0], [5.0, 701.0], *usual * 5, [5.0, 701.0]]) == [21, 123]


def test_the_warning_names_the_member() -> None:
    explosions = Explosions(1.0)
    for step in range(1, 21):
        assert explosions.warning(step, [5.0, 7.0]) is None

    assert explosions.warning(21, [5.0, 7e6]) == (
        "softspec: step 21: the gradient norm of member 1 is 7e+06, usually it is 7: look at the examples, or try a "
        "lower learning_rate"
    )


def test_the_first_steps_are_not_judged() -> None:
    assert warned_at([[1e-3], [1e3], [1e-3], [1e3]]) == []


def test_a_specialist_whose_examples_come_seldom_does_not_explode() -> None:
    """Its gradient is zero in most steps; that of the others is not."""
    assert warned_at([[5.0, 0.0]] * 20 + [[0.0, 5.0]]) == []


def test_a_gradient_that_is_not_even_clipped_does_not_explode() -> None:
    """Late in a run whose data are learnt by heart, norms are tiny."""
    assert warned_at([[1e-4]] * 20 + [[0.9]]) == []
    assert warned_at([[1e-4]] * 20 + [[0.9]], max_grad_norm=0) == [21]
