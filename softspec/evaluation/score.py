"""A model goes over rows: their records, as they come, into a scores file that can be gone on with.

In: an `Ensemble` and a file of rows. Out: a scores file. Reads everything once before anything is computed.
"""

import hashlib
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from softspec.artefact.manifest import Manifest, member_dir
from softspec.console import tell, unbroken_stderr
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.results import Answer
from softspec.ensemble.texts import Texts
from softspec.errors import DataError
from softspec.evaluation.records import Generated, Header, Record, ScoresWriter, record_of
from softspec.evaluation.rows import Form, Notes, Question, file_digest, read_questions

AT_ONCE = 32
"""Rows that are asked for together."""
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Survey:
    """What a file of rows holds, and its digest; `prompt_tokens` of all rows together."""

    num_rows: int
    prompt_tokens: int
    form: Form
    digest: str


def survey(data: Path, texts: Texts) -> Survey:
    """Read all rows once: what is wrong in the last one is said before the model is loaded.

    Raises:
        DataError: a row is malformed, of another form than the first, cannot be tokenised or is too long.
    """
    notes, form, num_rows, prompt_tokens = Notes(), None, 0, 0
    for question in read_questions(data, notes):
        num_rows += 1
        form = form or question.form
        if question.form != form:
            raise DataError(
                f"{question.place}: a row of {question.form}, the rows before are of {form}: give each form a file"
            )
        asked = texts.asked(question.prompt, question.choices, question.place)
        prompt_tokens += len(asked.prompt_ids)
    texts.tell_notes()
    for line in notes.lines():
        tell(line)
    assert form is not None  # a file without rows is refused
    return Survey(num_rows, prompt_tokens, form, file_digest(data))


def ensemble_digest(path: Path, manifest: Manifest, base: str) -> str:
    """Of all that decides what an ensemble says: its adapters, weights, rules and base; not its calibration."""
    deciding = manifest.model_dump_json(include={"log_weights", "weights_rule", "activation"})
    digest = hashlib.sha256(f"{deciding} {manifest.base_model.fingerprint or base}".encode())
    for member in range(manifest.num_members):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update(file_digest(member_dir(path, member) / name).encode())
    return digest.hexdigest()


def header_of(
    path: Path, manifest: Manifest, base: str, data: Path, found: Survey, settings: dict[str, object]
) -> Header:
    """The header of an ensemble's scores of a file."""
    return Header(
        model=manifest.name,
        model_kind="ensemble" if manifest.num_members > 1 else "adapter",
        model_digest=ensemble_digest(path, manifest, base),
        log_weights=manifest.log_weights,
        weights_rule=manifest.weights_rule,
        data=data.name,
        data_digest=found.digest,
        num_rows=found.num_rows,
        settings=settings,
    )


def score(ensemble: Ensemble, data: Path, writer: ScoresWriter, max_tokens: int) -> None:
    """Add the records of all rows that are not in the file yet."""
    left = islice(read_questions(data), writer.num_done, None)
    with tqdm(
        total=writer.header.num_rows,
        initial=writer.num_done,
        desc="scoring",
        unit="row",
        mininterval=1.0,
        smoothing=0.1,
        file=unbroken_stderr(),
    ) as bar:
        for record in records(ensemble, left, max_tokens):
            writer.add(record)
            bar.update()


def records(ensemble: Ensemble, questions: Iterable[Question], max_tokens: int) -> Iterator[Record]:
    """What an ensemble thinks of each question; of generation rows, also what it answers, greedily."""
    rows = iter(questions)
    while chunk := list(islice(rows, AT_ONCE)):
        given = iter(_answers(ensemble, chunk, max_tokens))
        asked = [(question.prompt, question.choices) for question in chunk]
        scored = ensemble.scored_choices(asked, progress=False)
        for question, found in zip(chunk, scored, strict=True):
            generated = _judged(next(given), question.choices) if question.form == "generation" else None
            yield record_of(question, found.log_probs, found.member_log_probs, found.num_tokens, generated)


def _answers(ensemble: Ensemble, chunk: Sequence[Question], max_tokens: int) -> list[Answer]:
    prompts = [question.prompt for question in chunk if question.form == "generation"]
    if not prompts:
        return []
    return ensemble.generate(prompts, max_tokens=max_tokens, temperature=0, progress=False)


def _judged(answer: Answer, references: Sequence[str]) -> Generated:
    text = answer.text.strip()
    return Generated(
        text=answer.text,
        exact=text in {reference.strip() for reference in references},
        normalised=normalised(text) in {normalised(reference) for reference in references},
        uncertainty=answer.uncertainty,
    )


def normalised(text: str) -> str:
    """A text without case, punctuation, English articles and repeated space.

    Source: the exact match of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), for any script.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(letter for letter in folded if not _is_punctuation(letter))
    return " ".join(word for word in kept.split() if word not in ARTICLES)


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
