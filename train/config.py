"""The training configuration: one YAML file, one frozen `TrainConfig`; every default lives here.

In: a path. Out: a checked `TrainConfig` whose relative paths are resolved. Loads no model and no tokenizer.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softspec.artefact.activation import DEFAULT_BLOCK_SIZE, Activation, BlockActivation
from softspec.artefact.manifest import WeightsRule
from softspec.artefact.validation import first_problem
from softspec.artefact.yaml_file import in_line, read_mapping
from softspec.artefact.yaml_text import YamlError, dump_yaml, parse_yaml
from softspec.errors import ConfigError
from softspec.train.foreign_keys import suggestion
from softspec.train.kinds import Count, Folder, Layers, Modules, Number, Switch, Text, Trackers
from softspec.train.places import place_of_base, place_of_data, place_of_output

PLACES: dict[str, Callable[[Path, str], str | Path]] = {
    "base_model": place_of_base,
    "train_file": place_of_data,
    "eval_file": place_of_data,
    "output_dir": place_of_output,
}
"""Setting -> where its text leads, from the folder to which it is relative."""
IDLE: dict[str, tuple[str, Callable[["TrainConfig"], bool]]] = {
    "beta": ("objective dpo", lambda config: config.objective == "dpo"),
    "label_smoothing": ("objective dpo", lambda config: config.objective == "dpo"),
    "group_rows": ("granularity group", lambda config: config.granularity == "group"),
    "reference_length": ("length_exponent", lambda config: config.length_exponent > 0),
    "weights_floor": ("weights_learning_rate", lambda config: config.weights_learning_rate > 0),
    "prior_std": ("prior_strength", lambda config: config.prior_strength > 0),
    "prior_mean": ("prior_strength", lambda config: config.prior_strength > 0),
}
"""Setting -> what it needs to have an effect, and whether that is there."""


class TrainConfig(BaseModel):
    """What `softspec train` does; every key is described where it is defined.

    Key names are axolotl's and TRL's where the meaning is equal; only `label_smoothing` is another formula than TRL's.
    One optimizer step sees `micro_batch_size * micro_batches_per_step` examples, the same for all members.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    base_model: Text = Field(description="The frozen base: a checkpoint directory or a hub id.")
    model_revision: Text | None = Field(
        None, description="Revision of a base on the hub: a branch, tag or commit; the newest when empty."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the base; auto is bfloat16 on a GPU and float32 on a CPU; adapters are float32.",
    )
    train_file: Text = Field(description="Training rows: a JSONL or Parquet file, a directory, or a hub id.")
    eval_file: Text | None = Field(
        None, description="Held-out rows, which are scored at the end and every eval_steps."
    )
    dataset_config: Text | None = Field(
        None, description="Configuration of a data set that has several, for both files."
    )
    dataset_train_split: Text = Field("train", description="Split of train_file, where it has splits.")
    dataset_test_split: Text = Field("test", description="Split of eval_file, where it has splits.")
    output_dir: Folder = Field(description="Where the ensemble is written; an unfinished run lies beside it.")
    name: str = Field(
        "", description="Model name under which it is served; the last part of output_dir when empty."
    )
    max_length: Count = Field(
        1024,
        ge=2,
        description="Most tokens of a prompt and its completion together.",
    )
    long_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="What happens to rows with more tokens: refuse names them, drop leaves them out; none is ever cut.",
    )
    train_on: Literal["last", "all"] = Field(
        "last",
        description="Which assistant turns of a conversation are learnt: the last one, or all of them.",
    )

    objective: Literal["sft", "dpo"] = Field(
        "sft", description="What is learnt: completions (sft) or preferences between two completions (dpo)."
    )
    beta: float = Field(
        0.1, gt=0, description="DPO: how strongly a margin decides a preference, per nat of margin."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="DPO: probability that a preference is the wrong way round; not TRL's formula.",
    )

    num_members: Count = Field(4, description="How many adapters are trained together, K.")
    renyi_alpha: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Order of the objective: 0 trains K independent adapters, 1 the likelihood of their mixture.",
    )
    schedule: Literal["auto", "plain"] = Field(
        "auto",
        description="auto shares examples alike at first and lets go by and by; plain is the objective as it is.",
    )
    alpha_warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the run in which renyi_alpha rises linearly from 0."
    )
    responsibility_floor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of every example that all members learn alike, so that none starves.",
    )
    reseed_starved: Switch | None = Field(
        None,
        description="Restart a starved member as a noisy copy of the one with the worst-served examples; empty: with "
        "schedule auto.",
    )
    granularity: Literal["sequence", "group", "token"] = Field(
        "sequence",
        description="What is routed as one: an example, all rows of a step with the same group, or a token.",
    )
    group_rows: Count = Field(
        16,
        description="Granularity group: rows with the same group that are dealt to a step together, at most.",
    )
    length_exponent: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The order of T tokens is renyi_alpha * (reference_length / T) ** length_exponent, at most 1.",
    )
    reference_length: float | None = Field(
        None,
        gt=0,
        description="Length of what is routed together that has renyi_alpha, in tokens; the data's mean when empty.",
    )
    length_weighting: Literal["sum", "own_length", "mean_length"] = Field(
        "sum", description="What an example's loss is divided by: 1, its own or the mean number of tokens."
    )
    skip_responsibility: float = Field(
        1e-4,
        ge=0,
        lt=1,
        description="A member gets no gradient from examples of which it has a smaller share.",
    )
    weights_learning_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far a step moves the mixture weights towards the load; at 0 they stay uniform.",
    )
    weights_floor: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Smallest mixture weight that can be learnt, as a part of 1 / num_members.",
    )
    b_init_std: float = Field(
        0.0, ge=0, description="Standard deviation of the noise in LoRA B at the start; 0 is PEFT's start."
    )
    activation: Activation = Field(
        BlockActivation(block_size=DEFAULT_BLOCK_SIZE),
        description="Where adapters act: after the prompt's leading whole blocks of block_size tokens, or always.",
    )
    lora_r: Count = Field(16, description="LoRA rank of every member.")
    lora_alpha: Count = Field(32, description="LoRA scaling: the adapter counts lora_alpha / lora_r times.")
    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of an adapter's inputs that a step goes without, for each example; for one member only.",
    )
    target_modules: Annotated[tuple[str, ...] | Literal["all-linear"], Modules] = Field(
        "all-linear",
        description="Linear layers that get an adapter, by the last part of their names; no patterns.",
    )
    layers_to_transform: Annotated[tuple[int, ...] | Literal["all", "top_third"], Layers] = Field(
        "all",
        description="Decoder layers that get adapters: all, the top_third, or a list of numbers from 0.",
    )

    prior_strength: float = Field(
        0.0, ge=0, description="Weight of a Gaussian prior on the adapters; 1 is Bayes' rule, 0 is none."
    )
    prior_std: float = Field(
        1.0, gt=0, description="Standard deviation of the prior, in units of the weights."
    )
    prior_mean: Literal["init", "zero"] = Field(
        "init", description="Centre of the prior: each member's own start, or zero."
    )

    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate of AdamW.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, description="Share of the run in which the learning rate rises to its peak."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW; not together with a prior.")
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="Norm to which the gradient of each member by itself is clipped; 0 does not clip.",
    )
    micro_batch_size: Count = Field(
        4, description="Examples that run at once, each under all members; what memory depends on."
    )
    gradient_accumulation_steps: Count | None = Field(
        None,
        description="Micro-batches of an optimizer step, over all processes together; empty: 2, or with granularity "
        "group as many as num_members groups need.",
    )
    gradient_checkpointing: Switch = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    shard_base: Switch = Field(
        False,
        description="Give each of several processes a part of every layer of the base (FSDP), where no device holds "
        "all.",
    )
    frozen_cache_gb: float = Field(
        4.0,
        ge=0,
        description="Most disk for what is frozen of examples, computed once for all runs; 0 keeps none.",
    )
    num_epochs: float = Field(3.0, gt=0, le=1e6, description="How often every example is seen.")
    max_steps: Count | None = Field(
        None, description="Optimizer steps of the run; in place of num_epochs when given."
    )
    seed: Number = Field(0, description="Seed of the adapters' start and of the order of examples.")

    logging_steps: Count = Field(1, description="Steps from one line of training.jsonl to the next.")
    eval_steps: Count | None = Field(
        None, description="Steps from one held-out evaluation to the next; only at the end when empty."
    )
    save_steps: Count | None = Field(
        None, description="Steps from one checkpoint to the next; only when interrupted when empty."
    )
    early_stopping_patience: Count | None = Field(
        None,
        description="Evaluations in a row without a better held-out mixture NLL after which the run ends.",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="Smallest gain that counts as better, in nats per example."
    )
    report_to: Trackers = Field(
        (), description="Trackers beside TensorBoard, by accelerate's names, such as wandb or mlflow."
    )

    @model_validator(mode="after")
    def _members_fit_the_objective(self) -> Self:
        if not self.target_modules or self.layers_to_transform == ():
            raise ValueError("target_modules and layers_to_transform must name at least one module and layer")
        if self.prior_strength and self.weight_decay:
            raise ValueError(
                "prior_strength and weight_decay both pull weights back: expected one of them to be 0"
            )
        if self.eval_steps and not self.eval_file:
            raise ValueError("eval_steps needs an eval_file")
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("early_stopping_patience needs an eval_file and eval_steps")
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise ValueError("early_stopping_threshold needs early_stopping_patience")
        for key, (need, is_met) in IDLE.items():
            if getattr(self, key) != type(self).model_fields[key].default and not is_met(self):
                raise ValueError(f"{key} has no effect without {need}: leave it out")
        if self.routes_by_length and (self.granularity == "token" or self.objective == "dpo"):
            raise ValueError(
                "length_exponent and length_weighting are about whole completions: expected granularity sequence or "
                "group, and objective sft"
            )
        if self.skip_responsibility * self.num_members >= 1:
            raise ValueError(
                "skip_responsibility must be below 1 / num_members, or no member may learn an example"
            )
        if self.lora_dropout and self.num_members > 1:
            raise ValueError(
                "lora_dropout is for one member (MC dropout): examples are routed between members without noise"
            )
        if self.objective == "dpo" and self.train_on == "all":
            raise ValueError(
                "train_on all has no meaning for preferences: their completions are what is learnt"
            )
        if self.objective == "dpo" and self.granularity == "token":
            raise ValueError("granularity token has no meaning for preferences: expected sequence or group")
        return self

    @property
    def served_name(self) -> str:
        """The model name requests use."""
        return self.name or self.output_dir.name

    @property
    def weights_rule(self) -> WeightsRule:
        """What is served: the mixture that was trained."""
        return "fixed" if self.granularity == "token" else "prefix_posterior"

    @property
    def reseeds_starved(self) -> bool:
        """Whether a member that starves gets a new start."""
        return self.schedule == "auto" if self.reseed_starved is None else self.reseed_starved

    @property
    def routes_by_length(self) -> bool:
        """Whether the number of an example's tokens changes its order or its weight."""
        return self.length_exponent > 0 or self.length_weighting != "sum"

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step; with groups enough for each member to find one of its own."""
        if self.gradient_accumulation_steps is not None:
            return self.gradient_accumulation_steps
        if self.granularity != "group":
            return 2
        return math.ceil(self.num_members * self.group_rows / self.micro_batch_size)

    @property
    def examples_per_step(self) -> int:
        """Examples that one optimizer step sees."""
        return self.micro_batch_size * self.micro_batches_per_step


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file; relative paths in it are relative to the file.

    Args:
        overrides: KEY=VALUE, each in place of what the file says. The value is YAML; a dot in the key leads into a
            mapping; relative paths are relative to the working directory.
    Raises:
        ConfigError: no such file, not a YAML mapping, an unknown key, or a value of the wrong kind or out of range.
    """
    content = read_mapping(path, example="base_model: ...")
    for override in overrides:
        _override(content, override)
    source = " ".join([in_line(str(path)), *(in_line(override) for override in overrides)])
    return parse_config(content, source, folder=path.parent)


def dump_config(config: TrainConfig) -> str:
    """All keys with their values, defaults too, as YAML that `load_config` reads."""
    return dump_yaml(config.model_dump(mode="json"))


def pinned(override: str) -> str:
    """The same KEY=VALUE for any working directory."""
    key, value = _key_and_value(override)
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _key_and_value(override: str) -> tuple[str, Any]:
    """What an override says; a path in it is made absolute."""
    key, sign, text = override.partition("=")
    if not key or not sign:
        raise ConfigError(f"--set is '{in_line(override)}': expected KEY=VALUE, for instance renyi_alpha=0.5")
    try:
        value = parse_yaml(text)
        if key in PLACES and isinstance(value, str) and value.strip():
            value = str(PLACES[key](Path.cwd(), value))
    except (YamlError, ConfigError) as error:
        what = "" if isinstance(error, ConfigError) else "the value is not YAML as expected: "
        raise ConfigError(f"--set {in_line(override)}: {what}{error}") from error
    return key, value


def _override(content: dict[str, Any], override: str) -> None:
    key, value = _key_and_value(override)
    field, *inner = key.split(".")
    if not inner or field not in TrainConfig.model_fields:
        content[key] = value
        return
    target = content.setdefault(field, _default(field))
    for name in inner[:-1]:
        target = target.get(name) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"--set {in_line(override)}: '{key.rpartition('.')[0]}' has no keys")
    if inner == ["kind"] and target.get("kind") != value:
        target.clear()  # the other keys are those of another kind
    target[inner[-1]] = value


def _default(field: str) -> Any:
    known = TrainConfig.model_fields.get(field)
    return known.default.model_dump() if known and isinstance(known.default, BaseModel) else None


def parse_config(content: dict[str, Any], source: str, folder: Path) -> TrainConfig:
    """Check the keys and values of one configuration; `source` names it in messages."""
    known = {name: field.description or "" for name, field in TrainConfig.model_fields.items()}
    for key in content:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{in_line(str(key))}'; {suggestion(str(key), known)}")
    try:
        config = TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error, content)}") from error
    return config.model_copy(update=_resolved(config, source, folder))


def _resolved(config: TrainConfig, source: str, folder: Path) -> dict[str, Any]:
    """The settings that name places, each with where it leads."""
    resolved: dict[str, Any] = {}
    for field, place in PLACES.items():
        if value := getattr(config, field):
            try:
                resolved[field] = place(folder, str(value))
            except ConfigError as error:
                raise ConfigError(f"{source}: {field} {error}") from error
    return resolved
