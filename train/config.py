"""The training configuration: one YAML file, one frozen `TrainConfig`; every default lives here.

In: a path. Out: a checked `TrainConfig` whose relative paths are resolved. Loads no model and no tokenizer.
"""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from softspec.artefact.activation import DEFAULT_BLOCK_SIZE, Activation, BlockActivation
from softspec.artefact.manifest import WeightsRule
from softspec.artefact.validation import first_problem
from softspec.errors import ConfigError

DATA_FIELDS = ("train_file", "eval_file")
PATH_FIELDS = (*DATA_FIELDS, "output_dir")
DATA_ENDINGS = (".jsonl", ".json", ".parquet")


def _one_or_more(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


class TrainConfig(BaseModel):
    """What `softspec train` does; every key is described where it is defined.

    Key names are axolotl's and TRL's where the meaning is equal. One optimizer step sees `micro_batch_size *
    gradient_accumulation_steps` examples, the same for all members.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str = Field(min_length=1, description="The frozen base: a checkpoint directory or a hub id.")
    model_revision: str | None = Field(
        None, description="Revision of a base on the hub: a branch, tag or commit; the newest when empty."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the base; auto is bfloat16 on a GPU and float32 on a CPU; adapters are float32.",
    )
    train_file: str = Field(
        min_length=1, description="Training rows: a JSONL or Parquet file, a directory, or a hub id."
    )
    eval_file: str | None = Field(
        None, min_length=1, description="Held-out rows, which are scored at the end and every eval_steps."
    )
    dataset_config: str | None = Field(
        None, description="Configuration of a data set that has several, for both files."
    )
    dataset_train_split: str = Field("train", description="Split of train_file, where it has splits.")
    dataset_test_split: str = Field("test", description="Split of eval_file, where it has splits.")
    output_dir: Path = Field(description="Where the ensemble is written; an unfinished run lies beside it.")
    name: str = Field(
        "", description="Model name under which it is served; the last part of output_dir when empty."
    )
    max_length: int = Field(
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
        0.0, ge=0, lt=0.5, description="DPO: probability that a preference is the wrong way round."
    )

    num_members: int = Field(4, ge=1, description="How many adapters are trained together, K.")
    renyi_alpha: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Order of the objective: 0 trains K independent adapters, 1 the likelihood of their mixture.",
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
    reseed_starved: bool = Field(
        False,
        description="Restart a starved member as a noisy copy of the one with the worst-served examples.",
    )
    granularity: Literal["sequence", "group", "token"] = Field(
        "sequence",
        description="What is routed as one: an example, all rows of a step with the same group, or a token.",
    )
    group_rows: int = Field(
        4, ge=1, description="Granularity group: rows with the same group that are dealt to a step together."
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
        description="Completion length at which the order is renyi_alpha, in tokens; the data's mean when empty.",
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
    lora_r: int = Field(16, ge=1, description="LoRA rank of every member.")
    lora_alpha: int = Field(
        32, ge=1, description="LoRA scaling: the adapter counts lora_alpha / lora_r times."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Linear layers that get an adapter, by the last part of their names."
    )
    layers_to_transform: tuple[int, ...] | Literal["all", "top_third"] = Field(
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
    micro_batch_size: int = Field(
        4, ge=1, description="Examples that run at once, each under all members; what memory depends on."
    )
    gradient_accumulation_steps: int = Field(
        2, ge=1, description="Micro-batches of an optimizer step, over all processes together."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    num_epochs: float = Field(3.0, gt=0, description="How often every example is seen.")
    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps of the run; in place of num_epochs when given."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the adapters' start and of the order of examples."
    )

    logging_steps: int = Field(1, ge=1, description="Steps from one line of training.jsonl to the next.")
    eval_steps: int | None = Field(
        None, ge=1, description="Steps from one held-out evaluation to the next; only at the end when empty."
    )
    save_steps: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next; only when interrupted when empty."
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations in a row without a better held-out mixture NLL after which the run ends.",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="Smallest gain that counts as better, in nats per example."
    )
    report_to: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(
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
        if self.routes_by_length and (self.granularity == "token" or self.objective == "dpo"):
            raise ValueError(
                "length_exponent and length_weighting are about whole completions: expected granularity sequence or "
                "group, and objective sft"
            )
        if self.skip_responsibility * self.num_members >= 1:
            raise ValueError(
                "skip_responsibility must be below 1 / num_members, or no member may learn an example"
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
    def routes_by_length(self) -> bool:
        """Whether the number of an example's tokens changes its order or its weight."""
        return self.length_exponent > 0 or self.length_weighting != "sum"

    @property
    def examples_per_step(self) -> int:
        """Examples that one optimizer step sees."""
        return self.micro_batch_size * self.gradient_accumulation_steps


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file; relative paths in it are relative to the file.

    Args:
        overrides: KEY=VALUE, each in place of what the file says. The value is YAML; a dot in the key leads into a
            mapping; relative paths are relative to the working directory.
    Raises:
        ConfigError: no such file, not a YAML mapping, an unknown key, or a value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}; expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {type(content).__name__}, expected keys such as 'base_model: ...'")
    for override in overrides:
        _override(content, override)
    return parse_config(content, source=" ".join([str(path), *overrides]), folder=path.parent)


def dump_config(config: TrainConfig) -> str:
    """All keys with their values, defaults too, as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def pinned(override: str) -> str:
    """The same KEY=VALUE for any working directory."""
    key, value = _key_and_value(override)
    return f"{key}={json.dumps(value)}"


def _key_and_value(override: str) -> tuple[str, Any]:
    """What an override says; a path in it is made absolute."""
    key, sign, text = override.partition("=")
    if not key or not sign:
        raise ConfigError(f"--set is '{override}': expected KEY=VALUE, for instance renyi_alpha=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
    is_path = key in PATH_FIELDS and isinstance(value, str)
    return key, _resolve(Path.cwd(), key, value) if is_path else value


def _override(content: dict[str, Any], override: str) -> None:
    key, value = _key_and_value(override)
    field, *inner = key.split(".")
    if not inner:
        content[field] = value
        return
    target = content.setdefault(field, _default(field))
    for name in inner[:-1]:
        target = target.get(name) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override}: '{key.rpartition('.')[0]}' has no keys")
    target[inner[-1]] = value


def _default(field: str) -> Any:
    known = TrainConfig.model_fields.get(field)
    return known.default.model_dump() if known and isinstance(known.default, BaseModel) else None


def parse_config(content: dict[str, Any], source: str, folder: Path) -> TrainConfig:
    """Check the keys and values of one configuration; `source` names it in messages."""
    for key in content:
        if key not in TrainConfig.model_fields:
            raise ConfigError(f"{source}: unknown key '{key}'; {_suggestion(str(key))}")
    try:
        config = TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from error
    resolved: dict[str, Any] = {
        field: _resolve(folder, field, value) for field in DATA_FIELDS if (value := getattr(config, field))
    }
    resolved["output_dir"] = Path(_resolve(folder, "output_dir", str(config.output_dir)))
    resolved["base_model"] = _resolve_base(folder, config.base_model, source)
    return config.model_copy(update=resolved)


def _suggestion(key: str) -> str:
    if key == "alpha":
        return "expected 'renyi_alpha' (the objective) or 'lora_alpha' (the adapter scaling)"
    close = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
    return (
        f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(TrainConfig.model_fields)}"
    )


def is_hub_id(data: str) -> bool:
    """Whether data that are no file here may be the hub's: `owner/name` without the ending of a file of data."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data) is not None and not data.endswith(DATA_ENDINGS)


def _resolve(folder: Path, field: str, value: str) -> str:
    """An absolute path; of data that are not there, a hub id unchanged."""
    path = (folder / Path(value).expanduser()).resolve()
    is_remote = field in DATA_FIELDS and is_hub_id(value) and not path.exists()
    return value if is_remote else str(path)


def _resolve_base(folder: Path, base_model: str, source: str) -> str:
    """An absolute directory where one exists, else the hub id unchanged."""
    path = (folder / Path(base_model).expanduser()).resolve()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{source}: base_model '{path}' has no config.json; expected a checkpoint")
        return str(path)
    if base_model.startswith((".", "/", "~")) or base_model.count("/") > 1:
        raise ConfigError(f"{source}: base_model '{path}' does not exist; expected a directory or a hub id")
    return base_model
