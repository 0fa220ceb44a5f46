"""`softspec baselines`: simpler models of the same data, steps and seeds beside an ensemble."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.outputs import check_output
from softspec.console import unbroken_output
from softspec.errors import ConfigError

app = App(
    "baselines",
    usage="softspec baselines CONFIG.yaml DATA.jsonl --output-dir DIR [OPTIONS]",
    help_epilogue="""\
Baselines: base (zero-shot), single (one adapter, same steps), wide (one
adapter, K times the rank and the steps), independent (alpha 0), dropout (MC
dropout), laplace (of single's last layer), temperature (each of these,
scaled), polygraph (lm-polygraph's scores of single's answers).

Examples:
  softspec baselines my.yaml held-out.jsonl --output-dir runs/baselines
  softspec baselines my.yaml held-out.jsonl --output-dir runs/baselines \\
    --only single --only temperature --seeds 0 --seeds 1 --json table.json""",
)


@app.default
def baselines(
    config: Path,
    data: Path,
    /,
    *,
    output_dir: Path,
    only: Annotated[tuple[str, ...], Parameter(metavar="NAME", consume_multiple=True)] = (),
    alphas: Annotated[tuple[float, ...], Parameter(metavar="ALPHA", consume_multiple=True)] = (),
    seeds: Annotated[tuple[int, ...], Parameter(metavar="SEED", consume_multiple=True)] = (),
    dropout: float = 0.1,
    samples: int | None = None,
    max_tokens: int = 64,
    conflict: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("conflict",),
    agreed: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("agreed",),
    ood: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("ood",),
    length_normalise: bool = False,
    bootstrap: int = 1000,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
) -> None:
    """Train and score what an ensemble has to beat, and print all of them in one table.

    Args:
        config: YAML file of the ensemble, as for 'softspec train'
        data: rows of choices or of reference answers, as for 'softspec evaluate'
        output_dir: a folder for each seed goes there; the same command goes on with what is missing
        only: these baselines alone; the ensemble itself is always there
        alphas: the same ensemble with these values of renyi_alpha too
        seeds: seeds of the trainings (default: the one of CONFIG.yaml)
        dropout: lora_dropout of the dropout baseline
        samples: draws of weights of dropout and laplace, and of answers for polygraph (default: num_members)
        max_tokens: most tokens of an answer that a model gives itself
        conflict: rows of this kind are those of which sources contradict each other
        agreed: rows of this kind are those of which sources agree
        ood: rows of this kind are unlike the training data
        length_normalise: compare choices by the mean log-probability of a token
        bootstrap: how often the data are resampled for the intervals
        output: JSON of all metrics with their intervals
        overrides: in place of what CONFIG.yaml says; may be given several times
    """
    from softspec.train.config import load_config

    settings = load_config(config, overrides)  # before the seconds in which the rest is imported
    if bootstrap < 2:
        raise ConfigError(f"--bootstrap is {bootstrap}: expected 2 or more")
    check_output(output, [config, data])

    from softspec.app.baselines.compare import compared, table
    from softspec.app.baselines.run import plan_of, run_baselines
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.evaluation.judge import Asked
    from softspec.evaluation.statistics import Kinds

    hide_foreign_progress()
    with unbroken_output():
        asked = Asked(Kinds(conflict, agreed, ood), length_normalise, bootstrap)
        plan = plan_of(settings, data, output_dir, only, seeds, dropout, samples, max_tokens, alphas)
        document = compared(plan, run_baselines(plan, length_normalise), asked)
        print(table(document))
        if output is not None:
            written = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            output.write_text(written + "\n", encoding="utf-8")
