"""`softspec evaluate`: what an ensemble's numbers are worth on data with a truth."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    "evaluate",
    usage="softspec evaluate ENSEMBLE_DIR DATA.jsonl [OPTIONS]",
    help_epilogue="""\
A row of DATA has 'prompt' or 'messages', and 'choices' with 'answer', 'votes'
or 'ratings'; or reference answers in 'answers'. 'kind', 'source', 'group' and
'weight' are optional.

Examples:
  softspec evaluate runs/my held_out.jsonl --json metrics.json
  softspec evaluate runs/my held_out.jsonl --baseline single=single.scores.jsonl""",
)


@app.default
def evaluate(
    ensemble: Annotated[Path, Parameter(name="ENSEMBLE_DIR")],
    data: Annotated[Path, Parameter(name="DATA.jsonl")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
    scores: Annotated[Path | None, Parameter(metavar="FILE.jsonl")] = None,
    baseline: Annotated[tuple[str, ...], Parameter(metavar="NAME=FILE.jsonl")] = (),
    conflict: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("conflict",),
    agreed: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("agreed",),
    ood: Annotated[tuple[str, ...], Parameter(metavar="KIND")] = ("ood",),
    length_normalise: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
    max_tokens: int = 64,
    backend: Literal["transformers", "vllm"] = "transformers",
    base: str | None = None,
    base_unchecked: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_BASE_UNCHECKED")] = False,
    overwrite: bool = False,
) -> None:
    """Score the rows of a file and print every metric that applies, with its interval.

    Args:
        ensemble: an ensemble directory, 'demo' for the one in the package
        data: rows of choices, or of prompts with reference answers
        output: where the metrics go
        scores: where the scores of the rows are kept, and gone on with (default: beside --json, FILE.scores.jsonl)
        baseline: scores of another model on the same data, to be compared with; may be given several times
        conflict: rows of this kind are those of which sources contradict each other
        agreed: rows of this kind are those of which sources agree
        ood: rows of this kind are unlike the training data
        length_normalise: compare choices by the mean log-probability of a token
        bootstrap: how often the data are resampled for the intervals
        seed: of the resampling
        max_tokens: most tokens of an answer to a row with reference answers
        backend: what computes the scores
        base: base model: directory or hub id (default: the one the ensemble names)
        base_unchecked: score with a base that is not the one of the training, such as a quantised one
        overwrite: begin the scores anew where they are of other data, of another model or other settings
    """
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.app.demo.shipped import named_ensemble
    from softspec.app.evaluate import Wanted, evaluate_file
    from softspec.evaluation.judge import Asked
    from softspec.evaluation.statistics import Kinds
    from softspec.evaluation.table import table

    hide_foreign_progress()
    document = evaluate_file(
        named_ensemble(ensemble).resolve(),
        data,
        Wanted(output, scores, baseline, overwrite, backend, base, base_unchecked, max_tokens),
        Asked(Kinds(conflict, agreed, ood), length_normalise, bootstrap, seed),
    )
    if output is not None:
        output.write_text(
            json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
    print(table(document))
