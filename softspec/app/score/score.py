"""`softspec score`: a file of answers, an ensemble, and what it thinks of each of them.

In: an ensemble directory, a file of rows, vLLM's flags. Out: a line of JSON for each row, and a table. Reads everything
once before an engine is started.
"""

from collections.abc import Sequence
from pathlib import Path

from softspec.app import interruption
from softspec.app.outputs import check_output
from softspec.app.score.results import Summary, Wanted, line, opened, partial_of
from softspec.app.score.rows import Survey, read_asked, survey
from softspec.artefact.manifest import load_manifest
from softspec.engine.trace import ChoiceTrace
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.load import base_named, load
from softspec.ensemble.progress import watched
from softspec.ensemble.served.backend import ServedBackend
from softspec.ensemble.texts import Texts
from softspec.errors import Interrupted
from softspec.server.ops.launch import server_arguments
from softspec.server.scores.scorer import scored


def score_file(
    ensemble: Path,
    data: Path,
    wanted: Wanted,
    base: str | None,
    base_unchecked: bool,
    vllm_args: Sequence[str],
) -> Summary:
    """Score every answer of a file.

    Raises:
        UserError: the ensemble, the base, a flag or a row is wrong, or the output may not be written.
        EngineError: the engine does not start, or fails.
        Interrupted: by Ctrl-C; the message says how many rows were scored and where they are.
    """
    check_output(wanted.output, [data], overwrite=wanted.overwrite)
    manifest = load_manifest(ensemble)
    # Wrong flags are told before the long reading of rows; `load` looks at them too.
    server_arguments({ensemble: manifest}, base, vllm_args, base_unchecked)
    found = survey(data, Texts(*base_named(manifest, base)).reading)
    # What is given later wins, so a user's own length does.
    arguments = ["--max-model-len", str(found.longest), *vllm_args]
    summary = Summary()
    try:
        with (
            interruption.interruptible("interrupted"),
            load(ensemble, base=base, base_unchecked=base_unchecked, vllm_args=arguments) as loaded,
        ):
            _score_rows(loaded, data, found, wanted, summary)
    except Interrupted as error:
        raise Interrupted(_so_far(summary, found.num_rows, wanted), error.signal_number) from error
    return summary


def _score_rows(ensemble: Ensemble, data: Path, found: Survey, wanted: Wanted, summary: Summary) -> None:
    """Score all rows; `summary` and the output's file have the rows so far."""
    served, manifest = ensemble.backend, ensemble.manifest
    assert isinstance(served, ServedBackend)
    traces = served.traces(read_asked(data, ensemble.texts.reading))
    with opened(wanted.output) as file:
        for answers in watched(traces, True, "scoring", "row", found.num_rows):
            scores = [
                {
                    "index": number,
                    **scored(
                        ChoiceTrace(manifest.log_weights, manifest.weights_rule, tokens=tokens),
                        wanted.detail == "tokens",
                        served.engine.decode,
                    ),
                }
                for number, tokens in enumerate(answers)
            ]
            if file is not None:
                file.write(line(summary.rows, scores))
                file.flush()
            summary.add(scores)


def _so_far(summary: Summary, num_rows: int, wanted: Wanted) -> str:
    if wanted.output is None or not summary.rows:
        return f"interrupted after {summary.rows} of {num_rows} rows"
    partial = partial_of(wanted.output)
    with partial.open(encoding="utf-8") as lines:  # the last may not be in the summary yet
        written = sum(1 for _ in lines)
    return f"interrupted after {written} of {num_rows} rows; their lines are in '{partial}'"
