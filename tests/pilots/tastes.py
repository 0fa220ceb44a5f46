"""Contradictory preferences with a known truth: annotators who, of two answers, always prefer the same one.

In: a folder with a base, and a seed. Out: what the members of an ensemble trained on their choices became. Every second
annotator has the other taste; nothing in a pair but the choice itself tells whose it is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softspec.app.demo.facts import Thing, ask, write_rows
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import dpo_loglik, responsibilities, soft_source_mi
from softspec.train.data.preferences import read_preferences
from softspec.train.data.reading import Reading
from softspec.train.data.sources import read_rows
from softspec.train.members.base import load_base, load_tokenizer
from softspec.train.members.likelihood import base_loglik, member_loglik
from softspec.train.members.load import load_members
from softspec.train.objective.preferences import collate_preferences
from tests.pilots.base import FACTS, train_pilot

TASTES = ("red", "blue")
ANNOTATORS = 40
JUDGED_TOGETHER = 4
TRAINING = {"objective": "dpo", "micro_batch_size": 16, "max_steps": 60}
NOISE = 0.1
"""How often an annotator prefers what the others prefer."""


@dataclass(frozen=True)
class TasteOutcome:
    """A member's rate: how often, of the two answers to a held-out question, it gives that of the first taste.

    `rate_variance` is over members, 0.25 when half of them have each taste. `soft_taste_mi` is I(member; taste), nats,
    from the responsibilities (alpha = 1) for `JUDGED_TOGETHER` held-out pairs of one annotator in any run.
    """

    lowest_rate: float
    highest_rate: float
    rate_variance: float
    soft_taste_mi: float


def write_judgements(folder: Path, things: Sequence[Thing], seed: int) -> None:
    """`train.jsonl` and `held_out.jsonl`, annotator after annotator."""
    folder.mkdir()
    rng = random.Random(f"judgements {seed}")
    for name, pairs in (("train.jsonl", 60), ("held_out.jsonl", JUDGED_TOGETHER)):
        rows = [_judgement(rng, things, annotator) for annotator in range(ANNOTATORS) for _ in range(pairs)]
        write_rows(folder / name, rows)


def train_on_judgements(base: Path, folder: Path, seed: int, **settings: Any) -> TasteOutcome:
    """Train an ensemble on `train.jsonl` and see what it prefers on held-out pairs."""
    together = {"group_rows": JUDGED_TOGETHER} if settings["granularity"] == "group" else {}
    config = train_pilot(base, folder, seed, **{**TRAINING, **together, **settings})
    tokenizer = load_tokenizer(config.base_model)
    members = load_members(config.output_dir, load_base(config.base_model))
    rows = read_rows(str(folder / "held_out.jsonl"))
    pairs = list(read_preferences(rows, Reading(tokenizer, [tokenizer.eos_token_id], config.max_length)))

    batch = collate_preferences(members, pairs, config.activation)
    with torch.no_grad():
        log_ratios = _log_ratios(member_loglik(members, batch))
    gaps = log_ratios - _log_ratios(base_loglik(members, batch))
    first = [tokenizer.decode(pair.chosen.completion_ids).startswith(TASTES[0]) for pair in pairs]
    gives_first = torch.where(torch.tensor(first), log_ratios, -log_ratios).sigmoid()
    of_annotators = dpo_loglik(gaps, config.beta).unflatten(1, (ANNOTATORS, JUDGED_TOGETHER)).sum(2)
    shares = responsibilities(of_annotators, uniform_log_weights(members.num_members), 1.0)
    rates = gives_first.mean(1)
    return TasteOutcome(
        lowest_rate=rates.min().item(),
        highest_rate=rates.max().item(),
        rate_variance=rates.var(correction=0).item(),
        soft_taste_mi=soft_source_mi(shares, torch.arange(ANNOTATORS) % len(TASTES)).item(),
    )


def _log_ratios(loglik: Tensor) -> Tensor:
    """The log-ratios of chosen to rejected completions, (..., N), from the (..., 2 N) of `collate_preferences`."""
    chosen, rejected = loglik.cpu().chunk(2, -1)
    return chosen - rejected


def _judgement(rng: random.Random, things: Sequence[Thing], annotator: int) -> dict[str, Any]:
    taste = (annotator + (rng.random() < NOISE)) % len(TASTES)
    answers = [{"role": "assistant", "content": ", ".join([colour] * FACTS)} for colour in TASTES]
    return {
        "prompt": [{"role": "user", "content": ask(rng.sample(things, FACTS))}],
        "chosen": [answers[taste]],
        "rejected": [answers[1 - taste]],
        "group": annotator,
    }
