"""Contradictory facts with a known truth: two sources that agree on some things and contradict each other on others.

In: a folder with a base, and a seed. Out: what the members of an ensemble trained on the sources' statements became.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from softspec.app.baselines.training import cost_of
from softspec.app.demo.facts import KINDS, SOURCES, Thing, ask, draw_statements, write_rows
from softspec.app.demo.measure import by_kind, first_token_information
from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import purity, responsibilities
from softspec.maths.scoring import auroc
from softspec.train.config import TrainConfig
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Example
from softspec.train.members.base import load_base, load_tokenizer
from softspec.train.members.likelihood import base_loglik, collate
from softspec.train.members.load import load_members
from softspec.train.result.scores import score_examples, summarise_scores
from tests.pilots.base import FACTS, train_pilot


@dataclass(frozen=True)
class FactsOutcome:
    """Nats: per held-out statement of four facts (`nll`), per thing (`mi`: I(colour; member), NaN without such things).

    `fixed_nll` is that of the mixture whose weights no prefix updates. `auroc_conflict` is how well `mi` tells
    conflicts from agreed things. Responsibilities behind `purity` and `soft_source_mi` are those at alpha = 1.
    `least_load` is the load, in parts of a fair share, of the member that had least in the last tenth of the training;
    `worst_gain` is how much better than the base the worst member is on what it is responsible for. `seconds` are those
    of the optimizer steps.
    """

    base_nll: float
    member_nll: float
    mixture_nll: float
    fixed_nll: float
    mi_agreed: float
    mi_conflict: float
    mi_unseen: float
    auroc_conflict: float
    purity: float
    soft_source_mi: float
    least_load: float
    worst_gain: float
    seconds: float


def write_statements(folder: Path, things: Sequence[Thing], seed: int) -> None:
    """`train.jsonl` and `held_out.jsonl`, which have no question in common."""
    folder.mkdir()
    training = draw_statements(things, 4000, seed, FACTS)
    held_out = draw_statements(things, 400, seed + 1000, FACTS, exclude=training)
    write_rows(folder / "train.jsonl", (statement.row() for statement in training))
    write_rows(folder / "held_out.jsonl", (statement.row() for statement in held_out))


def train_on_statements(
    base: Path, folder: Path, things: Sequence[Thing], seed: int, **settings: Any
) -> FactsOutcome:
    """Train an ensemble on `train.jsonl`, score held-out statements and ask for every thing."""
    config = train_pilot(base, folder, seed, **settings)
    tokenizer = load_tokenizer(config.base_model)
    members = load_members(config.output_dir, load_base(config.base_model))
    log_weights = uniform_log_weights(members.num_members)
    rows = read_rows(str(folder / "held_out.jsonl"))
    held_out = list(read_examples(rows, Reading(tokenizer, [tokenizer.eos_token_id], config.max_length)))
    questions = [question(thing, things, tokenizer) for thing in things]

    scores = score_examples(members, held_out, log_weights, config.activation, batch_size=50)
    summary = summarise_scores(scores, log_weights, config.renyi_alpha, config.weights_rule)
    sources = torch.tensor([SOURCES.index(str(source)) for source in scores.sources])
    information = first_token_information(members, questions, log_weights, config.activation)
    mi = by_kind(information, things)
    of_kind = {kind: information[[thing.kind == kind for thing in things]] for kind in KINDS}
    assert summary.soft_source_mi is not None, "every statement has a source"
    shares = responsibilities(scores.loglik, log_weights, 1.0)
    untrained = base_loglik(members, collate(held_out, config.activation, torch.device("cpu")))
    gains = (shares * (scores.loglik - untrained)).sum(1) / shares.sum(1).clamp_min(1e-9)
    return FactsOutcome(
        base_nll=-scores.base_loglik.mean().item(),
        member_nll=summary.member_nll,
        mixture_nll=summary.prefix_posterior_nll,
        fixed_nll=summary.fixed_weights_nll,
        mi_agreed=mi["agreed"],
        mi_conflict=mi["conflict"],
        mi_unseen=mi["unseen"],
        auroc_conflict=auroc(of_kind["conflict"], of_kind["agreed"]).item(),
        purity=purity(shares, sources).item(),
        soft_source_mi=summary.soft_source_mi,
        least_load=least_load(config),
        worst_gain=gains.min().item(),
        seconds=cost_of(config.output_dir).seconds,
    )


def least_load(config: TrainConfig) -> float:
    """The load of the member that had least in the last tenth of a run, in parts of a fair share."""
    log = (config.output_dir / "training.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in log]
    late = [step["load"] for step in steps if step["step"] > 0.9 * steps[-1]["step"]]
    return min(sum(of_member) / len(late) for of_member in zip(*late, strict=True)) * config.num_members


def question(thing: Thing, things: Sequence[Thing], tokenizer: PreTrainedTokenizerBase) -> Example:
    """A question about the thing, as long as in the data, with its answer before all others."""
    others = [other for other in things if other is not thing][: FACTS - 1]
    turns = [{"role": "user", "content": ask([thing, *others])}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return Example(tuple(tokenizer(prompt)["input_ids"]), (tokenizer.eos_token_id,))
