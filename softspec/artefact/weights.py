"""The base's weights, whole or refused: nothing that transformers would make up, and one line for what it cannot read.

In: a checkpoint directory or hub id. Out: a transformers model. Knows nothing of adapters, devices or training.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from softspec.artefact.fingerprint import deciding_files
from softspec.errors import ConfigError

LFS_POINTER = b"version https://git-lfs.github.com/spec"
LONGEST_REASON = 300


def load_whole(base_model: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """The base with all of its weights, on the CPU.

    Raises:
        ConfigError: there is no model, its files cannot be read, or they lack weights, which transformers would draw at
            random.
    """
    try:
        with _without_its_report():
            model, found = AutoModelForCausalLM.from_pretrained(
                base_model, revision=revision, dtype=dtype, output_loading_info=True
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of transformers, safetensors, pickle or the checkpoint's own configuration
        raise cannot_load(base_model, revision, error) from error
    if getattr(model, "peft_config", None):
        raise ConfigError(
            f"base_model '{base_model}' has an adapter of its own (adapter_config.json), which nobody would serve: "
            "merge it into the weights or remove it"
        )
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if lacking:
        unknown = sorted(found["unexpected_keys"])
        instead = f" (they have '{unknown[0]}', which it does not know)" if unknown else ""
        raise ConfigError(
            f"base_model '{base_model}': its files lack {len(lacking)} of the model's weights, first "
            f"'{min(lacking)}'{instead}; copy or convert the whole model again"
        )
    return model


def cannot_load(base_model: str, revision: str | None, error: Exception) -> ConfigError:
    """The error for a base of which something cannot be read, in one line that names the file where it can."""
    pointer = _first_pointer(base_model, revision)
    if pointer:
        return ConfigError(
            f"cannot load base_model '{base_model}': '{pointer.name}' is a pointer of Git LFS and not the file itself; "
            "fetch it with: git lfs pull"
        )
    said = str(error) or "it says no more"
    if not isinstance(error, OSError | ValueError):
        said = f"{type(error).__name__}: {said}"
    return ConfigError(
        f"cannot load base_model '{base_model}': {textwrap.shorten(said, LONGEST_REASON, placeholder=' ...')}"
    )


@contextmanager
def _without_its_report() -> Iterator[None]:
    """Let transformers keep its table of missing weights for itself: the caller says in one line what matters of it."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_pointer(base_model: str, revision: str | None) -> Path | None:
    """The first of the base's files that Git has not fetched."""
    try:
        files = deciding_files(base_model, revision)
    except ConfigError:
        return None
    for path in sorted(files):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return path
    return None
