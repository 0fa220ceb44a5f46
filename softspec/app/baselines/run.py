"""The story of `softspec baselines`: for each seed train what is missing, score the rows under every model, compare.

In: a training configuration and rows. Out: a folder for each seed with models and scores files, and a `Table`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from softspec.app.baselines.adapters import base_alone, dropout_samples
from softspec.app.baselines.beside import beside
from softspec.app.baselines.laplace import DoesNotApply, last_layer_records
from softspec.app.baselines.polygraph import estimators_by_name, polygraph_scores
from softspec.app.baselines.scoring import Data, check_scores, derived, loaded, opened, score_directory
from softspec.app.baselines.temperature import per_token, scaled
from softspec.app.baselines.training import Cost, Origin, check_finished, cost_of, is_same, trained
from softspec.app.baselines.variants import ENSEMBLE, NAMES, Noise, at_order, needed, variant
from softspec.artefact.fingerprint import fingerprint
from softspec.console import tell, unbroken_stderr
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError
from softspec.evaluation.records import ScoresWriter, read_header, read_records
from softspec.evaluation.rows import read_questions
from softspec.evaluation.score import survey as survey_rows
from softspec.train.config import TrainConfig
from softspec.train.data.survey import survey
from softspec.train.data.units import Unit
from softspec.train.run import check_base, read_data

KINDS = {
    ENSEMBLE: "ensemble",
    "base": "base model, zero-shot",
    "single": "one adapter, same steps",
    "wide": "one adapter, K times the rank and the steps",
    "independent": "K adapters trained independently",
    "dropout": "one adapter with dropout, draws of its weights",
    "laplace": "one adapter, draws of its last layer",
}


@dataclass(frozen=True)
class Scored:
    """One line of a table: a model of one seed, its scores and its cost; what was fitted, in words."""

    name: str
    scores: Path
    cost: Cost
    note: str = ""


@dataclass
class OfSeed:
    """Everything of one seed; `left_out` says why a baseline is not there.

    `polygraph`: lm-polygraph's estimator -> what it says of each row's answer by the single adapter.
    """

    seed: int
    models: list[Scored] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    polygraph: dict[str, list[float]] = field(default_factory=dict)

    def scores_of(self, name: str) -> Path:
        """The scores file of a model that is there."""
        return next(model.scores for model in self.models if model.name == name)


@dataclass(frozen=True)
class Plan:
    """What is asked for: baselines and ensembles of other orders by name, seeds, and the noise of MC dropout."""

    config: TrainConfig
    data: Data
    folder: Path
    names: tuple[str, ...]
    orders: tuple[str, ...]
    seeds: tuple[int, ...]
    noise: Noise


def run_baselines(plan: Plan, length_normalise: bool = False) -> list[OfSeed]:
    """Train and score everything that is asked for and not there yet.

    Args:
        length_normalise: temperatures scale the mean log-probability of a choice's tokens.
    Raises:
        ConfigError: a baseline does not fit the configuration, a package is missing, or what lies in the folder is of
            something else; told before anything is trained.
        Interrupted: by a signal; the same command goes on.
    """
    check_packages(plan)
    check_base(plan.config)
    units, origin = _read(plan.config)
    for seed in plan.seeds:
        check_scores(_scores(plan, seed), plan.data)
        for config in _configs(plan, seed):
            check_finished(config, origin)
    return [_of_seed(plan, seed, units, origin, length_normalise) for seed in plan.seeds]


def check_packages(plan: Plan) -> None:
    """Import what lies beside the environment, if it will be needed.

    Raises:
        ConfigError: it is not installed.
    """
    if "laplace" in plan.names and plan.data.survey.form == "choices":
        beside("laplace")
    if "polygraph" in plan.names and plan.data.survey.form == "generation":
        estimators_by_name()


def _of_seed(plan: Plan, seed: int, units: Sequence[Unit], origin: Origin, length_normalise: bool) -> OfSeed:
    found, folder = OfSeed(seed), _folder(plan, seed)
    models = {config.name: _model(plan, config, origin) for config in _configs(plan, seed)}
    _scores(plan, seed).mkdir(parents=True, exist_ok=True)
    for name in (ENSEMBLE, *plan.orders, *(name for name in NAMES if name in plan.names or name in models)):
        if name == "base" or name in models:
            found.models.append(_score(plan, name, models, folder, seed))
    for name, add in (("laplace", _laplace), ("polygraph", _polygraph)):
        if name in plan.names:
            try:
                add(plan, found, models["single"], units)
            except DoesNotApply as reason:
                found.left_out[name] = str(reason)
    if "temperature" in plan.names:
        _temperature(found, length_normalise)
    return found


def _score(plan: Plan, name: str, models: dict[str, Path], folder: Path, seed: int) -> Scored:
    """Score the rows under one directory."""
    if name == "base":
        directory, cost = base_alone(plan.config, folder), Cost(0, 0.0, 0, 1)
    else:
        directory, cost = models[name], cost_of(models[name])
    if name == "dropout":
        directory, cost = (
            dropout_samples(directory, plan.noise, seed),
            replace(cost, passes=plan.noise.samples),
        )
    output = _scores(plan, seed) / f"{name}.jsonl"
    return Scored(
        name, score_directory(directory, name, KINDS.get(name, KINDS[ENSEMBLE]), plan.data, output), cost
    )


def _laplace(plan: Plan, found: OfSeed, single: Path, units: Sequence[Unit]) -> None:
    """Add last-layer Laplace of the one adapter."""
    if plan.data.survey.form != "choices":
        raise DoesNotApply("needs rows of choices")
    source, samples = found.scores_of("single"), plan.noise.samples
    settings = {"samples": samples, "seed": found.seed}
    header = derived(source, samples, model="laplace", model_kind=KINDS["laplace"], settings=settings)
    output = source.with_name("laplace.jsonl")
    with opened(output, header) as file:
        if file.num_done < header.num_rows:
            tell(f"fitting the last layer of {single}")
            with loaded(single, plan.data) as ensemble:
                records = last_layer_records(
                    ensemble, plan.config, units, plan.data.path, source, samples, found.seed
                )
                for record in islice(records, file.num_done, None):
                    file.add(record)
    # All draws share the states of one pass.
    found.models.append(Scored("laplace", output, replace(cost_of(single), passes=1)))


def _polygraph(plan: Plan, found: OfSeed, single: Path, units: Sequence[Unit]) -> None:
    """Add lm-polygraph's scores of the one adapter's answers, which are kept once all are there."""
    if plan.data.survey.form != "generation":
        raise DoesNotApply("judges answers that are generated: needs rows with reference answers")
    source = found.scores_of("single")
    output = source.with_name("polygraph.json")
    asked = {
        "samples": plan.noise.samples,
        "max_tokens": plan.data.max_tokens,
        "of": read_header(source).model_dump(mode="json"),
    }
    if output.exists() and (known := json.loads(output.read_text(encoding="utf-8")))["asked"] == asked:
        found.polygraph = known["scores"]
        return
    tell(f"answering {plan.data.survey.num_rows} rows for lm-polygraph, {plan.noise.samples + 1} times each")
    with loaded(single, plan.data) as ensemble:
        questions = tqdm(
            read_questions(plan.data.path),
            total=plan.data.survey.num_rows,
            unit="row",
            desc="answering",
            file=unbroken_stderr(),
        )
        rows = list(
            polygraph_scores(ensemble, questions, plan.noise.samples, plan.data.max_tokens, found.seed)
        )
    found.polygraph = {name: [row[name] for row in rows] for name in rows[0]}
    output.write_text(json.dumps({"asked": asked, "scores": found.polygraph}), encoding="utf-8")


def _temperature(found: OfSeed, length_normalise: bool) -> None:
    """Add every model of the seed again, with a temperature."""
    for model in list(found.models):
        name = f"{model.name}+temperature"
        records = list(read_records(model.scores))
        if length_normalise:
            records = per_token(read_header(model.scores), records)
        fitted = scaled(records)
        if isinstance(fitted, str):
            found.left_out[name] = fitted
            continue
        scaled_records, fit = fitted
        kind = f"{read_header(model.scores).model_kind}, temperature"
        settings = {"temperatures": fit.temperatures}
        header = derived(model.scores, 1, model=name, model_kind=kind, settings=settings)
        output = model.scores.with_name(f"{name}.jsonl")
        with ScoresWriter(output, header, overwrite=True) as file:
            for record in scaled_records:
                file.add(record)
        low, high = min(fit.temperatures), max(fit.temperatures)
        note = f"temperature {low:.2f} to {high:.2f} in {len(fit.temperatures)} folds of {fit.rows} rows"
        found.models.append(Scored(name, output, model.cost, note))


def _model(plan: Plan, config: TrainConfig, origin: Origin) -> Path:
    """The trained model of a configuration; the ensemble of the configuration's own place, if it is the same."""
    own = plan.config.output_dir
    if config.name == ENSEMBLE and not config.output_dir.exists() and is_same(config, own, origin):
        return own
    return trained(config)


def _configs(plan: Plan, seed: int) -> list[TrainConfig]:
    folder = _folder(plan, seed)
    return [variant(plan.config, name, seed, plan.noise, folder) for name in needed(plan.names + plan.orders)]


def _folder(plan: Plan, seed: int) -> Path:
    return plan.folder / f"seed-{seed}"


def _scores(plan: Plan, seed: int) -> Path:
    """Where the scores files of these rows are."""
    return _folder(plan, seed) / f"scores-{plan.data.path.stem}"


def _read(config: TrainConfig) -> tuple[Sequence[Unit], Origin]:
    """The training examples, and what tells them and the base from others."""
    units, _ = read_data(config)
    digest = survey(units, config.granularity == "group", config.train_file).digest
    return units, Origin(fingerprint(config.base_model, config.model_revision), digest)


def plan_of(
    config: TrainConfig,
    data: Path,
    folder: Path,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    dropout: float = 0.1,
    samples: int | None = None,
    max_tokens: int = 64,
    alphas: Sequence[float] = (),
) -> Plan:
    """What is asked for, looked at before anything is done.

    Args:
        only: baselines by name; all without any. seeds: the configuration's without any.
        samples: draws of weights, as many as members without a number. alphas: of further ensembles.
    Raises:
        ConfigError: an unknown baseline, or a number that means nothing.
        DataError: a row is malformed, or too long.
    """
    for name in only:
        if name not in NAMES:
            raise ConfigError(f"--only is '{name}': expected some of {', '.join(NAMES)}")
    noise = Noise(dropout, max(2, config.num_members) if samples is None else samples)
    if not 0 <= noise.rate < 1:
        raise ConfigError(f"--dropout is {noise.rate}: expected a share from 0 to below 1")
    if noise.samples < 2 or max_tokens < 1:
        raise ConfigError("--samples and --max-tokens must be at least 2 and 1")
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise ConfigError(f"--alphas has {alpha}: expected orders from 0 to 1")
    found = survey_rows(data, Texts(config.base_model, config.model_revision))
    return Plan(
        config=config,
        data=Data(data, found, max_tokens),
        folder=folder.resolve(),
        names=tuple(name for name in NAMES if not only or name in only),
        orders=tuple(dict.fromkeys(at_order(alpha) for alpha in alphas if alpha != config.renyi_alpha)),
        seeds=tuple(dict.fromkeys(seeds)) or (config.seed,),
        noise=noise,
    )
