"""`softspec serve`: vLLM's OpenAI-compatible server over ensembles."""

from typing import cast

from cyclopts import App

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
    policy_action: str = "answer",
    policy_metric: str = "mutual_information",
    policy_threshold: float | None = None,
    base_unchecked: bool = False,
    allow_untested: bool = False,
) -> None:
    """Serve ensembles until stopped.

    Args:
        arguments: one or more ensemble directories; 'demo' is one that travels in the package
        base: base model: directory or hub id (default: the one the ensembles name)
        policy_action: answer or abstain, where a request says nothing else
        policy_metric: what is compared with the threshold
        policy_threshold: act when the metric is above this, in nats (a share for the disagreements)
        base_unchecked: serve on a base that is not the one of the training, such as a quantised one
        allow_untested: take options of vLLM's engine that were not tested with ensembles
    """
    ensembles, vllm_args = split_arguments(arguments)
    if not ensembles:
        raise ConfigError("found no ENSEMBLE_DIR: give one or more directories before vLLM's flags")
    from softspec.app.demo.shipped import named_ensemble
    from softspec.app.smollm2 import base_of

    ensembles = [named_ensemble(ensemble).resolve() for ensemble in ensembles]
    # Reads the manifests, before the seconds in which the server is imported.
    base = base or base_of(ensembles)

    from softspec.server.ops.launch import serve as run_server
    from softspec.server.ops.settings import Settings
    from softspec.server.policy.policy import Action, Policy

    policy = Policy(cast(Action, policy_action), policy_metric, policy_threshold)
    settings = Settings(
        tuple(ensembles), policy, base_unchecked=base_unchecked, allow_untested=allow_untested
    )
    run_server(settings, base, vllm_args)
