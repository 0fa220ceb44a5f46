"""What each member answers by itself, several times: drawn through the library, kept in a file, gone on with.

In: an ensemble directory and prompts. Out: JSONL, a header and then a line for each member and prompt. Each member is
loaded as an ensemble of one, so its answers are those of its adapter alone. Judges nothing.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from softspec.artefact.manifest import Manifest, load_manifest, member_dir, save_manifest
from softspec.artefact.validation import first_problem
from softspec.console import unbroken_stderr
from softspec.ensemble.load import load
from softspec.errors import ConfigError, DataError
from softspec.evaluation.rows import AskedRow, Prompt
from softspec.train.data.json_file import read_json_file
from softspec.train.data.rows import parse_row

AT_ONCE = 16
"""Prompts that are asked together."""


class SamplesHeader(BaseModel):
    """What all answers have in common; `model_digest` is that of `softspec evaluate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    softspec_samples: Literal[1] = 1
    model: str
    model_digest: str
    num_members: int = Field(ge=1)
    prompts_digest: str
    num_prompts: int = Field(ge=1)
    samples: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    temperature: float
    seed: int


class SamplesLine(BaseModel):
    """The answers (S,) of one member to one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    member: int
    row: int
    prompt: str | list[dict[str, Any]]
    answers: list[str]


@dataclass(frozen=True)
class Sampled:
    """One prompt and what was answered: `answers` (K, S)."""

    prompt: Prompt
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn.

    Raises:
        ConfigError: a setting means nothing.
    """

    samples: int = 8
    max_tokens: int = 48
    temperature: float = 1.0
    seed: int = 0
    backend: Literal["vllm", "transformers"] = "transformers"
    base: str | None = None
    base_unchecked: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_tokens < 1 or not 0 <= self.temperature < math.inf:
            raise ConfigError("--samples and --max-tokens must be at least 1, --temperature at least 0")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: `prompt` or `messages` of each row, without an assistant's last turn.

    Raises:
        DataError: the file cannot be read, has no rows, or a row has no prompt.
    """
    prompts: list[Prompt] = []
    for place, content in read_json_file(path):
        turns = content.get("messages")
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            is_answered = turns[-1].get("role") == "assistant"
            content = {**content, "messages": turns[:-1] if is_answered else turns}
        prompts.append(parse_row(content, AskedRow, place).as_prompt())
    if not prompts:
        raise DataError(f"{path}: no rows found; expected one prompt a line, as 'prompt' or 'messages'")
    return prompts


def draw_samples(
    directory: Path, digest: str, prompts: Sequence[Prompt], path: Path, drawing: Drawing
) -> None:
    """Write what every member answers to every prompt; a file that is there is gone on with.

    Raises:
        ConfigError: the file has answers of something else.
    """
    manifest = load_manifest(directory)
    header = SamplesHeader(
        model=manifest.name,
        model_digest=digest,
        num_members=manifest.num_members,
        prompts_digest=hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        num_prompts=len(prompts),
        samples=drawing.samples,
        max_tokens=drawing.max_tokens,
        temperature=drawing.temperature,
        seed=drawing.seed,
    )
    done = _begin(path, header)
    total = manifest.num_members * len(prompts)
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(
            total=total,
            initial=done,
            desc="asking members",
            unit="prompt",
            mininterval=1.0,
            file=unbroken_stderr(),
        ) as bar,
    ):
        for member in range(done // len(prompts), manifest.num_members):
            first = max(0, done - member * len(prompts))
            for line in _answers(directory, manifest, member, prompts, first, drawing):
                file.write(line.model_dump_json() + "\n")
                file.flush()
                bar.update()


def read_samples(path: Path) -> tuple[SamplesHeader, list[Sampled]]:
    """All answers of a complete file.

    Raises:
        DataError: it cannot be read, is malformed, or answers are missing.
    """
    header, lines = _read(path)
    if len(lines) != header.num_members * header.num_prompts:
        raise DataError(
            f"'{path}' has {len(lines)} of {header.num_members * header.num_prompts} lines of answers: give "
            "--red-team-prompts again to go on"
        )
    found = []
    for row in range(header.num_prompts):
        own = [lines[member * header.num_prompts + row] for member in range(header.num_members)]
        found.append(Sampled(own[0].prompt, tuple(tuple(line.answers) for line in own)))
    return header, found


def _answers(
    directory: Path,
    manifest: Manifest,
    member: int,
    prompts: Sequence[Prompt],
    first: int,
    drawing: Drawing,
) -> Iterator[SamplesLine]:
    with (
        member_alone(directory, manifest, member) as alone,
        load(
            alone, backend=drawing.backend, base=drawing.base, base_unchecked=drawing.base_unchecked
        ) as model,
    ):
        for start in range(first, len(prompts), AT_ONCE):
            part = prompts[start : start + AT_ONCE]
            answers = model.generate(
                part,
                max_tokens=drawing.max_tokens,
                temperature=drawing.temperature,
                # Members draw apart, and every answer has a seed of its own, wherever the run is gone on.
                seed=drawing.seed + (member * len(prompts) + start) * drawing.samples,
                n=drawing.samples,
                progress=False,
            )
            texts = [answer.text for answer in answers]
            for number, prompt in enumerate(part):
                own = texts[number * drawing.samples : (number + 1) * drawing.samples]
                yield SamplesLine(member=member, row=start + number, prompt=prompt, answers=own)


@contextmanager
def member_alone(directory: Path, manifest: Manifest, member: int) -> Iterator[Path]:
    """An ensemble directory with this member only."""
    changes: Mapping[str, Any] = {"num_members": 1, "log_weights": (0.0,), "calibration": None}
    with TemporaryDirectory() as folder:
        alone = Path(folder)
        member_dir(alone, 0).symlink_to(member_dir(directory, member).resolve())
        save_manifest(alone, manifest.model_copy(update=changes))
        yield alone


def _begin(path: Path, header: SamplesHeader) -> int:
    """How many lines of answers the file has; makes it where it is not there."""
    if not path.exists() or not path.stat().st_size:
        path.write_text(header.model_dump_json() + "\n", encoding="utf-8")
        return 0
    whole = path.read_bytes().rpartition(b"\n")[0]
    path.write_bytes(whole + b"\n")
    found, lines = _read(path)
    for key, value in header.model_dump().items():
        if getattr(found, key) != value:
            raise ConfigError(
                f"'{path}' has answers of another {key} ({getattr(found, key)}, not {value}): name another file, or "
                "delete it"
            )
    return len(lines)


def _read(path: Path) -> tuple[SamplesHeader, list[SamplesLine]]:
    number = 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = SamplesHeader.model_validate_json(lines[0] if lines else "")
        found = []
        for number, line in enumerate(lines[1:], start=1):
            found.append(SamplesLine.model_validate_json(line))
            _require_next(found[-1], number - 1, header)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}; expected answers of members") from error
    except (ValidationError, ValueError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        raise DataError(f"{path}:{number + 1}: {reason}; expected answers of 'softspec report'") from error
    return header, found


def _require_next(line: SamplesLine, place: int, header: SamplesHeader) -> None:
    member, row = divmod(place, header.num_prompts)
    if (line.member, line.row, len(line.answers)) != (member, row, header.samples):
        raise ValueError(
            f"found {len(line.answers)} answers of member {line.member} to prompt {line.row}, expected "
            f"{header.samples} of member {member} to prompt {row}"
        )
