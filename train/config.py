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
    """What `softspec train` does. Key names are axolotl's and TRL's where the meaning is equal.

    `base_model` is a checkpoint directory or a hub id. `train_file` and `eval_file` are JSONL or Parquet files,
    directories or hub ids; where these have configurations and splits, the `dataset_` keys choose. `renyi_alpha` is
    the order of the objective (0: K independent adapters, 1: mixture NLL); `lora_alpha` is the adapter scaling. One
    optimizer step sees `micro_batch_size * gradient_accumulation_steps` examples, the same for all members.
    `max_steps` overrides `num_epochs`. `max_grad_norm` clips each member by itself; 0 turns clipping off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str = Field(min_length=1)
    model_revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    train_file: str = Field(min_length=1)
    eval_file: str | None = Field(None, min_length=1)
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    output_dir: Path
    name: str = Field("", description="served model name; the last part of output_dir when empty")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and completion together")

    objective: Literal["sft", "dpo"] = "sft"
    beta: float = Field(0.1, gt=0, description="DPO: inverse temperature of the preferences")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="DPO: probability that a label is wrong")

    num_members: int = Field(4, ge=1)
    renyi_alpha: float = Field(0.8, ge=0, le=1)
    alpha_warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of the run in which alpha rises from 0"
    )
    responsibility_floor: float = Field(
        0.0, ge=0, lt=1, description="share of an example for all members alike"
    )
    reseed_starved: bool = Field(
        False, description="give a starved member a new start beside the busiest one"
    )
    granularity: Literal["sequence", "group", "token"] = Field(
        "sequence", description="what is routed as one"
    )
    group_rows: int = Field(4, ge=1, description="examples of one group that are dealt to a step together")
    length_exponent: float = Field(
        0.0, ge=0, le=1, description="alpha of T tokens: alpha * (reference_length / T) ** length_exponent"
    )
    reference_length: float | None = Field(
        None, gt=0, description="tokens; the mean completion length of the data when empty"
    )
    length_weighting: Literal["sum", "own_length", "mean_length"] = Field(
        "sum", description="what an example's loss is divided by: 1, its own or the mean number of tokens"
    )
    skip_responsibility: float = Field(
        1e-4, ge=0, lt=1, description="no gradient for a member's part of an example below this"
    )
    weights_learning_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far one step moves the mixture weights towards the load; 0 fixes them",
    )
    weights_floor: float = Field(0.1, gt=0, le=1, description="least mixture weight, as part of 1 / K")
    b_init_std: float = Field(0.0, ge=0, description="LoRA B begins as noise of this size instead of 0")
    activation: Activation = BlockActivation(block_size=DEFAULT_BLOCK_SIZE)
    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    layers_to_transform: tuple[int, ...] | Literal["all", "top_third"] = "all"

    prior_strength: float = Field(
        0.0, ge=0, description="lambda of the Gaussian prior on adapters; 1 is Bayes' rule"
    )
    prior_std: float = Field(1.0, gt=0)
    prior_mean: Literal["init", "zero"] = "init"

    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    micro_batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(2, ge=1)
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    num_epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)

    logging_steps: int = Field(1, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    save_steps: int | None = Field(None, ge=1)
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations without a better held-out mixture NLL that end the run"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="nats; a smaller gain is none")
    report_to: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(
        (), description="trackers beside TensorBoard, such as wandb"
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
