"""The CPU's LoRA computation against a slow float64 oracle, row by row."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.vllm

SLOTS, IN = 4, 24
LAYOUT = [101, 102, 103, 104]
BASE = 0
"""vLLM's adapter number of a row that wears none."""


def wrapper() -> Any:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from softspec.engine.worker.cpu_lora import CpuLora

    return CpuLora(PunicaWrapperCPU(256, 64, torch.device("cpu")))


def step(lora: Any, adapters: list[int], samples: list[int] | None = None) -> None:
    """Tell the wrapper which adapter each row wears."""
    from vllm.lora.layers import LoRAMapping

    mapping = LoRAMapping(tuple(adapters), tuple(samples or adapters), is_prefill=True)
    lora.update_metadata(mapping, LAYOUT, SLOTS + 1, 1000)


def stacked(outs: tuple[int, ...], rank: int, seed: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    down = tuple(torch.randn(SLOTS, 1, rank, IN, generator=generator) for _ in outs)
    up = tuple(torch.randn(SLOTS, 1, out, rank, generator=generator) for out in outs)
    return down, up


def expected(
    y: Tensor, x: Tensor, down: tuple[Tensor, ...], up: tuple[Tensor, ...], adapters: list[int]
) -> Tensor:
    rows = []
    for row, adapter in enumerate(adapters):
        out = y[row].double()
        if adapter != BASE:
            slot = LAYOUT.index(adapter)
            deltas = [
                b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double())
                for a, b in zip(down, up, strict=True)
            ]
            out = out + torch.cat(deltas)
        rows.append(out)
    return torch.stack(rows)


BATCHES = {
    "one row": [102],
    "one of each": LAYOUT,
    "lockstep groups and base rows": [101, 102, BASE, 103, 101, 102, 103, BASE],
    "base only": [BASE] * 3,
    "a prompt": [103] * 50,
    "prompts and decodes": [101] * 40 + [BASE] * 30 + [104, 102, 101] + [102] * 45 + [BASE],
    "many scattered rows": [101, 104] * 40,
}


@pytest.mark.parametrize("adapters", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("outs", [(8,), (16, 4, 4)], ids=["one slice", "three slices"])
@pytest.mark.parametrize("rank", [1, 6, 8])
def test_every_row_gets_its_own_adapter_and_no_other(
    adapters: list[int], outs: tuple[int, ...], rank: int
) -> None:
    lora = wrapper()
    down, up = stacked(outs, rank)
    x, y = torch.randn(len(adapters), IN), torch.randn(len(adapters), sum(outs))
    wanted = expected(y, x, down, up, adapters)

    step(lora, adapters)
    lora.add_lora_linear(y, x, down, up, 1.0, outs)

    torch.testing.assert_close(y.double(), wanted, atol=1e-4, rtol=1e-5)


def test_only_some_of_a_step_s_tokens_may_come() -> None:
    """As in layers that are computed once for several rows; then all come again."""
    lora = wrapper()
    adapters = [101, BASE, 103, 102, 101]
    down, up = stacked((16, 4, 4), 6)
    step(lora, adapters)

    for tokens in (torch.tensor([0, 2, 3]), torch.tensor([1]), None):
        lora.narrow(tokens)
        worn = adapters if tokens is None else [adapters[token] for token in tokens.tolist()]
        x, y = torch.randn(len(worn), IN), torch.randn(len(worn), 24)
        wanted = expected(y, x, down, up, worn)
        lora.add_lora_linear(y, x, down, up, 1.0, (16, 4, 4))
        torch.testing.assert_close(y.double(), wanted, atol=1e-4, rtol=1e-5)


def test_half_precision_models_add_in_float32() -> None:
    lora = wrapper()
    adapters = [101, BASE, 104]
    down, up = stacked((8,), 4)
    x, y = torch.randn(3, IN).bfloat16(), torch.randn(3, 8).bfloat16()
    wanted = expected(y, x, down, up, adapters)

    step(lora, adapters)
    lora.add_lora_linear(y, x, down, up, 1.0, (8,))

    torch.testing.assert_close(y, wanted.bfloat16(), atol=0.25, rtol=0.01)


def test_weights_that_change_with_the_slots_are_read_again() -> None:
    lora = wrapper()
    down, up = stacked((8,), 4)
    x = torch.randn(1, IN)
    step(lora, [101])
    lora.add_lora_linear(torch.zeros(1, 8), x, down, up, 1.0, (8,))

    up[0].mul_(2)  # vLLM writes a new adapter into a slot and tells of it by the next step's layout
    lora.update_metadata(
        SimpleNamespace(index_mapping=(201,), prompt_mapping=(201,), is_prefill=True),
        [201, 102, 103, 104],
        5,
        1000,
    )
    y = torch.zeros(1, 8)
    lora.add_lora_linear(y, x, down, up, 1.0, (8,))

    torch.testing.assert_close(
        y.double(), expected(torch.zeros(1, 8), x, down, up, [101]), atol=1e-4, rtol=1e-5
    )


def test_vocabulary_layer_uses_the_rows_that_sample() -> None:
    lora = wrapper()
    down, up = stacked((40,), 4)
    x, y = torch.randn(2, IN), torch.zeros(2, 40)

    step(lora, [101] * 5 + [BASE] * 5, samples=[101, BASE])
    lora.add_lora_logits(y, x, down[0], up[0], 1.0)

    torch.testing.assert_close(
        y.double(), expected(torch.zeros(2, 40), x, down, up, [101, BASE]), atol=1e-4, rtol=1e-5
    )


def test_embedding_adds_what_a_token_has_in_its_own_adapter() -> None:
    lora = wrapper()
    _, up = stacked((12,), 4)
    ranks, y = torch.randn(3, 4), torch.zeros(3, 12)

    step(lora, [102, BASE, 101])
    lora.add_lora_embedding(y, ranks, up[0], add_input=True)

    assert not y[1].any()
    torch.testing.assert_close(y[0], up[0][1, 0] @ ranks[0])
    torch.testing.assert_close(y[2], up[0][0, 0] @ ranks[2])
