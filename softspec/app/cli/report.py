"""`softspec report`: a run as one page to mail."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    "report",
    usage="softspec report RUN [OPTIONS]",
    help_epilogue="""\
Examples:
  softspec report runs/my
  softspec report runs/my --scores metrics.scores.jsonl --data held_out.jsonl
  softspec report runs/my --red-team-prompts prompts.jsonl --red-team pairs.jsonl""",
)


@app.default
def report(
    run: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    output: Annotated[Path, Parameter(metavar="FILE.html")] = Path("report.html"),
    scores: Annotated[tuple[Path, ...], Parameter(metavar="SCORES.jsonl")] = (),
    baseline: Annotated[tuple[str, ...], Parameter(metavar="NAME=SCORES.jsonl")] = (),
    data: Annotated[tuple[Path, ...], Parameter(metavar="DATA.jsonl")] = (),
    red_team_prompts: Annotated[Path | None, Parameter(metavar="PROMPTS.jsonl")] = None,
    red_team_samples: Annotated[Path | None, Parameter(metavar="FILE.jsonl")] = None,
    red_team: Annotated[Path | None, Parameter(metavar="PAIRS.jsonl")] = None,
    refusal: Annotated[str | None, Parameter(metavar="REGEX")] = None,
    samples: int = 8,
    max_tokens: int = 48,
    temperature: float = 1.0,
    document: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
    conflict: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("conflict",),
    agreed: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("agreed",),
    ood: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("ood",),
    length_normalise: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
    backend: Literal["transformers", "vllm"] = "transformers",
    base: str | None = None,
    base_unchecked: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_BASE_UNCHECKED")] = False,
) -> None:
    """Write what is known of a run into one HTML file that loads nothing.

    Args:
        run: an ensemble directory, 'demo' for the one in the package
        output: where the page goes
        scores: scores of this run by 'softspec evaluate'; may be given several times
        baseline: scores of another model on the same data, to be compared with; may be given several times
        data: the rows that were scored, for the prompts; may be given several times
        red_team_prompts: ask every member by itself, to see who refuses what
        red_team_samples: where these answers are kept, and gone on with (default: beside --output, FILE.samples.jsonl)
        red_team: write the prompts on which members differ as preferences, in both directions, for 'softspec train'
        refusal: what the start of a refusal looks like (default: usual English openings)
        samples: answers of each member to each prompt
        max_tokens: most tokens of such an answer
        temperature: at which these answers are drawn
        document: where all numbers go, as JSON
        conflict: rows of this kind are those of which sources contradict each other
        agreed: rows of this kind are those of which sources agree
        ood: rows of this kind are unlike the training data
        length_normalise: compare choices by the mean log-probability of a token
        bootstrap: how often the data are resampled for the intervals
        seed: of the resampling and of the drawing
        backend: what computes answers
        base: base model: directory or hub id (default: the one the ensemble names)
        base_unchecked: ask on a base that is not the one of the training, such as a quantised one
    """
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.app.demo.shipped import named_ensemble
    from softspec.app.report.given import Wanted
    from softspec.app.report.run import write_report
    from softspec.app.report.samples import Drawing
    from softspec.evaluation.judge import Asked
    from softspec.evaluation.statistics import Kinds

    hide_foreign_progress()
    write_report(
        named_ensemble(run).resolve(),
        Wanted(
            output=output,
            scores=scores,
            baselines=baseline,
            data=data,
            document=document,
            samples=red_team_samples,
            prompts=red_team_prompts,
            preferences=red_team,
            refusal=refusal,
            asked=Asked(Kinds(conflict, agreed, ood), length_normalise, bootstrap, seed),
            drawing=Drawing(samples, max_tokens, temperature, seed, backend, base, base_unchecked),
        ),
    )
    print(output)
