"""From an ensemble directory to an `Ensemble`.

In: a directory, its base, and how to compute. Out: an `Ensemble`, or an error before anything dear is done.
"""

from pathlib import Path
from typing import Literal

from softspec.artefact.manifest import load_manifest
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError
from softspec.server.ops.launch import require_base_of


def load(
    path: str | Path,
    *,
    backend: Literal["vllm", "transformers"] = "vllm",
    base: str | Path | None = None,
    base_unchecked: bool = False,
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
        dtype: of transformers' weights: by default bfloat16 on a GPU and float32 on a CPU.
        device: where transformers computes: by default the GPU if there is one.
    Raises:
        ManifestError: no ensemble there, or it does not fit its base.
        ConfigError: the base is missing or another one than that of the training, or an option is not the backend's.
    """
    directory = Path(path).expanduser()
    manifest = load_manifest(directory)
    found = manifest.base_model.path if base is None else str(base)
    revision = manifest.base_model.revision if base is None else None
    if Path(found).is_dir():
        require_base_of({directory: manifest}, Path(found), base_unchecked)
    if backend == "transformers":
        # Imported here, as torch and transformers take seconds.
        from softspec.ensemble.stacked.backend import StackedBackend

        texts = Texts(found, revision)
        stacked = StackedBackend(directory, found, texts, revision, dtype or "auto", device)
        return Ensemble(manifest, texts, stacked)
    raise ConfigError(f"backend is '{backend}': expected 'vllm' or 'transformers'")
