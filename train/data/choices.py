"""Which splits and configurations a run may choose: only where there are some, or the choice would be ignored.

In: a configuration. Out: nothing, or the first choice that has no meaning. Opens no data.
"""

from softspec.errors import ConfigError
from softspec.train.config import TrainConfig
from softspec.train.data.sources import has_splits

SPLITS = {"train_file": "dataset_train_split", "eval_file": "dataset_test_split"}
"""Setting that names data -> setting that names their split."""


def check_choices(config: TrainConfig) -> None:
    """Check that every split and configuration is one of data that can have them.

    Raises:
        ConfigError: one is chosen of a file, of one saved `Dataset`, or of data that are not named.
    """
    have_splits = []
    for data_key, split_key in SPLITS.items():
        data, split = getattr(config, data_key), getattr(config, split_key)
        have_splits += [data_key] if data and has_splits(data) else []
        if split == TrainConfig.model_fields[split_key].default or data_key in have_splits:
            continue
        why = f"{data_key} '{data}' has no splits" if data else f"there is no {data_key}"
        raise ConfigError(f"{split_key} is '{split}', but {why}; leave it out, and give each part a file")
    if config.dataset_config and not have_splits:
        raise ConfigError(
            f"dataset_config is '{config.dataset_config}', but files have no configurations; leave it out"
        )
