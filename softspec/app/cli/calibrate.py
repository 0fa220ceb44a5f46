"""`softspec calibrate`: what an ensemble's uncertainty says of being right, and thresholds with a guarantee."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    "calibrate",
    usage="softspec calibrate ENSEMBLE_DIR DATA.jsonl [OPTIONS]",
    help_epilogue="""\
DATA are rows that were not trained on, each with a truth: 'prompt' or
'messages', and 'choices' with 'answer', 'votes' or 'ratings', which calibrate
/v1/decisions; or reference answers in 'answers', which calibrate answers.
'group' is optional: every group gets thresholds of its own too.

Examples:
  softspec calibrate runs/my held_out.jsonl --target-error 0.05 --target-error 0.1
  softspec calibrate runs/my held_out.jsonl --metric epistemic --metric total_entropy""",
)


@app.default
def calibrate(
    ensemble: Annotated[Path, Parameter(name="ENSEMBLE_DIR")],
    data: Annotated[Path, Parameter(name="DATA.jsonl")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
    metric: tuple[str, ...] = (),
    method: Literal["isotonic", "platt", "beta"] = "isotonic",
    target_error: Annotated[tuple[float, ...], Parameter(metavar="SHARE")] = (),
    target_coverage: Annotated[tuple[float, ...], Parameter(metavar="SHARE")] = (),
    delta: float = 0.1,
    min_tokens: int = 1,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    exact: bool = False,
    list_options: bool = False,
    backend: Literal["transformers", "vllm"] = "transformers",
    base: str | None = None,
    base_unchecked: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_BASE_UNCHECKED")] = False,
    overwrite: bool = False,
) -> None:
    """Fit the probability of being right, certify thresholds, and write both into ensemble.json.

    Args:
        ensemble: an ensemble directory
        data: rows with a truth, independent draws of what will be asked
        output: where everything that was found goes, as JSON
        metric: what the confidence is made of, as in a policy (default: mutual_information); several are put together
            by a logistic model
        method: of the curve from the metric to the probability
        target_error: find the threshold under which at most this share of what is answered is wrong (default: 0.05);
            may be given several times
        target_coverage: find the threshold under which at least this share is answered; may be given several times
        delta: the probability with which a threshold may miss its target
        min_tokens: answers are judged from this many tokens on, as by the policy
        max_tokens: most tokens of an answer
        temperature: at which answers are drawn; 0 is greedy
        seed: of the drawing
        exact: an answer is right if it is a reference, letter by letter; else without case, punctuation and articles
        list_options: name the choices in the prompt, as /v1/decisions does unless told otherwise
        backend: what computes
        base: base model: directory or hub id (default: the one the ensemble names)
        base_unchecked: calibrate on a base that is not the one of the training, such as a quantised one
        overwrite: replace a calibration of the same kind
    """
    from softspec.app.calibrate import Place, calibrate_file
    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.calibration.fit import Wanted
    from softspec.calibration.judged import Asking
    from softspec.calibration.table import document, table

    hide_foreign_progress()
    errors = target_error or (() if target_coverage else (0.05,))
    fitted = calibrate_file(
        ensemble.resolve(),
        data,
        metric,
        Wanted(method, errors, target_coverage, delta),
        Asking(list_options, max_tokens, min_tokens, temperature, seed, exact),
        Place(output, backend, base, base_unchecked, overwrite),
    )
    if output is not None:
        output.write_text(json.dumps(document(fitted), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(fitted))
