"""`softspec score`: what an ensemble thinks of answers in a file."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from softspec.app.cli.vllm_flags import Arguments, split_arguments
from softspec.errors import ConfigError

app = App(
    "score",
    usage="softspec score ENSEMBLE_DIR DATA.jsonl [OPTIONS] [VLLM OPTIONS]",
    help_epilogue="""\
A row of DATA has 'messages' that end with the assistant's, or 'prompt' and
'completion', as for training; or 'prompt' or 'messages' with a list of
'answers'. Every other option goes to vLLM.

Examples:
  softspec score runs/my answers.jsonl
  softspec score runs/my answers.jsonl --json scores.jsonl --detail tokens""",
)


@app.default
def score(
    *arguments: Arguments,
    output: Annotated[Path | None, Parameter(name="--json", metavar="OUT.jsonl")] = None,
    detail: Literal["summary", "tokens"] = "summary",
    overwrite: bool = False,
    base: str | None = None,
    base_unchecked: Annotated[bool, Parameter(negative="", env_var="SOFTSPEC_BASE_UNCHECKED")] = False,
) -> None:
    """Score answers that exist already, and print a table about all of them.

    Args:
        arguments: an ensemble directory, 'demo' for the one in the package, and a file of rows
        output: where the scores go, a line for each row in its order
        detail: what a line has of each answer: its summary, or the numbers of every token too
        overwrite: replace OUT.jsonl if it is there
        base: base model: directory or hub id (default: the one the ensemble names)
        base_unchecked: score with a base that is not the one of the training, such as a quantised one
    """
    paths, vllm_args = split_arguments(arguments)
    if len(paths) != 2:
        raise ConfigError(
            f"found {len(paths)} paths before the options: expected two, ENSEMBLE_DIR and DATA.jsonl"
        )
    from softspec.app.demo.shipped import named_ensemble
    from softspec.app.score.results import Wanted
    from softspec.app.score.score import score_file
    from softspec.app.smollm2 import base_of

    ensemble = named_ensemble(paths[0]).resolve()
    base = base or base_of([ensemble])
    print(
        score_file(
            ensemble, paths[1], Wanted(output, detail, overwrite), base, base_unchecked, vllm_args
        ).table()
    )
