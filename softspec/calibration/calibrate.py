"""One calibration: rows are asked, a confidence is fitted, thresholds are certified, and `ensemble.json` has them.

In: an ensemble and a file of rows with a truth. Out: what was fitted, written into the manifest. Knows no command line.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from softspec.artefact.calibration import METRICS_OF, Calibration, Judged
from softspec.artefact.manifest import Manifest, load_manifest, save_manifest
from softspec.artefact.validation import as_key
from softspec.calibration.fit import Fitted, Wanted, fit_calibration
from softspec.calibration.judged import Asking, outcomes_of
from softspec.calibration.outcomes import FEWEST
from softspec.ensemble.ensemble import Ensemble
from softspec.errors import ConfigError, DataError
from softspec.evaluation.rows import Question, file_digest, read_questions
from softspec.maths.answer import OF_DECISION

DEFAULT_METRIC = "mutual_information"
ASKED: dict[Judged, tuple[str, ...]] = {
    "decisions": ("list_options",),
    "answers": ("max_tokens", "temperature", "seed", "exact"),
}
"""What of `Asking` is about which kind."""


@dataclass(frozen=True)
class Plan:
    """What is to be calibrated, checked before anything is computed: rows of one form, and metrics that they have."""

    judged: Judged
    metrics: tuple[str, ...]
    questions: Sequence[Question]
    wanted: Wanted
    asking: Asking
    settings: dict[str, object] = field(default_factory=dict)


def plan_of(data: Path, metrics: Sequence[str], wanted: Wanted, asking: Asking) -> Plan:
    """Read all rows, and check what is asked of them.

    Raises:
        DataError: a row is malformed, of another form than the first, or there are too few.
        ConfigError: a metric or a target is none.
    """
    _require_shares(wanted, asking)
    questions = list(read_questions(data))
    form = questions[0].form
    for question in questions:
        if question.form != form:
            raise DataError(
                f"{question.place}: a row of {question.form}, the rows before are of {form}: give each form a file"
            )
    if len(questions) < FEWEST:
        raise DataError(f"{data}: found {len(questions)} rows: expected at least {FEWEST}")
    judged: Judged = "decisions" if form == "choices" else "answers"
    settings = {name: value for name, value in asdict(asking).items() if name in ASKED[judged]}
    settings |= {"data": data.name, "data_digest": file_digest(data)}
    return Plan(judged, _checked_metrics(metrics, judged), questions, wanted, asking, settings)


def calibrate(ensemble: Ensemble, plan: Plan) -> Fitted:
    """Ask the ensemble and fit.

    Raises:
        DataError: nothing can be said of these rows, or one of them cannot be asked.
    """
    outcomes = outcomes_of(ensemble, plan.questions, plan.metrics, plan.asking)
    return fit_calibration(
        outcomes,
        plan.wanted,
        judged=plan.judged,
        weights_rule=ensemble.manifest.weights_rule,
        min_tokens=plan.asking.min_tokens if plan.judged == "answers" else 1,
        settings=plan.settings,
    )


def require_room(manifest: Manifest, judged: Judged, overwrite: bool) -> None:
    """Refuse to replace a calibration of this kind unasked.

    Raises:
        ConfigError: there is one.
    """
    calibration = manifest.calibration
    if calibration is not None and calibration.of(judged) is not None and not overwrite:
        raise ConfigError(
            f"ensemble '{manifest.name}' is calibrated for {judged} already: give --overwrite to replace that"
        )


def write(directory: Path, calibration: Calibration) -> None:
    """Put a calibration into `ensemble.json`, beside that of the other kind if there is one."""
    manifest = load_manifest(directory)
    there = manifest.calibration
    kinds = {} if there is None else {each.judged: each for each in (there, there.also) if each is not None}
    kinds[calibration.judged] = calibration
    first, *others = (each.model_copy(update={"also": None}) for each in kinds.values())
    whole = first.model_copy(update={"also": others[0] if others else None})
    save_manifest(directory, manifest.model_copy(update={"calibration": whole}))


def _checked_metrics(metrics: Sequence[str], judged: Judged) -> tuple[str, ...]:
    named = metrics or (DEFAULT_METRIC,)
    found = [OF_DECISION.get(name, name) if judged == "decisions" else name for name in named]
    for given, name in zip(named, found, strict=True):
        if name not in METRICS_OF[judged]:
            raise ConfigError(
                f"metric is '{as_key(given)}': for {judged} expected one of {', '.join(METRICS_OF[judged])}"
            )
    if len(set(found)) < len(found):
        raise ConfigError(f"metrics are {', '.join(named)}: expected different ones")
    return tuple(found)


def _require_shares(wanted: Wanted, asking: Asking) -> None:
    shares = {
        "--target-error": wanted.target_errors,
        "--target-coverage": wanted.target_coverages,
        "--delta": (wanted.delta,),
    }
    for flag, values in shares.items():
        for value in values:
            if not 0 < value < 1:
                raise ConfigError(f"{flag} is {value:g}: expected a number between 0 and 1")
        if len(set(values)) < len(values):
            raise ConfigError(f"{flag} has a value twice: leave one out")
    for name in ("min_tokens", "max_tokens"):
        if getattr(asking, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(asking, name)}: expected at least 1")
