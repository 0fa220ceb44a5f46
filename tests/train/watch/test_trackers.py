"""Curves: everything `training.jsonl` says, once a step, and never at the price of the run."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.run import train_ensemble
from softspec.train.watch.trackers import scalars
from tests.support.tiny_training import write_config
from tests.support.training_runs import STEPS, interrupted, logged


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told, and raises in the method and at the call that a test names."""

    name = "recorder"
    requires_logging_directory = False
    tracker = None
    fails_in: tuple[str, int] = ("", 0)
    calls: list[tuple[str, Any]] = []  # noqa: RUF012 a fixture gives every test its own

    def __init__(self, project: str) -> None:
        super().__init__()

    def start(self) -> None:
        self._note("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("config", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._note("log", (step, values))

    def finish(self) -> None:
        self._note("finish", None)

    def _note(self, method: str, what: Any) -> None:
        self.calls.append((method, what))
        if (method, sum(name == method for name, _ in self.calls)) == self.fails_in:
            raise OSError("the network\nis down")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("FreshRecorder", (Recorder,), {"calls": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", kind)
    return kind


def curves(config: TrainConfig) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a finished run: tag to (step, value)."""
    events = EventAccumulator(str(config.output_dir / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_lists_and_mappings_are_spread_out() -> None:
    values = {"loss": 1.5, "load": [0.4, 0.6], "held_out": {"nll": 2, "member_nlls": [3, 4]}}

    assert scalars(values) == {
        "loss": 1.5,
        "load/0": 0.4,
        "load/1": 0.6,
        "held_out/nll": 2,
        "held_out/member_nlls/0": 3,
        "held_out/member_nlls/1": 4,
    }


def test_tensorboard_shows_what_the_log_says(tmp_path: Path) -> None:
    config = write_config(tmp_path, eval_file="train.jsonl", eval_steps=2)

    train_ensemble(config)

    shown, events = curves(config), logged(config)
    steps = [event for event in events if "loss" in event]
    evaluations = [event for event in events if "held_out" in event]
    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4]
    assert [value for _, value in shown["loss"]] == pytest.approx([event["loss"] for event in steps])
    assert [value for _, value in shown["load/1"]] == pytest.approx([event["load"][1] for event in steps])
    assert shown["held_out/mixture_nll"] == [
        (event["step"], pytest.approx(event["held_out"]["mixture_nll"])) for event in evaluations
    ]
    assert len(evaluations) == 2


@pytest.mark.slow
def test_a_resumed_run_shows_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that came after the checkpoint, whose curves were already written."""
    config = interrupted(tmp_path)
    checkpoint = tmp_path / "ensemble.partial" / "checkpoint.pt"
    early = checkpoint.read_bytes()
    monkeypatch.delattr("softspec.train.run.export")  # so that the run dies after its last step
    with pytest.raises(NameError, match="export"):
        train_ensemble(config, resume=True)
    monkeypatch.undo()
    checkpoint.write_bytes(early)

    train_ensemble(config, resume=True)

    assert [step for step, _ in curves(config)["loss"]] == list(range(1, STEPS + 1))


def test_other_trackers_get_the_same_and_the_configuration(tmp_path: Path, recorder: type[Recorder]) -> None:
    config = write_config(tmp_path, max_steps=2, report_to="recorder")

    train_ensemble(config)

    assert [method for method, _ in recorder.calls] == ["start", "config", "log", "log", "finish"]
    assert recorder.calls[1][1]["num_members"] == 2
    step, values = recorder.calls[3][1]
    assert step == 2
    assert values["loss"] == logged(config)[1]["loss"]


@pytest.mark.parametrize("method", ["start", "config", "log", "finish"])
def test_training_outlives_a_tracker(
    tmp_path: Path, recorder: type[Recorder], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it would have shown is in `training.jsonl` and in TensorBoard anyway."""
    recorder.fails_in = (method, 1)
    config = write_config(tmp_path, max_steps=3, report_to=["recorder"])

    train_ensemble(config)

    assert recorder.calls[-1][0] == method
    assert len(logged(config)) == len(curves(config)["loss"]) == 3
    told = "softspec: training goes on without recorder, which failed: the network is down\n"
    assert capsys.readouterr().err.count(told) == 1


def test_training_outlives_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", no_space)
    config = write_config(tmp_path, max_steps=2)

    train_ensemble(config)

    assert len(logged(config)) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("weights_and_biases", "report_to has 'weights_and_biases', expected some of .*wandb"),
        (
            ["tensorboard", "dvclive"],
            "report_to has 'dvclive', which is not installed: install it or leave it",
        ),
    ],
)
def test_trackers_that_are_not_there_are_refused_before_the_weights_are_loaded(
    tmp_path: Path, names: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softspec.train.watch.trackers.get_available_trackers", lambda: ["tensorboard"])
    write_config(tmp_path)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"loading this would fail")

    with pytest.raises(ConfigError, match=message):
        train_ensemble(write_config(tmp_path, report_to=names))
