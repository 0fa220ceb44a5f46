"""`softspec serve`: vLLM's OpenAI-compatible server over ensembles."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.cli.vllm_flags import Arguments, split_arguments
from softspec.errors import ConfigError

app = App(
    "serve",
    usage="softspec serve ENSEMBLE_DIR... [OPTIONS] [VLLM OPTIONS]",
    help_epilogue="""\
Every other option goes to vLLM, such as --port 8000 or --max-model-len 4096
(tokens).

Examples:
  softspec serve runs/my --port 8000
  softspec serve demo --policy-action abstain --policy-threshold 0.35""",
)


@app.default
def serve(
    *arguments: Arguments,
    base: str | None = None,
    policy_action: str | None = None,
    policy_metric: str | None = None,
    policy_threshold: float | str | None = None,
    policy_min_tokens: int | None = None,
    policy_hold_tokens: int | None = None,
    policy_upstream: str | None = None,
    policy_on_failure: str | None = None,
    policy_pinned: Annotated[bool, Parameter(negative="")] = False,
    policy_fixed: Annotated[bool, Parameter(negative="")] = False,
    upstream: tuple[str, ...] = (),
    record: Path | None = None,
    keys: Path | None = None,
    log_content: Annotated[bool, Parameter(negative="")] = False,
    max_wait: float | None = None,
    ops_port: int | None = None,
    alias: tuple[str, ...] = (),
    server_config: Path | None = None,
    drain_timeout: int = 30,
    base_unchecked: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_BASE_UNCHECKED")] = False,
    allow_untested: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_ALLOW_UNTESTED")] = False,
    no_shared_layers: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_NO_SHARED_LAYERS")] = False,
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), negative="")] = False,
    print_vllm_command: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Serve ensembles until stopped.

    Args:
        arguments: one or more ensemble directories; 'demo' is one that travels in the package
        base: base model: directory or hub id (default: the one the ensembles name)
        policy_action: answer (the default), abstain or route, where a request says nothing else
        policy_metric: what is compared with the threshold: mutual_information (the default), max_epistemic,
            epistemic, max_disagreement, disagreement, total_entropy or aleatoric_entropy; or confidence, of which
            less than the threshold acts, if the ensemble is calibrated
        policy_threshold: withhold an answer once the metric is above this: a share from 0 to 1 for the
            disagreements, nats for the others; or target_error=SHARE or target_coverage=SHARE, for the threshold
            that 'softspec calibrate' found for it
        policy_min_tokens: judge an answer from this many tokens on (default 1)
        policy_hold_tokens: send a stream so many tokens late (default 0; 16 where the action is route)
        policy_upstream: route to the upstream of this name (default: the only one)
        policy_on_failure: what becomes of an answer that the upstream does not replace: abstain (the default),
            answer or error
        policy_pinned: let requests tighten this policy, but not loosen or replace it
        policy_fixed: let requests have no policy but this one
        upstream: an OpenAI-compatible server to route to, NAME=URL,model=MODEL, also with api_key_env=VARIABLE,
            timeout_s=SECONDS, max_retries=COUNT and others; repeat it for several
        record: append abstained and routed requests to this JSONL file
        keys: let nobody ask without an API key of this file, which 'softspec key new' makes
        log_content: log prompts and answers with their requests; otherwise no log has any of them
        max_wait: answer newcomers with 503 where a first token would take longer, seconds
        ops_port: serve /metrics and /docs at this port, not beside the models
        alias: a name that stands for one of several ensembles by weight, NAME=ENSEMBLE:WEIGHT,...; repeat it for
            several
        server_config: YAML file with policy, limits, upstreams, record, who may ask and what is logged; flags win
        drain_timeout: seconds that accepted requests may go on when the server is told to stop
        base_unchecked: serve on a base that is not the one of the training, such as a quantised one
        allow_untested: take options of vLLM's engine that were not tested with ensembles
        no_shared_layers: compute the layers below the adapters for every member, not once for all
        verbose: print all that vLLM logs
        print_vllm_command: start nothing, but print the 'vllm serve' command that would serve the same
    """
    ensembles, vllm_args = split_arguments(arguments)
    if not ensembles:
        raise ConfigError("found no ENSEMBLE_DIR: give one or more directories before vLLM's flags")
    threshold = _threshold(policy_threshold)
    from softspec.app.demo.shipped import named_ensemble
    from softspec.app.smollm2 import base_of
    from softspec.server.ops.settings import Flags, read_settings

    ensembles = [named_ensemble(ensemble).resolve() for ensemble in ensembles]
    # Reads the manifests and the settings, before the seconds in which the server is imported.
    base = base or base_of(ensembles)
    settings = read_settings(
        ensembles,
        os.environ,
        Flags(
            {
                "action": policy_action,
                "metric": policy_metric,
                "threshold": threshold,
                "min_tokens": policy_min_tokens,
                "hold_tokens": policy_hold_tokens,
                "upstream": policy_upstream,
                "on_failure": policy_on_failure,
            },
            policy_pinned,
            policy_fixed,
            upstream,
            record,
            keys,
            log_content,
            max_wait,
            ops_port,
            alias,
        ),
        server_config,
        base_unchecked=base_unchecked,
        allow_untested=allow_untested,
        no_shared_layers=no_shared_layers,
    )
    if print_vllm_command:
        from softspec.server.ops.command import vllm_command

        print(vllm_command(settings, base, vllm_args, drain_timeout, os.environ, server_config))
        return
    from softspec.server.ops.launch import serve as run_server

    run_server(settings, base, vllm_args, drain_timeout, verbose)


def _threshold(text: float | str | None) -> object:
    if not isinstance(text, str):
        return text
    from softspec.server.policy.fields import read_threshold

    try:
        return read_threshold(text)
    except ValueError as error:
        raise ConfigError(
            f"--policy-threshold is '{text}': expected a number, target_error=SHARE or target_coverage=SHARE"
        ) from error
