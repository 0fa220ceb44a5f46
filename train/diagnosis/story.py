"""A diagnosis from its beginning to its end: read, probe, say what to do. Read `diagnose` first.

In: a configuration, and the ensemble that came of it if there is one. Out: `Findings`. Writes nothing and changes no
run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from softspec.artefact.manifest import Manifest, load_manifest
from softspec.console import tell
from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.data.survey import survey
from softspec.train.data.units import Unit, in_batches
from softspec.train.diagnosis.ambiguity import Ambiguity, ambiguity
from softspec.train.diagnosis.apart import Sources, cost_of, directions, find_sources, train_apart
from softspec.train.diagnosis.findings import ORDERS, ROWS, Findings, Setting, SourceGains, Stability
from softspec.train.diagnosis.growth import (
    Growth,
    growth,
    logged_growth,
    rate_of,
    run_shortly,
    shortened,
)
from softspec.train.diagnosis.price import advantages, mean_gain
from softspec.train.diagnosis.probe import lowest_force, probe, rows_together, some_of, units_of
from softspec.train.loop.schedule import ExampleOrder, total_steps
from softspec.train.loop.state import Training
from softspec.train.members.load import load_members
from softspec.train.run import check_names, prepare, read_data

ProbeName = Literal["ambiguity", "sources", "stability", "growth"]
PUSHED = 32
"""Rows on which two replicas are pushed apart."""
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)


@dataclass(frozen=True)
class Plan:
    """What is asked: which probes, of which ensemble, beside which one adapter, with how many steps and rows."""

    config: TrainConfig
    ensemble: Path | None = None
    single: Path | None = None
    probes: tuple[ProbeName, ...] = PROBES
    steps: int = 60
    rows: int = 200


def diagnose(plan: Plan) -> Findings:
    """Find out whether members can part on these data, or did.

    Raises:
        UserError: settings or files that do not fit, or an ensemble of other data than the configuration's.
    """
    config, manifest = plan.config, load_manifest(plan.ensemble) if plan.ensemble else None
    examples, held_out = read_data(config)
    known = survey(examples, config.granularity == "group", config.train_file)
    if manifest:
        _check_same(manifest, config, known.digest)
    order = ExampleOrder(config, len(examples), known.bundles)
    found = Findings(Setting.of(config, total_steps(config, order.steps_per_epoch), _groups(config, order)))
    judged = some_of(held_out or examples, plan.rows, config.seed)
    if not held_out:
        found = _noted(found, "there is no eval_file: members are judged by rows that they learnt")
    sources = find_sources(examples, held_out, plan.rows, config.seed)
    _tell_costs(plan, sources, len(judged))
    if "ambiguity" in plan.probes:
        found = _with_ambiguity(found, plan, manifest, judged)
    if "sources" in plan.probes or "stability" in plan.probes:
        found = _with_sources(found, plan, sources, examples, judged)
    if "growth" in plan.probes and config.num_members > 1:
        found = replace(found, growth=_growth(plan, examples, judged))
    return found


def _check_same(manifest: Manifest, config: TrainConfig, digest: str) -> None:
    """Refuse a configuration that the ensemble did not come of."""
    began = manifest.training.get("examples_sha256")
    if began is not None and began != digest:
        raise ConfigError(
            "train_file gives other examples than the ensemble was trained on; give its own configuration"
        )
    if manifest.num_members != config.num_members or manifest.objective != config.objective:
        raise ConfigError(
            f"the ensemble has {manifest.num_members} members ({manifest.objective}), the configuration says "
            f"{config.num_members} ({config.objective}); give the one that it was trained with"
        )


def _groups(config: TrainConfig, order: ExampleOrder) -> int | None:
    """How many groups a step has, the mean rounded down; None where none are routed."""
    if config.granularity != "group":
        return None
    return max(1, math.floor(config.examples_per_step / order.examples_per_piece + 1e-9))


def _noted(findings: Findings, note: str) -> Findings:
    return replace(findings, notes=(*findings.notes, note))


def _tell_costs(plan: Plan, sources: Sources | None, judged: int) -> None:
    """Say what is going to be computed, before it begins."""
    config, steps = plan.config, plan.steps
    if sources and {"sources", "stability"} & set(plan.probes):
        tell(cost_of(sources, config, steps))
    if "stability" in plan.probes:
        tell(f"stability: up to 64 gradients, and {judged} rows three times, under one adapter")
    if "growth" in plan.probes and not plan.ensemble and config.num_members > 1:
        tell(
            f"growth: twice {steps} steps of the run itself, at alpha {config.renyi_alpha:g} and at 0, "
            f"{config.examples_per_step} rows under {config.num_members} members each"
        )


@torch.no_grad()
def _table(members_dir: Path, training: Training, units: Sequence[Unit]) -> Tensor:
    """How likely units are under the members of an ensemble, (K, N), nats."""
    with training.members.removed() as base:
        members = load_members(members_dir, base)
        tables = [
            training.objective.batch(members, part).table().loglik.cpu()
            for part in in_batches(units, training.config.micro_batch_size)
        ]
    return torch.cat(tables, 1)


def _with_ambiguity(
    found: Findings, plan: Plan, manifest: Manifest | None, judged: Sequence[Unit]
) -> Findings:
    if plan.ensemble is None or manifest is None:
        return _noted(found, "no ambiguity decomposition: there is no ensemble yet")
    if plan.config.granularity == "token":
        return _noted(found, "no ambiguity decomposition: tokens are routed, and rows are not")
    sequence = plan.config.model_copy(update={"num_members": 1})
    training = prepare(sequence, check_names(sequence), judged, [])
    units = list(training.examples)
    loglik = _table(plan.ensemble, training, units)
    single = _table(plan.single, training, units) if plan.single else None
    if single is not None and len(single) != 1:
        raise ConfigError(f"--single has {len(single)} members, expected an ensemble of one")
    return replace(found, ambiguity=_decomposed(plan.config, manifest, units, loglik, single))


def _decomposed(
    config: TrainConfig, manifest: Manifest, units: Sequence[Unit], loglik: Tensor, single: Tensor | None
) -> Ambiguity:
    weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64)
    log_weights = torch.tensor(manifest.log_weights, dtype=torch.float64)
    together = units_of(units, rows_together(config)) if config.granularity == "group" else None
    return ambiguity(
        loglik, log_weights, config.renyi_alpha, weights, None if single is None else single[0], together
    )


def _with_sources(
    found: Findings, plan: Plan, sources: Sources | None, examples: Sequence[Unit], judged: Sequence[Unit]
) -> Findings:
    """Gains of sources and the stability around the adapter of all of them; without sources, around one adapter."""
    config = plan.config
    if sources:
        training, table = train_apart(config, sources, plan.steps)
        own = rows_together(config)
        orders = sorted({*ORDERS, config.renyi_alpha} - {0.0})
        sizes = sorted({*ROWS, own})
        gains = SourceGains(
            plan.steps,
            sources.left_out,
            {name: mean_gain(table, number) for number, name in enumerate(sources.names)},
            mean_gain(table),
            {
                (order, rows): found
                for rows in sizes
                for order, found in zip(
                    orders, advantages(table, orders, rows, config.num_members), strict=True
                )
            },
        )
        found = replace(found, sources=gains) if "sources" in plan.probes else found
        member, ways = len(sources.names), directions(training)
    else:
        found = _noted(
            found, "no gains of sources: rows have no 'source' or 'group' with at least two values"
        )
        if "stability" not in plan.probes:
            return found
        alone = shortened(config, plan.steps, 0.0).model_copy(update={"num_members": 1})
        training = prepare(alone, check_names(alone), examples, judged)
        run_shortly(training, [], plan.steps, "one adapter")
        member, ways = 0, []
    if "stability" not in plan.probes:
        return found
    routed = replace(training, config=_routed(config, training))
    return replace(found, stability=_stability(routed, member, ways, plan.rows))


def _routed(config: TrainConfig, training: Training) -> TrainConfig:
    """The configuration of a short run whose units are routed as those of the run itself."""
    return training.config.model_copy(
        update={
            "granularity": config.granularity,
            "group_rows": config.group_rows,
            "renyi_alpha": config.renyi_alpha,
        }
    )


def _stability(training: Training, member: int, ways: Sequence[Tensor], rows: int) -> Stability:
    config = training.config
    found = probe(training, member=member, rows=rows, directions=ways, seed=config.seed)
    own = rows_together(config)
    sizes = sorted({*ROWS, own}) if any(found.keys) else [1]
    pushed = some_of(
        training.held_out or training.examples, max(PUSHED, config.examples_per_step), config.seed
    )
    return Stability(
        found.critical_alpha(own),
        {size: found.critical_alpha(size) for size in sizes},
        lowest_force(training, member, pushed, found.direction),
    )


def _growth(plan: Plan, examples: Sequence[Unit], judged: Sequence[Unit]) -> Growth:
    config = plan.config
    if plan.ensemble:
        return logged_growth(plan.ensemble, config.num_members)
    looked_at = judged[: max(config.examples_per_step, 32)]
    points = {}
    for alpha in (config.renyi_alpha, 0.0):
        short = shortened(config, plan.steps, alpha)
        training = prepare(short, check_names(short), examples, looked_at)
        units = list(training.held_out)
        points[alpha] = run_shortly(training, units, plan.steps, f"members at alpha {alpha:g}")
    return growth(config.num_members, points[config.renyi_alpha], rate_of(points[0.0]))
