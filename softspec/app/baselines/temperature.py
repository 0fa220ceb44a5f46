"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599) of any scores; no row has a say in its own temperature.

In: the records of a model. Out: records of the same rows under one predictive over their choices, sharpened or
flattened. Of an ensemble its mixture is scaled, after mixing, so members are no longer there. Runs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import GroupKFold
from torch import Tensor

from softspec.evaluation.records import Header, Record
from softspec.maths.options import option_distributions

FOLDS = 5
MOST = 100.0
"""Temperatures are sought from 1 / MOST to MOST."""
NEVER = -1e9
"""The log-probability of choices that a row does not have."""


@dataclass(frozen=True)
class Fit:
    """What was fitted: a temperature for every fold, on `rows` labelled rows in all."""

    temperatures: tuple[float, ...]
    rows: int


def scaled(records: Sequence[Record]) -> tuple[list[Record], Fit] | str:
    """Every row scaled by the temperature that suits the rows of the other folds best; or why that cannot be.

    Rows that ask the same are in one fold. Generation rows have no choices between which to be sure: they stay as they
    are.
    """
    labelled = [number for number, record in enumerate(records) if shares(record) is not None]
    items = [records[number].item for number in labelled]
    if (num_folds := min(FOLDS, len(set(items)))) < 2:
        return f"needs labelled choices of 2 different prompts at least, found {num_folds}"
    fold_of = dict.fromkeys((record.item for record in records), 0)
    folds = GroupKFold(num_folds).split(labelled, groups=items)
    temperatures = []
    for fold, (others, own) in enumerate(folds):
        temperatures.append(temperature_of([records[labelled[place]] for place in others]))
        fold_of.update(dict.fromkeys((items[place] for place in own), fold))
    found = [_at(record, temperatures[fold_of[record.item]]) for record in records]
    return found, Fit(tuple(temperatures), len(labelled))


def per_token(header: Header, records: Sequence[Record]) -> list[Record]:
    """Records of choices as if each had one token, with the mean log-probability of its tokens; others as they are."""
    weights = torch.tensor(header.log_weights, dtype=torch.float64)
    return [
        record if record.form != "choices" else _of_one_token(weights, header, record) for record in records
    ]


def _of_one_token(log_weights: Tensor, header: Header, record: Record) -> Record:
    found = option_distributions(
        torch.tensor([record.member_log_probs], dtype=torch.float64),
        log_weights,
        mixture_log_probs=torch.tensor([record.log_probs]) if header.weights_rule == "fixed" else None,
        num_tokens=torch.tensor([record.num_tokens]),
    )
    log_probs = tuple(found.probabilities[0].log().tolist())
    return replace(record, log_probs=log_probs, num_tokens=(1,) * len(record.choices))


def temperature_of(records: Sequence[Record]) -> float:
    """The temperature at which these labelled rows are likeliest, counted by their weight; nats over their choices."""
    most = max(len(record.choices) for record in records)
    logs, labels = np.full((len(records), most), NEVER), np.zeros((len(records), most))
    for row, record in enumerate(records):
        logs[row, : len(record.choices)] = log_softmax(record.log_probs)
        labels[row, : len(record.choices)] = record.weight * np.array(shares(record))

    def nll(log_temperature: float) -> float:
        return -float((labels * log_softmax(logs / np.exp(log_temperature), 1)).sum())

    bounds = (-np.log(MOST), np.log(MOST))
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x))


def shares(record: Record) -> tuple[float, ...] | None:
    """How much of the truth each choice is, (C,), summing to 1; None without a label, and of generation rows.

    An `answer` is the whole truth; without one `votes` or `ratings` share it, each rating as one vote.
    """
    if record.form != "choices":
        return None
    if record.answer is not None:
        return tuple(float(choice == record.answer) for choice in range(len(record.choices)))
    votes = np.array(record.votes or np.zeros(len(record.choices)))
    for picked in (record.ratings or {}).values() if record.votes is None else ():
        votes[list(picked)] += 1 / len(picked)
    return tuple((votes / votes.sum()).tolist()) if votes.sum() else None


def _at(record: Record, temperature: float) -> Record:
    log_probs = record.log_probs
    if record.form == "choices":
        log_probs = tuple(log_softmax(np.array(log_probs) / temperature).tolist())
    return replace(record, log_probs=log_probs, member_log_probs=(log_probs,))
