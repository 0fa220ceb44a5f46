"""The plan's memory: by hand for an 8-billion-weight Llama, and against files and vLLM's own numbers for a tiny one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from softspec.app.plan.base import base_of, read_base
from softspec.app.plan.case import Case, Load, chosen_layers
from softspec.app.plan.device import GIB
from softspec.app.plan.given import Machine, Wanted
from softspec.app.plan.given import case_of as given_case
from softspec.app.plan.memory import (
    UTILISATION,
    Room,
    adapter_weights,
    fits,
    kv_token_bytes,
    limits_of,
    memory_of,
    run_slots,
    slot_weights,
    user_blocks,
    user_kv_bytes,
)
from softspec.errors import ConfigError
from softspec.train.members.spec import resolve_spec
from tests.support.planned import LLAMA_8B, case_of
from tests.support.tiny import random_adapters, tiny_config, tiny_llama

MIB = 2**20


# By hand


def test_weights_of_an_8b_llama() -> None:
    """q and o 4096 x 4096, k and v 4096 x 1024, three of 4096 x 14336; two tables of 128256 x 4096; 65 norms."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336

    assert LLAMA_8B.layer_weights == layer == 218_103_808
    assert LLAMA_8B.weights == 32 * layer + 2 * 128256 * 4096 + 65 * 4096 == 8_030_261_248
    assert memory_of(case_of(), Room(141 * 10**9)).weights == 2 * 8_030_261_248


def test_kv_cache_of_an_8b_llama_is_128_kib_a_token_and_row() -> None:
    """Keys and values of 8 heads of 128 in 32 layers, 2 bytes each."""
    assert kv_token_bytes(case_of()) == 2 * 8 * 128 * 32 * 2 == 128 * 1024


def test_a_member_of_rank_16_is_84_mb_in_its_file_and_92_in_the_engine() -> None:
    """Rank x (in + out) of seven linears in 32 layers; slots have embeddings and vocabulary too."""
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)

    assert adapter_weights(case_of()) == 16 * widths * 32 == 41_943_040
    assert slot_weights(case_of()) == 41_943_040 + 16 * 2 * (128256 + 4096) == 46_178_304


def test_adapters_in_fewer_layers_make_smaller_files_and_slots_of_the_same_size() -> None:
    everywhere, top = case_of(), case_of(layers="top_third")

    assert adapter_weights(top) * 32 == adapter_weights(everywhere) * 11
    assert slot_weights(top) == slot_weights(everywhere)


def test_slots_have_the_next_rank_that_vllm_has_kernels_for() -> None:
    assert slot_weights(case_of(rank=17)) == slot_weights(case_of(rank=32))


@pytest.mark.parametrize(
    ("members", "block_size", "tokens"),
    [
        (1, 32, 1504),  # 47 blocks of 32
        (4, 32, 992 + 4 * 512),  # 31 shared blocks, and 508 tokens a member in 16 of its own
        (4, None, 4 * 1504),  # 94 blocks of 16 a member
    ],
    ids=["one adapter", "shared", "always"],
)
def test_a_request_holds_whole_blocks_of_kv_cache(members: int, block_size: int | None, tokens: int) -> None:
    case = case_of(members=members, block_size=block_size)

    assert user_kv_bytes(case) == tokens * 128 * 1024


def test_the_examples_of_the_deployment_document() -> None:
    """188 MiB with one adapter, 380 with a shared prompt, 752 without."""
    cases = case_of().alone, case_of(), case_of(block_size=None)

    assert [user_kv_bytes(case) / MIB for case in cases] == [188, 380, 752]


def test_run_slots_are_rows_and_one_for_a_prompt_that_is_shared() -> None:
    assert run_slots(case_of(members=4, users=8)) == 33
    assert run_slots(case_of(members=4, users=8, block_size=None)) == 32


def test_what_is_left_is_kv_cache() -> None:
    """92 % of 80 GB without weights, slots, 2,048 tokens' states and 17 rows' logits (a100), and 1 GiB."""
    case = case_of(device="a100-80gb", users=4)
    states, logits = 3 * (4096 + 14336) * 2048 * 2, 17 * 128256 * 4 * 3

    memory = memory_of(case, Room(80 * 10**9))

    expected = 73_600_000_000 - 16_060_522_496 - 4 * 92_356_608 - states - logits - GIB
    assert memory.kv == expected
    assert memory.blocks(case) == expected // (32 * 128 * 1024) - 1


def test_the_most_that_fits_fits_and_one_more_does_not() -> None:
    case, room = case_of(device="l4", users=4), Room(24 * 10**9)

    limits = limits_of(case, room)

    assert limits.users > 4
    assert fits(with_load(case, users=limits.users), room)
    assert not fits(with_load(case, users=limits.users + 1), room)
    assert fits(with_load(case, context=limits.context), room)
    assert not fits(with_load(case, context=limits.context + 32), room)


def test_a_base_that_is_larger_than_the_device_leaves_room_for_nobody() -> None:
    limits = limits_of(case_of(), Room(16 * 10**9))

    assert (limits.users, limits.context, limits.members) == (0, 0, 0)


def with_load(case: Case, **changes: int) -> Case:
    return replace(case, load=replace(case.load, **changes))


# Whatever the case


sizes = st.integers(1, 4096)


@settings(deadline=None)
@given(members=st.integers(1, 16), prompt=sizes, output=sizes, users=st.integers(1, 64))
def test_more_members_users_or_answer_never_hold_less(
    members: int, prompt: int, output: int, users: int
) -> None:
    case = case_of(members=members, prompt=prompt, output=output, users=users)
    room = Room(141 * 10**9)
    more_members = case_of(members=members + 1, prompt=prompt, output=output, users=users)
    longer = case_of(members=members, prompt=prompt, output=output + 1, users=users)

    assert user_blocks(more_members) >= user_blocks(case)
    assert user_blocks(longer) >= user_blocks(case)
    assert memory_of(more_members, room).kv <= memory_of(case, room).kv
    assert limits_of(more_members, room).users <= limits_of(case, room).users


@settings(deadline=None)
@given(members=st.integers(1, 16), prompt=sizes, output=sizes)
def test_sharing_a_prompt_is_between_one_adapter_and_all_for_themselves(
    members: int, prompt: int, output: int
) -> None:
    shared = case_of(members=members, prompt=prompt, output=output)

    assert (
        user_blocks(shared.alone) <= user_blocks(shared) <= members * user_blocks(shared.alone) + members - 1
    )


@settings(deadline=None)
@given(prompt=sizes, output=sizes, users=st.integers(1, 64))
def test_an_ensemble_of_one_is_one_adapter(prompt: int, output: int, users: int) -> None:
    case, room = case_of(members=1, prompt=prompt, output=output, users=users), Room(141 * 10**9)

    assert memory_of(case, room) == memory_of(case.alone, room)
    assert user_kv_bytes(case) == user_kv_bytes(case.alone)


# What files say


def test_a_tiny_ensemble_is_planned_as_large_as_its_files(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    folder = random_adapters(base, tmp_path / "my", num_members=2, rank=8, layers=(1, 2))

    case = given_case(folder, None, Wanted(), Load(64, 32, 1), Machine("cpu"))

    assert memory_of(case, Room(GIB)).weights == tensor_bytes(base / "model.safetensors")
    assert 4 * adapter_weights(case) == tensor_bytes(folder / "member-0" / "adapter_model.safetensors")
    assert (case.ensemble.members, case.ensemble.layers, case.ensemble.block_size) == (2, (1, 2), None)


def tensor_bytes(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  not a mapping


@pytest.mark.parametrize("count", [1, 2, 3, 4, 30, 32])
@pytest.mark.parametrize("wanted", ["all", "top_third"])
def test_layers_are_those_of_training(wanted: str, count: int) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_config(layers=count))

    assert chosen_layers(wanted, count) == resolve_spec(model, 1, 1, "all-linear", wanted).layers


CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}


def test_what_a_config_leaves_out_is_as_transformers_reads_it() -> None:
    base = base_of("x", CONFIG)

    assert (base.kv_heads, base.head_size, base.tied, base.longest) == (4, 16, True, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None in its config.json, expected a number of at least 1"),
        ({"num_experts": 8}, "a mixture of experts"),
        ({"quantization_config": {"bits": 4}}, "a quantised base"),
        ({"layer_types": ["conv", "full_attention"]}, "layers of type conv"),
    ],
    ids=["missing", "experts", "quantised", "hybrid"],
)
def test_a_base_of_another_kind_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        base_of("x", {**CONFIG, **change})


def test_a_base_may_be_named_by_its_config_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))

    assert replace(read_base(str(file)), name="") == replace(read_base(str(tmp_path)), name="")


# What vLLM says


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::FutureWarning:vllm.*", "ignore::DeprecationWarning:xgrammar.*")
def test_a_real_engine_allocates_what_is_planned(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> None:
    """Slots of adapters, pages of KV cache, and the blocks of a request at its end."""
    from vllm import SamplingParams

    from tests.stress.engine import InProcessEngine
    from tests.support.parity import prompt

    folder = tiny_ensembles["block-4"]
    engine = InProcessEngine(tiny_base, [folder], max_model_len=256, num_gpu_blocks_override=64)
    case = given_case(folder, None, Wanted(rank=16), Load(101 + 30, 30, 1), Machine("cpu"))
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = [pool.get_num_free_blocks()]

    engine.submit("0", "block-4", prompt(101), SamplingParams(max_tokens=30, ignore_eos=True))
    while engine.scheduler.has_unfinished_requests():
        engine.step()
        free.append(pool.get_num_free_blocks())
    modules = engine.runner.lora_manager._adapter_manager.modules.values()
    slots = sum(
        tensor.nbytes
        for module in modules
        for stack in (module.lora_a_stacked, module.lora_b_stacked)
        for tensor in (stack if isinstance(stack, tuple) else (stack,))
    )
    pages = [spec.page_size_bytes for spec in engine.runner.get_kv_cache_spec().values()]
    engine.close()

    assert slots == memory_of(case, Room(GIB)).slots
    assert sum(pages) == 32 * kv_token_bytes(case)
    assert free[0] - min(free) == user_blocks(case) == 3 + 4 * 2


@pytest.mark.vllm
def test_vllm_uses_the_share_of_a_device_that_is_planned() -> None:
    from vllm.config import CacheConfig

    assert CacheConfig().gpu_memory_utilization == UTILISATION
