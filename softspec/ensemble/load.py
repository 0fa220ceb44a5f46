"""From an ensemble directory to an `Ensemble`.

In: a directory, its base, and how to compute. Out: an `Ensemble`, or an error before anything dear is done.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from softspec.artefact.manifest import Manifest, load_manifest
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError
from softspec.server.ops.served_base import require_base_of

BACKENDS = ("vllm", "transformers")


def load(
    path: str | Path,
    *,
    backend: Literal["vllm", "transformers"] = "vllm",
    base: str | Path | None = None,
    base_unchecked: bool = False,
    vllm_args: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
) -> Ensemble:
    """Load an ensemble, to be asked from this process.

    Args:
        path: what `softspec train` wrote.
        backend: `vllm`, the engine that serves, in a process of its own; or `transformers`, the reference, in this one.
            Both give the same numbers.
        base: the base's directory or hub id; by default the one that the ensemble names.
        base_unchecked: take a base that is not the one of the training, such as a quantised one.
        vllm_args: flags of vLLM's engine, such as `["--max-model-len", "2048"]`.
        dtype: of transformers' weights: by default `bfloat16` on a GPU and `float32` on a CPU.
        device: where transformers computes, such as `cuda:1`: by default the GPU if there is one.
    Raises:
        ManifestError: no ensemble there, or it does not fit its base.
        ConfigError: the base is missing or another one than that of the training, or an option is not the backend's.
        EngineError: the engine does not start.
    """
    _require_own_options(backend, vllm_args, dtype, device)
    directory = Path(path).expanduser().resolve()
    manifest = load_manifest(directory)
    found, revision = base_named(manifest, base)
    if backend == "transformers":
        _require_base_of(directory, manifest, found, base_unchecked)
        texts = Texts(found, revision)
        # Imported here, as both backends take seconds, and need what the other does not.
        from softspec.ensemble.stacked.backend import StackedBackend

        stacked = StackedBackend(directory, found, texts, revision, dtype or "auto", device)
        return Ensemble(manifest, texts, stacked)
    from softspec.ensemble.served.start import start_engine
    from softspec.server.ops.launch import server_arguments

    named = None if base is None else found
    arguments = server_arguments({directory: manifest}, named, vllm_args, base_unchecked)
    _require_base_of(directory, manifest, found, base_unchecked)
    texts = Texts(found, revision)
    served = start_engine(directory, arguments)
    texts.context = served.engine.max_model_len
    return Ensemble(manifest, texts, served)


def _require_base_of(directory: Path, manifest: Manifest, base: str, unchecked: bool) -> None:
    """Raise unless the ensemble is of this base; the files of a hub id may not be here yet."""
    if Path(base).is_dir():
        require_base_of({directory: manifest}, Path(base), unchecked)


def base_named(manifest: Manifest, base: str | Path | None) -> tuple[str, str | None]:
    """The base that is meant, a directory or hub id, and its revision."""
    if base is not None:
        return os.path.expanduser(base), None
    return manifest.base_model.path, manifest.base_model.revision


def _require_own_options(
    backend: str, vllm_args: Sequence[str], dtype: str | None, device: str | None
) -> None:
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}: expected 'vllm' or 'transformers'")
    if isinstance(vllm_args, str):
        raise ConfigError(f"vllm_args is one text: expected a list, such as {vllm_args.split()}")
    if backend == "transformers" and vllm_args:
        raise ConfigError("vllm_args are for backend='vllm': leave them out")
    for name, value in (("dtype", dtype), ("device", device)):
        if backend == "vllm" and value is not None:
            raise ConfigError(
                f"{name} is for backend='transformers': give vLLM's own flag in vllm_args, such as "
                '["--dtype", "float32"]'
            )
