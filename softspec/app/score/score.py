"""`softspec score`: a file of answers, an ensemble, and what it thinks of each of them.

In: an ensemble directory, a file of rows, vLLM's flags. Out: a line of JSON for each row, and a table. Reads everything
once before an engine is started.
"""

import asyncio
import gc
import os
from collections.abc import Sequence
from pathlib import Path

from softspec.app import interruption
from softspec.app.score.results import Summary, Wanted, check_output, partial_of
from softspec.app.score.rows import survey
from softspec.artefact.base import context_length, end_of_turn_ids
from softspec.artefact.manifest import load_manifest
from softspec.errors import Interrupted
from softspec.server.ops.launch import require_base_of, server_arguments, server_environment
from softspec.server.ops.settings import Settings
from softspec.train.data.reading import Reading
from softspec.train.members.base import load_tokenizer

ANY_LENGTH = 2**62


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
    if wanted.output is not None:
        check_output(wanted.output, data, wanted.overwrite)
    manifests = {ensemble: load_manifest(ensemble)}
    model, *flags = server_arguments(manifests, base, vllm_args, base_unchecked)
    if Path(model).is_dir():
        require_base_of(manifests, Path(model), base_unchecked)
    reading = _reading(model, manifests[ensemble].base_model.revision if base is None else None)
    found = survey(data, reading)
    # What is given later wins, so a user's own length does.
    arguments = [model, "--max-model-len", str(found.longest), *flags]
    _prepare_environment(ensemble)
    summary = Summary()
    try:
        with interruption.interruptible("interrupted"):
            # Imported here: takes many seconds, and must see the environment.
            from softspec.app.score.run import run

            asyncio.run(run(ensemble, arguments, data, reading, found, wanted, summary))
    except Interrupted as error:
        raise Interrupted(_so_far(summary, found.num_rows, wanted), error.signal_number) from error
    finally:
        # The engine's finaliser would fail at exit, when the modules that it needs are being taken apart.
        gc.collect()
    return summary


def _reading(model: str, revision: str | None) -> Reading:
    """How rows become ids: as in training, whatever their length up to the base's context."""
    tokenizer = load_tokenizer(model, revision)
    return Reading(
        tokenizer,
        end_of_turn_ids(tokenizer, model, revision),
        max_length=ANY_LENGTH,
        context=context_length(model, revision),
    )


def _prepare_environment(ensemble: Path) -> None:
    quiet = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.update({**quiet, **os.environ})
    os.environ.update(server_environment(Settings((ensemble,)), os.environ))


def _so_far(summary: Summary, num_rows: int, wanted: Wanted) -> str:
    place = "" if wanted.output is None else f"; their lines are in '{partial_of(wanted.output)}'"
    return f"interrupted after {summary.rows} of {num_rows} rows{place if summary.rows else ''}"
