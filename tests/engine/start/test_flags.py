"""vLLM's flags and variables for ensembles, from manifests and facts of the machine alone."""

import math

import pytest

from softspec.artefact.activation import AlwaysActivation, BlockActivation
from softspec.artefact.manifest import BaseModelRef, Manifest
from softspec.engine.start.flags import (
    cpu_environment,
    cpu_flags,
    engine_flags,
    engine_rank,
    refuse_listening_flags,
    without_given,
)
from softspec.errors import ConfigError


def manifest(num_members: int, block_size: int | None = None) -> Manifest:
    return Manifest(
        name="jurists",
        base_model=BaseModelRef(path="base"),
        num_members=num_members,
        log_weights=(-math.log(num_members),) * num_members,
        renyi_alpha=0.8,
        activation=AlwaysActivation() if block_size is None else BlockActivation(block_size=block_size),
    )


def value(flags: list[str], name: str) -> str:
    return flags[flags.index(name) + 1]


def test_engine_has_room_for_all_members_and_columns_for_the_largest_ensemble() -> None:
    flags = engine_flags([manifest(2), manifest(5)], rank=9, num_top=20)

    assert value(flags, "--max-loras") == "7"
    assert value(flags, "--max-lora-rank") == "16"
    assert value(flags, "--max-logprobs") == str(4 + 5 + 128 * 5)


def test_kv_blocks_end_wherever_an_ensembles_adapters_may_begin() -> None:
    blocks = [manifest(2, size) for size in (48, 32)]

    assert value(engine_flags([*blocks, manifest(2)], 8, 20), "--block-size") == "16"
    assert "--block-size" not in engine_flags([manifest(2)], 8, 20)


def test_members_larger_than_the_engine_allows_are_refused() -> None:
    assert engine_rank(512) == 512
    with pytest.raises(ConfigError, match="rank 513 but the engine allows 512"):
        engine_rank(513)


@pytest.mark.parametrize("has_compiler", [True, False])
def test_model_is_compiled_for_a_cpu_only_where_a_compiler_is(has_compiler: bool) -> None:
    assert ("--enforce-eager" in cpu_flags(has_compiler)) is not has_compiler


def test_flags_that_the_user_gives_are_not_given_twice() -> None:
    ours = ["--enable-lora", "--max-loras", "4", "--dtype", "float32", "--enforce-eager"]

    kept = without_given(ours, ["--max_loras=8", "--enforce-eager", "--port", "--dtype-is-no-flag"])

    assert kept == ["--enable-lora", "--dtype", "float32"]


def test_variables_of_the_user_win() -> None:
    chosen = cpu_environment({"VLLM_CPU_KVCACHE_SPACE": "40"}, num_cores=2)

    assert chosen["VLLM_CPU_KVCACHE_SPACE"] == "40"
    assert chosen["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert "VLLM_CPU_NUM_OF_RESERVED_CPU" not in cpu_environment({}, num_cores=3)


@pytest.mark.parametrize("flag", ["--port=8000", "--ssl_keyfile", "--uds", "--h11-max-header-count"])
def test_flags_of_an_http_server_that_does_not_run_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"'{flag.partition('=')[0].replace('_', '-')}' is for vLLM's own"):
        refuse_listening_flags(["--max-num-seqs", "8", flag, "1"])


def test_flags_of_the_engine_and_of_its_routes_need_no_http_server() -> None:
    refuse_listening_flags(["--max-num-seqs", "8", "--chat-template", "chat.jinja", "--api-key", "key"])
