"""The members' layer against plain autograd: outputs, gradients, pairs left out, and mixed precision."""

import pytest
import torch
from torch import Tensor, nn

from softspec.train.members.linear import Dropout, MemberLinear, Run, Selection, _own_parts
from softspec.train.members.pairs import Pairs

CPU = torch.device("cpu")
SCALING = 2.0
PAIRS = {
    "every pair": Pairs.all_pairs(3, 2, CPU),
    "some": Pairs(torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 2]), 2),
}


def layer_and_selection(
    bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[MemberLinear, Selection]:
    """Three members of rank 2 on a frozen layer from 5 to 4 features."""
    torch.manual_seed(0)
    selection = Selection()
    layer = MemberLinear(nn.Linear(5, 4, bias=bias).requires_grad_(False), 3, 2, SCALING, selection)
    for weight in (layer.lora_a, layer.lora_b):
        nn.init.normal_(weight)
    return layer.to(dtype), selection


def by_autograd(layer: MemberLinear, inputs: Tensor, pairs: Pairs) -> Tensor:
    """Pair by pair, as the definition says."""
    outputs = [
        layer.base(states) + SCALING * states @ layer.lora_a[member].T @ layer.lora_b[member].T
        for states, member in zip(inputs, pairs.members, strict=True)
    ]
    return torch.stack(outputs)


def gradients(outputs: Tensor, pull: Tensor, layer: MemberLinear, inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of inputs and adapters, for this gradient (R, T, out) of the outputs."""
    return torch.autograd.grad(outputs, (inputs, layer.lora_a, layer.lora_b), pull)


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("pulling", [None, [0, 3], [2], []], ids=str)
def test_gradients_are_those_of_autograd_whatever_rows_pull(
    pairs: Pairs, bias: bool, pulling: list[int] | None
) -> None:
    layer, selection = layer_and_selection(bias)
    inputs = torch.randn(len(pairs.members), 3, 5, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(len(pairs.members), 3, 4, dtype=torch.float64)
    if pulling is not None:
        pull[[pair for pair in range(len(pull)) if pair not in pulling]] = 0
    run = Run(pairs)

    with selection.of(run):
        outputs = layer(inputs)
    top = outputs + 0
    run.watch(top)
    found = gradients(top, pull, layer, inputs)

    expected_outputs = by_autograd(layer, inputs, pairs)
    torch.testing.assert_close(outputs, expected_outputs)
    torch.testing.assert_close(found, gradients(expected_outputs, pull, layer, inputs))
    assert (None if run.pulling is None else run.pulling.tolist()) == (pulling or None)


def test_mixed_precision_computes_in_bfloat16_with_gradients_in_float32() -> None:
    layer, selection = layer_and_selection(dtype=torch.float32)
    pairs = PAIRS["some"]
    inputs = torch.randn(4, 3, 5, requires_grad=True)
    pull = torch.randn(4, 3, 4)

    with torch.autocast("cpu", torch.bfloat16), selection.of(Run(pairs)):
        outputs = layer(inputs)
    found = gradients(outputs, pull.bfloat16(), layer, inputs)

    assert outputs.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found} == {torch.float32}
    expected = gradients(by_autograd(layer, inputs, pairs), pull, layer, inputs)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_no_selected_rows_are_the_base() -> None:
    layer, _ = layer_and_selection()
    inputs = torch.randn(2, 3, 5, dtype=torch.float64)

    assert torch.equal(layer(inputs), layer.base(inputs))


def test_states_that_do_not_lie_in_a_row_get_their_adapters_too() -> None:
    """As a slice or a transposed tensor does; whatever is written to must not be a copy."""
    layer, selection = layer_and_selection()
    pairs = PAIRS["every pair"]
    inputs = torch.randn(5, 3, 6, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    pull = torch.randn(4, 3, 6, dtype=torch.float64).permute(2, 1, 0)

    with selection.of(Run(pairs)):
        outputs = layer(inputs)

    expected = by_autograd(layer, inputs, pairs)
    torch.testing.assert_close(outputs, expected)
    found = gradients(outputs, pull, layer, inputs)
    torch.testing.assert_close(found, gradients(expected, pull, layer, inputs))


def test_writing_to_a_copy_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        _own_parts(torch.zeros(4, 3, 6).permute(2, 1, 0), torch.zeros(3, 1, 1))


def test_dropout_leaves_inputs_of_a_out_for_all_tokens_of_a_pair() -> None:
    """The layer is then one whose A lacks these columns and has the others the larger, pair by pair."""
    layer, selection = layer_and_selection()
    pairs = Pairs(torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 2]), 2)
    inputs = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(4, 3, 4, dtype=torch.float64)
    run = Run(pairs, dropout=Dropout(0.4, torch.Generator().manual_seed(3)))

    with selection.of(run):
        outputs, again = layer(inputs), layer(inputs)
    found = gradients(outputs, pull, layer, inputs)

    masks = run.masks[layer]
    expected = torch.stack(
        [
            layer.base(states) + SCALING * states @ (layer.lora_a[member] * mask).T @ layer.lora_b[member].T
            for states, member, mask in zip(inputs, pairs.members, masks, strict=True)
        ]
    )
    assert {round(value, 6) for value in masks.unique().tolist()} == {0, round(1 / 0.6, 6)}
    assert masks.shape == (4, 1, 5)
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(outputs, again), "a pass that runs a layer twice has one mask"
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(found, gradients(expected, pull, layer, inputs))


def test_dropout_changes_nothing_on_average() -> None:
    mask = Dropout(0.25, torch.Generator().manual_seed(0)).mask(4000, 10)

    assert mask.mean().item() == pytest.approx(1, abs=0.01)
    assert (mask == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
