"""`softspec plan`: its page, its JSON, what it advises and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from softspec.app.cli.main import main
from softspec.app.plan.advice import advice
from softspec.app.plan.memory import Room
from tests.support.planned import SMOLLM2, case_of

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
EXAMPLE = ["--context", "1500", "--output-tokens", "500", "--concurrency", "4"]
H200 = Room(141 * 10**9)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def rows_of(printed: str) -> dict[str, list[str]]:
    """First 40 columns of a line -> the rest of it."""
    return {line[:40].strip(): line[40:].split() for line in printed.splitlines() if line[40:].strip()}


def test_the_page_has_the_numbers_of_the_example(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--base", str(llama), *EXAMPLE]) == 0

    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert rows["of 131.3: weights"] == ["14.96"]
    assert rows["one adapter"] == ["188.0"]
    assert rows["prompt shared by all members"] == ["380.0"]
    assert rows["a prompt for every member"] == ["752.0"]
    assert "flags: --max-model-len 1500 --max-num-seqs 17" in printed


def test_the_page_fits_80_columns(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--base", str(llama), *EXAMPLE, "--layers", "top_third"])

    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def planned(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "plan.json"
    assert main(["plan", *arguments, "--json", str(output)]) == 0
    return dict(json.loads(output.read_text()))


def test_all_numbers_go_into_a_file(llama: Path, tmp_path: Path) -> None:
    found = planned(tmp_path, "--base", str(llama), *EXAMPLE)

    assert found["memory_bytes"]["weights"] == 16_060_522_496
    assert found["kv_bytes"]["token of a row"] == 128 * 1024
    assert found["seconds"]["ensemble"]["token"] > found["seconds"]["one_adapter"]["token"]
    assert found["fits"]


def test_a_directory_says_what_is_not_asked_otherwise(
    tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    """`block-4` has adapters of rank 4 in the last of three layers."""
    folder = str(tiny_ensembles["block-4"])

    as_it_is = planned(tmp_path, folder, "--gpu", "cpu")["case"]
    otherwise = planned(tmp_path, folder, "--gpu", "cpu", "--members", "8", "--rank", "16", "--layers", "1-2")

    assert as_it_is["ensemble"] | {"modules": None} == {
        "members": 4,
        "rank": 4,
        "layers": [2],
        "modules": None,
        "block_size": 32,
    }
    changed = otherwise["case"]["ensemble"]
    assert (changed["members"], changed["rank"], changed["layers"]) == (8, 16, [1, 2])


def test_a_device_that_is_not_in_the_table_is_given_by_its_numbers(llama: Path, tmp_path: Path) -> None:
    numbers = ["--memory-gib", "48", "--bandwidth-gbs", "1000", "--tflops", "100"]

    device = planned(tmp_path, "--base", str(llama), *numbers)["case"]["device"]

    assert (device["memory"], device["bandwidth"], device["flops"]) == (48 * 2**30, 1e12, 1e14)
    assert device["source"].startswith("given")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "found nothing to plan: give an ensemble directory, or --base"),
        (["--base", "nowhere"], "'nowhere' is no directory, and no hub gives it"),
        (["--base", "."], "no config.json in '.'"),
        (["nowhere"], "no ensemble.json in 'nowhere'"),
        (["--base", "llama-8b", "--context", "256"], "--context is 256 and --output-tokens 256"),
        (["--base", "llama-8b", "--concurrency", "0"], "--concurrency is 0"),
        (["--base", "llama-8b", "--members", "0"], "0 members of rank 16: expected at least 1 of each"),
        (["--base", "llama-8b", "--rank", "1000"], "the engine allows 512"),
        (["--base", "llama-8b", "--layers", "30-32"], "'llama-8b' has 0 to 31"),
        (["--base", "llama-8b", "--tflops", "0"], "--tflops is 0.0: expected more than 0"),
        (["--base", "llama-8b", "--gpu", "b17"], "b17"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_planned_is_one_line(
    arguments: list[str],
    message: str,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(llama.parent)

    code = main(["plan", *arguments])

    told = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert message in told


# What to change


def advised(**changes: Any) -> str:
    room = changes.pop("room", H200)
    return "\n".join(advice(case_of(**changes), room))


def test_a_base_that_leaves_no_room_needs_another_device() -> None:
    assert "before the KV cache, of 14.9: a larger device, or a smaller base" in advised(
        device="l4", room=Room(16 * 10**9)
    )


def test_what_does_not_fit_is_told_with_what_would() -> None:
    assert "does not fit: everything else as planned, at most 10 users, or 2 members" in advised(
        device="l4", users=16, room=Room(24 * 10**9)
    )


def test_a_cpu_has_a_kv_cache_of_its_own_size() -> None:
    text = advised(device="cpu", users=16, room=Room(64 * 2**30, 4 * 2**30))

    assert "the KV cache has 4.0 GiB and needs 11.9: raise VLLM_CPU_KVCACHE_SPACE" in text


def test_prompts_are_shared_by_blocks_where_they_are_long() -> None:
    assert "activation block would hold the prompt once: 380 MiB" in advised(block_size=None)
    assert "activation block" not in advised(block_size=None, prompt=20)
    assert "activation block" not in advised(block_size=32)


def test_fewer_layers_help_a_cpu_and_not_a_gpu() -> None:
    assert "adapters in the top third of the layers: a token would take" in advised(
        base=SMOLLM2, device="cpu", users=16, prompt=32, output=16
    )
    assert "save neither time nor memory" in advised(layers="top_third")
    assert "top third" not in advised()


def test_the_cost_is_told_with_what_it_is_made_of() -> None:
    """Sixteen contexts of 1,250 tokens for 4 members: their KV cache is what is read more."""
    text = advised(users=16)

    assert "a token costs 1.47 times one adapter's at this load" in text
    assert "most of the difference being attention, memory bound" in text


def test_a_context_that_the_base_does_not_have_is_told() -> None:
    assert "the base reads 131,072 tokens at most: 131,073 need another base" in advised(
        prompt=131_072, output=1
    )


def test_one_adapter_is_not_compared_with_itself() -> None:
    assert "costs" not in advised(members=1)
