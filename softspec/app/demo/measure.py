"""What the demo measures offline: held-out scores, and how far members disagree about single questions.

In: an ensemble directory. Out: nats. Trains and serves nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softspec.app.demo.facts import COLOURS, KINDS, Statement, Thing, ask, lowest_nll
from softspec.artefact.activation import Activation
from softspec.artefact.base import end_of_turn_ids
from softspec.artefact.manifest import load_manifest, save_manifest
from softspec.maths.mixture import sequence_loglik
from softspec.maths.scoring import auroc
from softspec.maths.uncertainty import mutual_information
from softspec.train.data.messages import Message
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.rows import Row
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Example
from softspec.train.loop.facts import as_json
from softspec.train.members.base import load_base, load_tokenizer
from softspec.train.members.likelihood import collate, completion_logprobs
from softspec.train.members.load import load_members
from softspec.train.members.members import Members
from softspec.train.result.scores import score_examples, summarise_scores

MAX_LENGTH = 512


@dataclass(frozen=True)
class Measured:
    """One ensemble, in nats: per held-out example (N,) as a mixture and of the base alone, per question (Q,).

    `soft_source_mi` is how far members follow the sources, from 0 to log 2 for two sources.
    """

    nll: Tensor
    base_nll: Tensor
    information: Tensor
    soft_source_mi: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, which `from_json` reads back."""
        return {key: each.tolist() if isinstance(each, Tensor) else each for key, each in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measured":
        """What `to_json` gave."""
        nll, base_nll, information = (
            torch.tensor(content[key], dtype=torch.float64) for key in ("nll", "base_nll", "information")
        )
        return cls(nll, base_nll, information, content["soft_source_mi"])


def measure(ensemble_dir: Path, base: str, held_out: Path, things: Sequence[Thing]) -> Measured:
    """Score held-out examples and one question per thing; the scores also go into the ensemble's manifest."""
    manifest = load_manifest(ensemble_dir)
    tokenizer = load_tokenizer(base)
    reading = Reading(tokenizer, end_of_turn_ids(tokenizer, base, None), MAX_LENGTH)
    examples = list(read_examples(read_rows(str(held_out)), reading))
    questions = [reading.examples(_question(thing), thing.name)[0] for thing in things]
    members = load_members(ensemble_dir, load_base(base, dtype="float32"))
    log_weights = torch.tensor(manifest.log_weights, dtype=torch.float64)

    scores = score_examples(members, examples, log_weights, manifest.activation)
    information = first_token_information(members, questions, log_weights, manifest.activation)

    summary = summarise_scores(scores, log_weights, manifest.renyi_alpha, manifest.weights_rule)
    assert summary.soft_source_mi is not None, "every statement has a source"
    save_manifest(ensemble_dir, manifest.model_copy(update={"held_out": as_json(summary)}))
    return Measured(
        nll=-sequence_loglik(log_weights, scores.loglik),
        base_nll=-scores.base_loglik,
        information=information,
        soft_source_mi=summary.soft_source_mi,
    )


@torch.no_grad()
def first_token_information(
    members: Members,
    questions: Sequence[Example],
    log_weights: Tensor,
    activation: Activation,
) -> Tensor:
    """I(first answer token; member) of every question, (Q,), exact over the vocabulary.

    An answer is one colour and colours begin with different tokens, so this is nearly all of I(answer; member).
    """
    device = next(members.model.parameters()).device
    information = []
    for question in questions:
        logprobs = completion_logprobs(members, collate([question], activation, device))
        information.append(mutual_information(logprobs[:, 0], log_weights.to(logprobs)).double().cpu())
    return torch.stack(information)


def summarise_measured(
    measured: Mapping[str, Measured], things: Sequence[Thing], held_out: Sequence[Statement]
) -> dict[str, Any]:
    """Held-out scores, mutual information by kind, and whether they tell anything; None of models not in `measured`.

    Args:
        measured: the "ensemble", and with it or not the "single" adapter and the control "alpha_0".
    """
    ensemble = measured["ensemble"]
    scores = {key: {"nll": measured[key].nll.mean().item()} for key in measured}
    tests = {key: disagreement_tests(each, things) for key, each in measured.items() if key != "single"}
    return {
        "held_out": {
            "base": {"nll": ensemble.base_nll.mean().item()},
            **{key: scores.get(key) for key in ("single", "alpha_0", "ensemble")},
        },
        "lowest_nll": lowest_nll(held_out),
        "gain_over_single": _gain(measured["single"], ensemble) if "single" in measured else None,
        "mutual_information": by_kind(ensemble.information, things),
        "disagreement_tests": {key: tests.get(key) for key in ("alpha_0", "ensemble")},
    }


def by_kind(information: Tensor, things: Sequence[Thing]) -> dict[str, float]:
    """Mean nats of the questions of each kind, from (Q,)."""
    return {kind: _of_kind(information, things, kind).mean().item() for kind in KINDS}


def disagreement_tests(measured: Measured, things: Sequence[Thing]) -> dict[str, Any]:
    """Does disagreement follow the contradictions? 0.5 and 0 nats are what chance gives."""
    conflict, agreed = (_of_kind(measured.information, things, kind) for kind in ("conflict", "agreed"))
    return {
        "mutual_information": by_kind(measured.information, things),
        "auroc_conflict": auroc(conflict, agreed).item(),
        "soft_source_mi": measured.soft_source_mi,
    }


def _gain(single: Measured, ensemble: Measured) -> dict[str, float]:
    """How much less the ensemble's NLL is, in nats per example."""
    difference = single.nll - ensemble.nll
    return {
        "nats": difference.mean().item(),
        "standard_error": (difference.std() / len(difference) ** 0.5).item(),
    }


def _question(thing: Thing) -> Row:
    """The question in training form; the answer in it is never looked at."""
    turns = [Message(role="user", content=ask([thing])), Message(role="assistant", content=COLOURS[0])]
    return Row(messages=turns)


def _of_kind(information: Tensor, things: Sequence[Thing], kind: str) -> Tensor:
    return information[torch.tensor([thing.kind == kind for thing in things])]
