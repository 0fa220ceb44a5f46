"""A base that no device holds whole: each process has a part of every decoder layer, and all of one at a time (FSDP).

In: the base on the disk of the main process. Out: the same model in every process, whose numbers are those of the whole
one. Embeddings, head and norms are whole everywhere; adapters, which come later, are too. Knows no adapters.

A layer runs in all processes or in none, as each has a part that the others need: see `Members.rounds`.
"""

import torch
from torch import nn
from torch.distributed import broadcast
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from softspec.errors import ConfigError
from softspec.train.members.base import load_base, load_skeleton
from softspec.train.members.spec import decoder_layers
from softspec.train.processes import Processes


def check_shareable(processes: Processes) -> None:
    """Raise unless these processes can share a base.

    Raises:
        ConfigError: there is only one, or the launcher asks for mixed precision.
    """
    if processes.count == 1:
        raise ConfigError(
            "shard_base shares the base out among processes, and there is only one: start several with torchrun or "
            "accelerate launch, or leave it out"
        )
    if processes.mixed_precision:
        raise ConfigError(
            f"shard_base and --mixed_precision {processes.mixed_precision}: every layer would stay in memory in that "
            f"precision; say dtype: bfloat16 and launch without it"
        )


def load_shared_base(
    base_model: str, revision: str | None, dtype: str, processes: Processes
) -> PreTrainedModel:
    """The base, its layers shared out among the processes; only the main one reads its weights, into main memory.

    Raises:
        ConfigError: as `load_base`, or `check_shareable`.
    """
    check_shareable(processes)
    model = load_skeleton(base_model, revision)
    if dtype == "auto":
        dtype = "bfloat16" if processes.device.type == "cuda" else "float32"
    whole = load_base(base_model, revision, dtype, torch.device("cpu")) if processes.is_main else None
    _take_precisions(model, processes.of_main(_precisions(whole) if whole else {}))
    _share_out(model, processes)
    model.to_empty(device=processes.device)
    model.tie_weights()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole.state_dict() if whole else {}, options=options)
    _send_buffers(model, whole)
    return model


def local_bytes(model: nn.Module) -> int:
    """What this process has of a model's weights."""
    parts = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in model.parameters())
    return sum(part.nbytes for part in parts)


def _share_out(model: PreTrainedModel, processes: Processes) -> None:
    """Give each process its part of the layers; the decoder's own hooks let one layer come while another runs."""
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    layers = decoder_layers(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    within = set(layers.parameters())
    fully_shard(model.get_decoder(), mesh=mesh, ignored_params=set(model.parameters()) - within)


def _precisions(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _take_precisions(skeleton: nn.Module, precisions: dict[str, torch.dtype]) -> None:
    """Some models keep some weights in another precision than the rest; the main process knows which."""
    for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
        tensor.data = tensor.data.to(precisions[name])


def _send_buffers(model: nn.Module, whole: nn.Module | None) -> None:
    """Buffers that no file has, such as the frequencies of rotary positions."""
    known = dict(whole.named_buffers()) if whole else {}
    for name, buffer in model.named_buffers():
        if known:
            buffer.copy_(known[name])
        broadcast(buffer, src=0)
