"""`softspec serve`: ensemble directories become the command line and environment of vLLM's own server.

In: settings, a base model and the user's vLLM flags. Out: a running server; does not return. Checks what can be checked
before torch or vLLM are loaded. Knows which models are served under which names; the engine's flags are
`softspec.engine.start.flags`.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, member_rank
from softspec.engine.start.flags import (
    cpu_environment,
    cpu_flags,
    engine_flags,
    refuse_logged_content,
    refuse_reserved_flags,
    without_given,
)
from softspec.engine.start.quiet import FLAGS as QUIET_FLAGS
from softspec.engine.start.quiet import hide_import_warnings, is_quiet, quiet_environment
from softspec.engine.wire import MAX_TOP_LOGPROBS
from softspec.errors import ConfigError
from softspec.server.access.access import require_ready
from softspec.server.access.second_port import require_free
from softspec.server.observe.export import engine_environment
from softspec.server.ops.served_base import require_base_of
from softspec.server.ops.settings import Settings
from softspec.server.record.recorder import require_writable
from softspec.server.rollout.aliases import Aliases
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.shadows import Shadows
from softspec.server.upstream.loop import require_elsewhere

PLUGIN = "softspec"
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""What vLLM 0.32 loads as long as VLLM_PLUGINS is not set; endpoint plugins, which add routes, must always be named."""


def serve(
    settings: Settings,
    base: str | None,
    vllm_args: Sequence[str],
    drain_timeout_s: int,
    verbose: bool = False,
) -> None:
    """Run vLLM's server over the ensembles until it is stopped.

    Args:
        settings: the ensembles, the policy for requests that name none, and the risks that are taken.
        base: the base model's directory or hub id; by default the one that the ensembles name.
        vllm_args: vLLM's own flags; they win over the ones chosen here.
        drain_timeout_s: how long accepted requests may go on when the server is told to stop.
        verbose: log all that vLLM logs; so it is, too, where the user has chosen what vLLM logs.
    Raises:
        UserError: an ensemble, the base model or a flag is wrong.
        EngineError: an option was not tested, or the engine did not start, or died.
    """
    arguments = prepared_arguments(settings, base, vllm_args, drain_timeout_s, verbose)
    asyncio.run(require_ready(settings.access, os.environ))
    if find_spec("vllm") is not None:
        told = "softspec: starting vLLM, whose three processes load one after the other; this takes about a minute"
        with suppress(OSError):  # a log that cannot be written is no reason not to serve
            print(told, file=sys.stderr, flush=True)
    # Imported here: takes many seconds, and must see the environment.
    from softspec.engine.front.ensemble import load_ensembles
    from softspec.engine.start.serve import run

    def may_listen(host: str | None, port: int) -> None:
        require_elsewhere(settings.upstreams, host, port)
        require_free(host, settings.access.ops_port, port)

    run(arguments, load_ensembles(settings.ensembles), settings.allow_untested, may_listen)


def prepared_arguments(
    settings: Settings, base: str | None, vllm_args: Sequence[str], drain_timeout_s: int, verbose: bool
) -> list[str]:
    """The arguments after `vllm serve`, in a process whose environment is by then what vLLM must see.

    Raises:
        UserError: an ensemble, the base model or a flag is wrong.
    """
    settings.access.require_only_door(_has_api_key(vllm_args, os.environ))
    quiet = is_quiet(verbose, vllm_args, os.environ)
    vllm_args = [*(QUIET_FLAGS if quiet else ()), *vllm_args]
    arguments = checked_arguments(settings, base, vllm_args, drain_timeout_s)
    if settings.record is not None:
        require_writable(settings.record.path)
    os.environ.update(server_environment(settings, os.environ))
    if quiet:
        os.environ.update(quiet_environment(os.environ))
        hide_import_warnings()
    return arguments


def checked_arguments(
    settings: Settings, base: str | None, vllm_args: Sequence[str], drain_timeout_s: int
) -> list[str]:
    """The arguments after `vllm serve`, once all is checked that can be before torch or vLLM are loaded.

    Raises:
        UserError: an ensemble, the base model or a flag is wrong.
    """
    if drain_timeout_s < 0:
        raise ConfigError(f"--drain-timeout is {drain_timeout_s}: expected 0 or more seconds")
    manifests = {path: load_manifest(path) for path in settings.ensembles}
    settings.rules.require_followed({each.name: each.calibration for each in manifests.values()})
    names = [manifest.name for manifest in manifests.values()]
    Rollout(names, lambda: names, Aliases(settings.aliases), Shadows(settings.shadows)).require_served()
    model, *arguments = server_arguments(manifests, base, vllm_args, settings.base_unchecked)
    if not settings.log.content:
        refuse_logged_content(vllm_args, os.environ)
    served = Path(model)
    if served.is_dir():  # the files of others may not be here yet; the plugin checks all
        require_base_of(manifests, served, settings.base_unchecked)
    ours = ["--shutdown-timeout", str(drain_timeout_s)]
    if settings.log.requests:  # and uvicorn need not log them a second time
        ours.append("--disable-uvicorn-access-log")
    return [model, *ours, *arguments]


def _has_api_key(vllm_args: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether vLLM will ask for a key of its own."""
    flags = (argument.partition("=")[0].replace("_", "-") for argument in vllm_args)
    return "--api-key" in flags or bool(environment.get("VLLM_API_KEY"))


def server_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that vLLM's processes must see; vLLM loads endpoint plugins only when they are named."""
    variables = {
        **settings.to_environment(),
        **engine_environment(environment),
        "VLLM_PLUGINS": ",".join(_plugins(environment)),
        # Standard output is the request log's.
        "VLLM_LOGGING_STREAM": environment.get("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
    }
    if _on_cpu():
        variables |= cpu_environment(environment, num_cores=len(os.sched_getaffinity(0)))
    return variables


def _plugins(environment: Mapping[str, str]) -> list[str]:
    """Ours beside those of the user: the ones that are named, or those that vLLM loads while none is named."""
    if (named := environment.get("VLLM_PLUGINS")) is None:
        names = {plugin.name for group in _PLUGIN_GROUPS for plugin in entry_points(group=group)}
        found = sorted(names)
    else:
        found = named.split(",")
    return [*(name for name in found if name and name != PLUGIN), PLUGIN]


def server_arguments(
    manifests: Mapping[Path, Manifest],
    base: str | None,
    vllm_args: Sequence[str],
    base_unchecked: bool = False,
) -> list[str]:
    """The arguments after `vllm serve` that an engine of these ensembles needs; the base's place comes first.

    Args:
        manifests: ensemble directory -> its manifest.
    Raises:
        ConfigError: two ensembles of one name or of different bases, a missing base, or a reserved flag.
    """
    refuse_reserved_flags(vllm_args)
    _require_distinct_names(manifests)
    if not base_unchecked:
        _require_one_fingerprint(manifests)
    found = _common_base(manifests) if base is None else BaseModelRef(path=base)
    _require_base(found.path)
    rank = max(member_rank(path, manifest) for path, manifest in manifests.items())
    flags = engine_flags(manifests.values(), rank, MAX_TOP_LOGPROBS)
    if found.revision is not None:
        flags += ["--revision", found.revision]
    if _on_cpu():
        flags += cpu_flags(has_compiler=shutil.which(os.environ.get("CXX", "g++")) is not None)
    ours = ["--served-model-name", _base_name(found.path, manifests), *flags]
    return [found.path, *without_given(ours, vllm_args), *vllm_args]


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


def _require_one_fingerprint(manifests: Mapping[Path, Manifest]) -> None:
    known = {manifest.base_model.fingerprint: manifest.name for manifest in manifests.values()}
    known.pop(None, None)
    if len(known) > 1:
        told = ", ".join(
            f"'{name}' on {fingerprint[:12]}" for fingerprint, name in known.items() if fingerprint
        )
        raise ConfigError(
            f"ensembles were trained on bases with different fingerprints ({told}): expected one base; serve them "
            "apart, or take the risk with --base-unchecked"
        )


def _common_base(manifests: Mapping[Path, Manifest]) -> BaseModelRef:
    """The base that all ensembles name; places with one content are one base."""
    bases = [manifest.base_model for manifest in manifests.values()]
    named = sorted({f"{base.path}@{base.revision}" if base.revision else base.path for base in bases})
    is_one = len(named) == 1 or (bases[0].fingerprint and len({base.fingerprint for base in bases}) == 1)
    if not is_one:
        raise ConfigError(
            f"ensembles have different bases {named}: expected one; serve them apart or give --base"
        )
    return next((base for base in bases if Path(base.path).is_dir()), bases[0])


def _require_base(model: str) -> None:
    """Raise unless the base may exist: a hub id has at most one slash and does not start like a path."""
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).is_dir():
        raise ConfigError(f"base model '{model}' does not exist: give its directory with --base PATH")


def _base_name(model: str, manifests: Mapping[Path, Manifest]) -> str:
    """The base's served name: short, unless an ensemble has that name already."""
    short = Path(model).name
    return model if short in {manifest.name for manifest in manifests.values()} else short
