"""Models whose layers cannot be shared are told by what is in the way."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.vllm


class Layer(nn.Module):
    def forward(self, positions: Any, hidden_states: Any, residual: Any, **kwargs: Any) -> Any: ...


class LayerWithoutResidual(nn.Module):
    def forward(self, positions: Any, hidden_states: Any) -> Any: ...


def runner(
    layers: list[nn.Module] | None, device: str = "cpu", mode: str = "NONE", kinds: int = 1, wrappers: int = 1
) -> Any:
    from vllm.config.compilation import CompilationMode

    model = nn.Module()
    if layers is not None:
        model.model = nn.Module()
        model.model.layers = nn.ModuleList(layers)
    return SimpleNamespace(
        device=torch.device(device),
        vllm_config=SimpleNamespace(compilation_config=SimpleNamespace(mode=CompilationMode[mode])),
        attn_groups=[[object()] * kinds],
        lora_manager=SimpleNamespace(
            _adapter_manager=SimpleNamespace(punica_wrapper_mapping=dict(enumerate(range(wrappers))))
        ),
        model=model,
    )


@pytest.mark.parametrize(
    ("layers", "settings", "told"),
    [
        ([Layer()], {"device": "cuda"}, "not tried on 'cuda'"),
        ([Layer()], {"mode": "VLLM_COMPILE"}, "the model is compiled"),
        ([Layer()], {"kinds": 2}, "its layers attend in several ways"),
        ([Layer()], {"wrappers": 2}, "its adapters are added by several wrappers"),
        (None, {}, "Module has no list of decoder layers"),
        (
            [LayerWithoutResidual()],
            {},
            "LayerWithoutResidual takes other arguments than positions, hidden_states, residual",
        ),
        ([Layer()], {}, "Layer does not write to the KV cache once"),
    ],
    ids=["device", "compiled", "kinds of attention", "wrappers", "no layers", "arguments", "no attention"],
)
def test_model_that_cannot_share_is_told_why(
    layers: list[nn.Module] | None, settings: dict[str, Any], told: str
) -> None:
    from softspec.engine.worker.lower.layers import why_not

    reason = why_not(runner(layers, **settings))

    assert reason is not None
    assert reason.startswith(told)
