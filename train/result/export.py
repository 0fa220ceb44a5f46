"""Export: members become an ensemble directory of ordinary PEFT adapters.

In: `Members` and a `Manifest`. Out: a directory that appears whole or not at all, checked through stock PEFT.
The only file here that imports peft.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from softspec.artefact.activation import Activation, shared_tokens
from softspec.artefact.manifest import Manifest, member_dir, save_manifest
from softspec.errors import StorageError, TrainingError
from softspec.train.data.units import Example
from softspec.train.members.likelihood import collate, member_loglik
from softspec.train.members.load import ADAPTER_WEIGHTS
from softspec.train.members.members import Members
from softspec.train.members.spec import LoraSpec


def write_ensemble(directory: Path, members: Members, manifest: Manifest) -> None:
    """Write all members and the manifest into a new directory."""
    for member in range(members.num_members):
        folder = member_dir(directory, member)
        folder.mkdir(parents=True)
        save_file(members.adapter_state(member), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        lora_config(members.spec, manifest.base_model.path).save_pretrained(str(folder))
    save_manifest(directory, manifest)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Whatever the disk refuses here becomes one line.

    Raises:
        StorageError: something cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"cannot write '{path}': {reason or error} ({free / 1e6:.1f} MB are free); make room and go on with "
            "--resume"
        ) from error


def publish(staged: Path, output_dir: Path) -> None:
    """Move a finished directory into place; an older one there is replaced, and stays where that fails."""
    if not output_dir.exists():
        os.replace(staged, output_dir)
        return
    retired = _unused(output_dir.with_name(f".{output_dir.name}.retired-{os.getpid()}"))
    os.replace(output_dir, retired)
    try:
        os.replace(staged, output_dir)
    except BaseException:
        os.replace(retired, output_dir)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _unused(path: Path) -> Path:
    """The path, or one like it, where nothing is."""
    candidates = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())


def check_reload(
    directory: Path,
    members: Members,
    examples: Sequence[Example],
    activation: Activation,
) -> float:
    """Score examples in training and through stock PEFT from disk; returns the largest gap, nats, relative above 1.

    Raises:
        TrainingError: they differ by more than float32 (or the base's lower precision) explains.
    """
    device = next(members.model.parameters()).device
    with torch.no_grad():
        trained = member_loglik(members, collate(examples, activation, device)).cpu()
    with members.removed() as base:
        reloaded = peft_loglik(directory, base, members.num_members, examples, activation)
    gap = ((trained - reloaded).abs() / trained.abs().clamp_min(1)).max().item()
    limit = 1e-4 if members.model.dtype == torch.float32 else 3e-2
    if not gap <= limit:
        raise TrainingError(
            f"adapters reloaded from '{directory}' differ by {gap:.2g} nats, expected {limit:g}"
        )
    return gap


@torch.no_grad()
def peft_loglik(
    directory: Path,
    base: PreTrainedModel,
    num_members: int,
    examples: Sequence[Example],
    activation: Activation,
) -> Tensor:
    """Log-likelihoods (K, B), nats, float64, by the slow road: stock PEFT, one member and one example at a time."""
    names = [f"member-{member}" for member in range(num_members)]
    device = str(base.device)
    first = str(member_dir(directory, 0))
    model = PeftModel.from_pretrained(base, first, adapter_name=names[0], torch_device=device)
    for member, name in enumerate(names[1:], start=1):
        model.load_adapter(str(member_dir(directory, member)), adapter_name=name, torch_device=device)
    table = []
    for name in names:
        model.set_adapter(name)
        logprobs = [peft_completion_logprobs(model.eval(), example, activation) for example in examples]
        table.append([part.sum().item() for part in logprobs])
    model.unload()
    return torch.tensor(table, dtype=torch.float64)


def peft_completion_logprobs(model: PeftModel, example: Example, activation: Activation) -> Tensor:
    """Log-probabilities of the completion's tokens under PEFT's active adapter, (T,), nats, float64."""
    ids = torch.tensor([example.prompt_ids + example.completion_ids], device=model.device)
    prompt = len(example.prompt_ids)
    shared = shared_tokens(activation.block_size, prompt)
    cache = None
    if shared:
        with torch.no_grad(), model.disable_adapter():
            cache = model(input_ids=ids[:, :shared], use_cache=True).past_key_values
    logits = model(input_ids=ids[:, shared:-1], past_key_values=cache).logits[0, prompt - 1 - shared :]
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(1, ids[0, prompt:, None])[:, 0].double()


def lora_config(spec: LoraSpec, base_model: str) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.lora_alpha,
        target_modules=list(spec.target_modules),
        layers_to_transform=list(spec.layers),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
