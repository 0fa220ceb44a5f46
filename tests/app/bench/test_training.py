"""The training benchmark: its plan, its ways against each other, and all of it end to end."""

import json
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from softspec.app.bench.core.flags import parse_layers
from softspec.app.bench.core.layers import adapted_layers
from softspec.app.bench.core.table import told_layers
from softspec.app.bench.training.material import adapter_states, base_with_weights, random_examples
from softspec.app.bench.training.named import way_named
from softspec.app.bench.training.run import BenchError, Crew, describe_run, gradient_differences
from softspec.app.bench.training.settings import JOINT, BenchSettings, Cell, parse_lengths
from softspec.app.bench.training.table import format_report
from softspec.app.bench.training.ways import in_float32
from softspec.app.bench.training.worker import is_out_of_memory
from softspec.app.cli.main import main
from softspec.artefact.cache import cache_folder
from softspec.errors import ConfigError, StorageError
from softspec.train.members.frozen import Frozen
from tests.app.test_cli import only_line_of_a_mistake
from tests.support.tiny import tiny_config

SMALL = BenchSettings(lengths=((40, 5),), members=(3,), batch=2, rank=4, repeats=1, steps=1, has_trl=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path_factory.mktemp("left")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def ready(way: str, base: Path, cell: Cell, settings: BenchSettings = SMALL) -> Any:
    return way_named(way)(str(base), cell, settings)


# The plan


def test_every_repeat_has_every_way_in_an_order_of_its_own() -> None:
    settings = BenchSettings(has_trl=True)

    orders = [settings.order(settings.cells[0], repeat) for repeat in range(20)]

    assert all(sorted(order) == sorted(settings.ways) for order in orders)
    assert len({order[0] for order in orders}) > 3


def test_both_regimes_are_measured_for_every_length_and_number_of_members() -> None:
    found = {
        (cell.prompt_tokens, cell.completion_tokens, cell.members, cell.regime)
        for cell in BenchSettings().cells
    }

    assert len(BenchSettings().cells) == 12
    assert {(256, 32, 8, "start"), (75, 3, 4, "start"), (32, 8, 4, "specialised")} <= found


def test_a_way_that_is_not_installed_is_left_out_and_said() -> None:
    assert "trl" not in SMALL.measured_ways
    assert SMALL.left_out == ["trl: not installed"]


def test_examples_have_exactly_the_lengths_of_the_cell(tiny_base: Path) -> None:
    examples = random_examples(str(tiny_base), SMALL.cells[0], SMALL, 4)

    lengths = {(len(example.prompt_ids), len(example.completion_ids)) for example in examples}
    assert lengths == {(40, 5)}
    assert len(set(examples)) == 4


def test_lengths_are_prompt_and_completion_tokens() -> None:
    assert parse_lengths(["256/32", "32/8"]) == ((256, 32), (32, 8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", (0, 1, 2, 3)), ("top_third", (2, 3)), ("0-0", (0,)), ("1-3", (1, 2, 3)), ("03-3", (3,))],
)
def test_layers_are_named_as_in_a_training_configuration_or_by_both_ends(
    text: str, expected: tuple[int, ...]
) -> None:
    skeleton = AutoModelForCausalLM.from_config(tiny_config(layers=4))

    assert adapted_layers(skeleton, text) == expected


def test_layers_that_the_base_does_not_have_are_refused() -> None:
    skeleton = AutoModelForCausalLM.from_config(tiny_config(layers=4))

    with pytest.raises(ConfigError, match="--layers is '2-4': expected layers that the base has, 0 to 3"):
        adapted_layers(skeleton, "2-4")


@pytest.mark.parametrize("text", ["x", "", "3", "5-3", "-1", "1-", "0-1-2", "top-third", "0-99999", "0 - 1"])
def test_other_words_for_layers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--layers is '{text}': expected all, top_third, or first-last"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([0, 1, 2, 3], "all 4 layers"),
        ([2, 3], "layers 2-3 of 4"),
        ([0], "layers 0-0 of 4"),
        ([0, 3], "layers 0, 3 of 4"),
    ],
)
def test_tables_say_where_adapters_are(layers: list[int], told: str) -> None:
    assert told_layers({"adapted_layers": layers, "layers": 4}) == told


# The ways


@pytest.mark.parametrize("cell", SMALL.cells, ids=str)
def test_all_joint_ways_have_the_same_gradients(cell: Cell, tiny_base: Path) -> None:
    """Those of one stacked pass, of K graphs of a stock PEFT model, and of its mixed batch."""
    gradients = [(way, ready(way, tiny_base, cell).gradients()) for way in JOINT]

    differences = gradient_differences(gradients)
    assert list(differences) == [f"{way}/softspec" for way in JOINT[1:]]
    assert max(differences.values()) < 1e-5
    for gradient in (value for name, value in gradients[0][1].items() if "lora_B" in name):
        assert gradient.shape[0] == cell.members
        assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_all_joint_ways_have_adapters_in_the_chosen_layers_only(tiny_base: Path) -> None:
    settings = replace(SMALL, layers="1-1")

    gradients = [(way, ready(way, tiny_base, SMALL.cells[1], settings).gradients()) for way in JOINT]

    assert max(gradient_differences(gradients).values()) < 1e-5
    for _, found in gradients:
        assert {name.split(".layers.")[1][0] for name in found} == {"1"}


def kept(settings: BenchSettings, base: Path, way: str) -> int:
    """How many files two steps of a way write, after its gradients were compared."""
    measured = ready(way, base, settings.cells[0], settings)
    measured.gradients()
    before = files()
    measured.run(2)
    return files() - before


def files() -> int:
    """How many files the cache has."""
    return len([*cache_folder("frozen").glob("*/*")])


@pytest.mark.parametrize(
    ("lengths", "layers", "of_an_example"),
    [
        ((40, 5), "all", 1),
        ((40, 5), "top_third", 2),
        ((9, 3), "top_third", 1),  # alike in the steps and, with adapters on everywhere, in the comparison
        ((9, 3), "all", 0),
    ],
    ids=str,
)
def test_every_step_of_a_first_epoch_has_new_examples_and_keeps_what_is_frozen_of_them(
    lengths: tuple[int, int], layers: str, of_an_example: int, tiny_base: Path
) -> None:
    """The trunk of the prompt, and what the layers below the adapters make of the rest."""
    settings = replace(SMALL, lengths=(lengths,), layers=layers)

    assert kept(settings, tiny_base, "softspec") == of_an_example * 2 * settings.examples_per_step


def test_steps_of_a_later_epoch_find_everything(tiny_base: Path) -> None:
    settings = replace(SMALL, layers="top_third")
    later = ready("softspec-later", tiny_base, settings.cells[0], settings)

    with patch.object(Frozen, "compute", autospec=True) as compute:
        later.run(2)

    assert not compute.called
    assert files() == 2 * 2 * settings.examples_per_step


def test_steps_that_keep_nothing_write_nothing(tiny_base: Path) -> None:
    assert kept(replace(SMALL, layers="top_third"), tiny_base, "softspec-unkept") == 0
    assert not cache_folder("frozen").exists()


def test_a_disk_without_room_for_what_is_frozen_is_told(tiny_base: Path) -> None:
    with (
        patch("softspec.train.loop.keeping._free", return_value=1000),
        pytest.raises(StorageError, match="GB that are free"),
    ):
        ready("softspec", tiny_base, SMALL.cells[0])


def test_different_gradients_are_an_error() -> None:
    first, second = torch.tensor([[3.0], [4.0]]), torch.tensor([[3.0], [4.1]])

    with pytest.raises(BenchError, match=r"gradients of b differ from those of a by 2\.5e-02"):
        gradient_differences([("a", {"weight": first}), ("b", {"weight": second})])


@pytest.mark.parametrize("way", SMALL.measured_ways)
def test_steps_are_timed_and_leave_the_adapters_as_they_were(way: str, tiny_base: Path) -> None:
    measured = ready(way, tiny_base, SMALL.cells[1])
    before = [weight.detach().clone() for weight in measured.model.parameters()]

    timing = measured.run(2)

    moved = [
        (new - old).abs().max().item() for new, old in zip(measured.model.parameters(), before, strict=True)
    ]
    assert 0 < timing.step_s < 60
    assert 0 < max(moved) < 1e-7


def test_members_are_equal_at_the_start_and_differ_once_specialised(tiny_base: Path) -> None:
    start, specialised = (ready("softspec", tiny_base, cell).run(2).routing for cell in SMALL.cells)

    assert start["routing_perplexity"] == pytest.approx(3)
    assert start["active_members"] == 3
    assert specialised["routing_perplexity"] < 2.5


def test_a_bfloat16_base_is_compared_in_float32_and_comes_back_unchanged() -> None:
    model = torch.nn.Linear(3, 3).bfloat16()
    before = model.weight.clone()

    with in_float32(model):
        assert model(torch.ones(3)).dtype == torch.float32

    assert torch.equal(model.weight, before)
    assert model.weight.dtype == torch.bfloat16


def test_random_adapters_are_the_same_each_time(tiny_base: Path) -> None:
    first, second = (adapter_states(str(tiny_base), SMALL.cells[1], SMALL) for _ in range(2))

    assert len(first) == 3
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
    assert not any(torch.equal(first[0][name], first[1][name]) for name in first[0])


def test_a_base_without_weights_gets_random_ones(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "shape").mkdir()
    tiny_config().save_pretrained(tmp_path / "shape")

    found = base_with_weights(str(tmp_path / "shape"), tmp_path / "random", seed=0)

    assert found == str(tmp_path / "random")
    assert AutoModelForCausalLM.from_pretrained(found).config.hidden_size == 32
    assert base_with_weights(str(tiny_base), tmp_path / "unused", seed=0) == str(tiny_base)


def test_torch_without_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**52)

    assert is_out_of_memory(failed.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


# The command


def test_a_way_whose_process_is_killed_is_left_out(tiny_base: Path, left: Path) -> None:
    document = describe_run(str(tiny_base), SMALL)
    settings = replace(SMALL, ways=("softspec",))
    with Crew(str(tiny_base), SMALL.cells[0], settings, document, tqdm(disable=True)) as crew:
        pid = crew.workers["softspec"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert [*left.iterdir()]

        assert crew.ask("softspec", lambda worker: worker.wait_until_loaded()) is None

    assert crew.workers == {}
    assert not [*left.iterdir()]
    assert "40/5 tokens, K = 3, start: softspec: killed" in document["left_out"][-1]


@pytest.mark.slow
def test_all_ways_are_measured_side_by_side(
    tiny_base: Path, tmp_path: Path, left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    size = ["--lengths", "40/5", "--members", "3", "--batch", "2", "--rank", "4", "--repeats", "2"]
    chosen = ["--ways", "softspec", "peft-mixed", "--regimes", "specialised", "--layers", "0-0"]

    code = main(["bench", "train", "--json", str(path), "--base", str(tiny_base), *size, *chosen])

    document = json.loads(path.read_text())
    (cell,) = document["cells"]
    assert code == 0
    assert document["complete"]
    assert document["model"]["weights"] == "loaded"
    assert document["model"]["adapted_layers"] == [0]
    assert document["dtype"] == "float32"
    assert "peft-separate: not among --ways" in document["left_out"]
    assert cell["gradient_differences"]["peft-mixed/softspec"] < 1e-4  # what softspec skips
    assert cell["samples"]["softspec"][0]["routing"]["routing_perplexity"] < 2.5
    assert cell["samples"]["peft-mixed"][0]["routing"] is None
    for samples in cell["samples"].values():
        assert [sample["repeat"] for sample in samples] == [0, 1]
        for sample in samples:
            assert sample["tokens_per_s"] == pytest.approx(4 * 45 / sample["step_s"])
            assert 0 < sample["added_bytes"] < sample["peak_bytes"] < 4 * 2**30
    for measure in ("step_s", "peak_bytes", "added_bytes"):
        above, below = (
            {sample["repeat"]: sample[measure] for sample in cell["samples"][way]}
            for way in ("peft-mixed", "softspec")
        )
        ratios = [above[repeat] / below[repeat] for repeat in (0, 1)]
        found = cell["ratios"]["peft-mixed/softspec"][measure]
        assert (found["min"], found["max"]) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))
    assert capsys.readouterr().out.strip() == format_report(document).strip()
    assert not [*left.iterdir()]
    assert not cache_folder("frozen").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ways", "magic"], "--ways has 'magic': expected some of softspec,"),
        (["--regimes", "late"], "--regimes has 'late': expected some of start, specialised"),
        (["--lengths", "256"], "--lengths has '256': expected PROMPT/COMPLETION"),
        (["--lengths", "0/8"], "--lengths is 0: expected at least 1"),
        (["--members", "0"], "--members is 0: expected at least 1"),
        (["--repeats", "0"], "--repeats is 0: expected at least 1"),
        (["--layers", "5-3"], "--layers is '5-3': expected all, top_third, or first-last counted from 0"),
        (["--layers", "0-99", "--base", "{}"], "--layers is '0-99': expected layers that the base has, 0 to"),
        (["--alpha", "2"], "--alpha is 2: expected 0 to 1"),
        (["--base", "./nowhere"], "cannot load base_model './nowhere'"),
        (["--json", "nowhere/b.json"], "there is no directory 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    flags: list[str],
    message: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    filled = [flag.format(tiny_base) for flag in flags]
    arguments = ["bench", "train", *filled, *([] if "--json" in flags else ["--json", "bench.json"])]

    assert message in only_line_of_a_mistake(arguments, capsys)
