"""`softspec diagnose`: whether members can specialise on some data, whether they did, and what to change if not."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from softspec.app.outputs import check_output
from softspec.errors import ConfigError

app = App(
    "diagnose",
    help_epilogue="""\
Before a run, give its CONFIG.yaml; after one, the ensemble and its config:
the ensemble does not know where its data are.

Examples:
  softspec diagnose my.yaml
  softspec diagnose runs/my --config my.yaml --single runs/my-one --json d.json
  softspec diagnose my.yaml --probes sources --steps 100""",
)

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Probe = Literal["ambiguity", "sources", "stability", "growth"]


@app.default
def diagnose(
    run_or_config: Annotated[Path, Parameter(name="RUN_OR_CONFIG")],
    /,
    *,
    config: Path | None = None,
    single: Path | None = None,
    probes: tuple[Probe, ...] = ("ambiguity", "sources", "stability", "growth"),
    steps: Count = 60,
    rows: Count = 200,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
) -> None:
    """Say in words what to do next, and print what that rests on.

    Args:
        run_or_config: an ensemble directory, or the YAML file of a run to come
        config: the YAML file that the ensemble was trained with
        single: an ensemble of one member, trained alike, to compare with
        probes: which to run
        steps: of the short runs, which are thrown away
        rows: to judge by, at most
        overrides: in place of what the config says; may be given several times
        output: where all numbers go as JSON
    """
    from softspec.train.config import load_config

    is_run = run_or_config.is_dir()
    if is_run and config is None:
        raise ConfigError(
            f"'{run_or_config}' is an ensemble, which does not know where its data are: give --config CONFIG.yaml"
        )
    if config is not None and not is_run:
        raise ConfigError(
            f"no ensemble '{run_or_config}'; expected a directory beside --config, or only CONFIG.yaml"
        )
    if single is not None and not is_run:
        raise ConfigError("--single is compared with an ensemble: expected a directory as RUN_OR_CONFIG")
    check_output(output, [config or run_or_config])
    settings = load_config(config or run_or_config, overrides)

    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.train.diagnosis.findings import as_json
    from softspec.train.diagnosis.report import page
    from softspec.train.diagnosis.story import Plan, diagnose
    from softspec.train.diagnosis.words import advise

    hide_foreign_progress()
    plan = Plan(settings, run_or_config if is_run else None, single, probes, steps, rows)
    findings = diagnose(plan)
    advice = advise(findings)
    print(page(findings, advice))
    if output:
        content = {**as_json(findings), "advice": vars(advice)}
        output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
