"""`softspec serve`: ensemble directories become the command line and environment of vLLM's own server.

In: settings, a base model and the user's vLLM flags. Out: a running server; does not return. Checks what can be checked
before torch or vLLM are loaded. Knows which models are served under which names; the engine's flags are
`softspec.engine.start.flags`.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from softspec.artefact.manifest import Manifest, load_manifest, member_rank
from softspec.engine.start.flags import cpu_environment, cpu_flags, engine_flags, refuse_reserved_flags
from softspec.engine.wire import MAX_TOP_LOGPROBS
from softspec.errors import ConfigError
from softspec.server.ops.settings import Settings

PLUGIN = "softspec"


def serve(settings: Settings, base: str | None, vllm_args: Sequence[str]) -> None:
    """Run vLLM's server over the ensembles until it is stopped.

    Args:
        settings: the ensembles and the policy for requests that name none.
        base: the base model's directory or hub id; by default the one that the ensembles name.
        vllm_args: vLLM's own flags; they win over the ones chosen here.
    Raises:
        UserError: an ensemble, the base model or a flag is wrong.
    """
    manifests = {path: load_manifest(path) for path in settings.ensembles}
    arguments = server_arguments(manifests, base, vllm_args)
    os.environ.update(server_environment(settings, os.environ))
    # Imported here: takes many seconds, and must see the environment.
    from softspec.engine.start.serve import run

    run(arguments)


def server_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that vLLM's processes must see; vLLM loads endpoint plugins only when they are named."""
    plugins = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name and name != PLUGIN]
    variables = {**settings.to_environment(), "VLLM_PLUGINS": ",".join([*plugins, PLUGIN])}
    if _on_cpu():
        variables |= cpu_environment(environment, num_cores=len(os.sched_getaffinity(0)))
    return variables


def server_arguments(
    manifests: Mapping[Path, Manifest], base: str | None, vllm_args: Sequence[str]
) -> list[str]:
    """The arguments after `vllm serve`.

    Args:
        manifests: ensemble directory -> its manifest.
    Raises:
        ConfigError: two ensembles of one name or of different bases, a missing base, or a reserved flag.
    """
    refuse_reserved_flags(vllm_args)
    _require_distinct_names(manifests)
    model = base or _common_base(manifests)
    _require_base(model)
    rank = max(member_rank(path, manifest) for path, manifest in manifests.items())
    flags = engine_flags(manifests.values(), rank, MAX_TOP_LOGPROBS)
    if _on_cpu():
        flags += cpu_flags(has_compiler=shutil.which(os.environ.get("CXX", "g++")) is not None)
    return [model, "--served-model-name", _base_name(model, manifests), *flags, *vllm_args]


def _on_cpu() -> bool:
    # Imported here: takes a second or two, and what is wrong with the arguments is said before.
    import torch

    return not torch.cuda.is_available()


def _require_distinct_names(manifests: Mapping[Path, Manifest]) -> None:
    names = [manifest.name for manifest in manifests.values()]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"ensembles are named {names}: expected different names, as models are served by name"
        )


def _common_base(manifests: Mapping[Path, Manifest]) -> str:
    bases = sorted({manifest.base_model.path for manifest in manifests.values()})
    if len(bases) > 1:
        raise ConfigError(
            f"ensembles have different bases {bases}: expected one; serve them apart or give --base"
        )
    return bases[0]


def _require_base(model: str) -> None:
    """Raise unless the base may exist: a hub id has at most one slash and does not start like a path."""
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).is_dir():
        raise ConfigError(f"base model '{model}' does not exist: give its directory with --base PATH")


def _base_name(model: str, manifests: Mapping[Path, Manifest]) -> str:
    """The base's served name: short, unless an ensemble has that name already."""
    short = Path(model).name
    return model if short in {manifest.name for manifest in manifests.values()} else short
