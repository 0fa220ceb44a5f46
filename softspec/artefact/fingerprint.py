"""The identity of the frozen base: a fingerprint of all its files that decide token ids and weights.

In: a checkpoint directory or hub id, and a revision. Out: a digest, and the files behind it. Loads no weights.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transformers.utils.hub import cached_file, cached_files

from softspec.errors import ConfigError

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tekken.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
)
TEMPLATES = ("chat_template*", "additional_chat_templates/*")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
INCIDENTAL = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "is_local",
    "local_files_only",
}
"""Keys of `config.json` and `tokenizer_config.json` that decide neither ids nor weights."""
WHOLE_BYTES = 1 << 30
BLOCK_BYTES, STRIDE_BYTES, TENSOR_BYTES = 1 << 16, 1 << 21, 1 << 12
MOST_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""


def fingerprint(base_model: str, revision: str | None = None) -> str:
    """A digest of all that decides a base's token ids and weights: 64 hexadecimal digits.

    It is one of contents and not of places: a copied or moved directory has that of the original, and so has the hub's
    cache. Covered are `config.json` without the keys that say where it comes from and how it is run (`INCIDENTAL`), all
    files of the tokenizer and its chat templates, the end tokens of `generation_config.json`, and the weights that
    transformers would load. Other files, such as a README, are not.

    Files of weights up to `WHOLE_BYTES` are read whole. Of a larger one are read its size, its first and last
    `BLOCK_BYTES`, as many in every `STRIDE_BYTES`, and the header and the first `TENSOR_BYTES` of every tensor of
    safetensors: training that moves any whole tensor is noticed, a few changed numbers in the midst of one may not be.

    Args:
        base_model: a directory, or a hub id, of which files that are not in the cache are fetched.
    Raises:
        ConfigError: there is no base.
    """
    folder = _folder(base_model, revision)
    digest = hashlib.sha256()
    for path in sorted(_deciding(folder)):
        digest.update(f"{path.relative_to(folder).as_posix()} {_content(path)}\n".encode())
    return digest.hexdigest()


def deciding_files(base_model: str, revision: str | None = None) -> set[Path]:
    """The files that decide a base's ids and weights; those of the hub are in its cache.

    Raises:
        ConfigError: there is no base.
    """
    return _deciding(_folder(base_model, revision))


def has_tokenizer(base_model: str, revision: str | None = None) -> bool:
    """Whether a base has a file of a tokenizer.

    Raises:
        ConfigError: there is no base.
    """
    folder = _folder(base_model, revision)
    found = {path.name for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return bool(found - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})


def _folder(base_model: str, revision: str | None) -> Path:
    """The base's directory, or that of the hub's cache, with all that a fingerprint needs in it."""
    try:
        config = cached_file(base_model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"cannot load base_model '{base_model}': {reason}") from error
    if config is None:
        raise ConfigError(f"base_model '{base_model}' has no config.json; expected a checkpoint")
    folder = Path(config).parent
    if not Path(base_model).is_dir():
        _fetch(base_model, revision, [GENERATION_CONFIG, *TOKENIZER_FILES, *TEMPLATES, *SAFETENSORS])
        if not any((folder / name).is_file() for name in SAFETENSORS):
            _fetch(base_model, revision, PICKLES)
        _fetch(base_model, revision, [path.name for path in _weights(folder)])
    return folder


def _fetch(base_model: str, revision: str | None, patterns: Sequence[str]) -> None:
    """Bring the files of the hub that match into its cache, as far as they are there and within reach."""
    if patterns:
        cached_files(
            base_model,
            list(patterns),
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )


def _deciding(folder: Path) -> set[Path]:
    """The files of a base's directory that decide its ids and weights."""
    found = {path for pattern in (*TOKENIZER_FILES, *TEMPLATES) for path in folder.glob(pattern)}
    found |= {folder / "config.json", folder / GENERATION_CONFIG, *_weights(folder)}
    return {path for path in found if path.is_file()}


def _weights(folder: Path) -> set[Path]:
    """The files of weights that transformers would load, whether they are there or not; all if none has its name."""
    for whole, index in (SAFETENSORS, PICKLES):
        named = {folder / whole} if (folder / whole).is_file() else set()
        if (folder / index).is_file():
            shards = _json(folder / index).get("weight_map", {})
            named |= {folder / index, *(folder / str(name) for name in shards.values())}
        if named:
            return named
    return set(folder.glob("*.safetensors")) or set(folder.glob("*.bin"))


def _content(path: Path) -> str:
    """The digest of what one file says, as far as it matters."""
    if path.name == GENERATION_CONFIG:
        ends = _json(path).get("eos_token_id")
        return _digest(json.dumps(sorted(ends) if isinstance(ends, list) else [ends]).encode())
    if path.name in ("config.json", "tokenizer_config.json"):
        return _digest(json.dumps(_essential(_json(path)), sort_keys=True).encode())
    if path.suffix in (".safetensors", ".bin") and path.stat().st_size > WHOLE_BYTES:
        return _sampled(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(path: Path) -> str:
    """The digest of a large file of weights, from parts of it."""
    size = path.stat().st_size
    parts = [(start, BLOCK_BYTES) for start in (*range(0, size, STRIDE_BYTES), size - BLOCK_BYTES)]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            header = _header(file)
            digest.update(header)
            parts += [(start, TENSOR_BYTES) for start in _tensor_starts(header)]
        for start, length in sorted(parts):
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def _header(file: BinaryIO) -> bytes:
    """What a safetensors file says of its tensors; nothing if it is none."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= MOST_HEADER_BYTES else b""


def _tensor_starts(header: bytes) -> list[int]:
    try:
        tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
        return [8 + len(header) + tensor["data_offsets"][0] for tensor in tensors.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # no safetensors, whatever it is called: loading will say so


def _essential(value: Any) -> Any:
    """The JSON without incidental keys, also those of inner objects."""
    if isinstance(value, dict):
        return {key: _essential(inner) for key, inner in value.items() if key not in INCIDENTAL}
    return [_essential(inner) for inner in value] if isinstance(value, list) else value


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON: {error}; copy the base again") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"'{path}' has {type(content).__name__}, expected a JSON object; copy the base again"
        )
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
