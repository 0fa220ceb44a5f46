"""The training configuration: what is accepted, what is refused, and in which words."""

from pathlib import Path

import pytest

from softspec.artefact.activation import AlwaysActivation, BlockActivation
from softspec.errors import ConfigError
from softspec.train.config import dump_config, load_config

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
REQUIRED = "base_model: some/base\ntrain_file: data/train.jsonl\noutput_dir: out\n"


def config_file(folder: Path, text: str = REQUIRED) -> Path:
    """Save a configuration."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path))

    assert config.train_file == str(tmp_path / "data" / "train.jsonl")
    assert config.output_dir == tmp_path / "out"


def test_an_existing_base_folder_becomes_absolute_and_a_hub_id_stays(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")

    local = load_config(config_file(tmp_path, REQUIRED.replace("some/base", "base")))
    remote = load_config(config_file(tmp_path))

    assert local.base_model == str(tmp_path / "base")
    assert remote.base_model == "some/base"


@pytest.mark.parametrize("data", ["owner/name", "owner/name-v1.0"])
def test_data_that_are_no_file_here_may_be_on_the_hub(tmp_path: Path, data: str) -> None:
    path = config_file(tmp_path, REQUIRED.replace("data/train.jsonl", data) + f"eval_file: {data}\n")

    config = load_config(path)
    overridden = load_config(path, [f"train_file={data}"])

    assert config.train_file == config.eval_file == overridden.train_file == data
    assert (config.dataset_train_split, config.dataset_test_split) == ("train", "test")


def test_data_that_are_here_are_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)

    config = load_config(config_file(tmp_path, REQUIRED.replace("data/train.jsonl", "owner/name")))

    assert config.train_file == str(tmp_path / "owner" / "name")


@pytest.mark.parametrize("data", ["train", "./owner/name", "a/b/c", "data/rows.json", "data/rows.parquet"])
def test_a_path_is_never_taken_for_a_hub_id(tmp_path: Path, data: str) -> None:
    config = load_config(config_file(tmp_path, REQUIRED.replace("data/train.jsonl", data)))

    assert config.train_file == str(tmp_path / data)


def test_block_activation_of_32_tokens_is_the_default(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path)).activation == BlockActivation(block_size=32)


def test_always_activation_can_be_chosen(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, REQUIRED + "activation: {kind: always}\n"))

    assert config.activation == AlwaysActivation()


def test_the_served_name_defaults_to_the_output_folder(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path)).served_name == "out"
    assert load_config(config_file(tmp_path, REQUIRED + "name: legal\n")).served_name == "legal"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("renyi_alpha: 1.5", "renyi_alpha: Input should be less than or equal to 1"),
        ("renyi_alpha: -0.1", "renyi_alpha: Input should be greater than or equal to 0"),
        ("alpha: 0.8", "unknown key 'alpha'; expected 'renyi_alpha'"),
        ("learning_rte: 0.1", "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ("num_members: 0", "num_members: Input should be greater than or equal to 1"),
        ("activation: {kind: sometimes}", "activation"),
        ("activation: {kind: block, block_size: 0}", "activation.block.block_size"),
        ("target_modules: []", "at least one module"),
        ("eval_steps: 5", "eval_steps needs an eval_file"),
        ("base_model: ./nowhere", "nowhere' does not exist; expected a directory or a hub id"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    lines = [old for old in REQUIRED.splitlines() if old.split(":")[0] != line.split(":")[0]]

    with pytest.raises(ConfigError) as error:
        load_config(config_file(tmp_path, "\n".join([*lines, line])))

    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "config.yaml" in str(error.value)


def test_an_override_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    path = config_file(tmp_path, REQUIRED + "renyi_alpha: 0.8\nactivation: {kind: block, block_size: 16}\n")

    config = load_config(
        path,
        [
            "renyi_alpha=0.5",
            "activation.block_size=64",
            "target_modules=[q_proj, v_proj]",
            "learning_rate=2e-4",
        ],
    )

    assert config.renyi_alpha == 0.5
    assert config.activation == BlockActivation(block_size=64)
    assert config.target_modules == ("q_proj", "v_proj")
    assert config.learning_rate == 2e-4


def test_an_override_can_reach_into_a_default(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path), ["activation.block_size=64"])

    assert config.activation == BlockActivation(block_size=64)


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    config = load_config(config_file(tmp_path), ["output_dir=mine", "name=legal"])

    assert config.output_dir == tmp_path / "elsewhere" / "mine"
    assert config.train_file == str(tmp_path / "data" / "train.jsonl")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("renyi_alpha", "--set is 'renyi_alpha': expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("seed.x=1", "'seed' has no keys"),
        ("activation.kind.x=1", "'activation.kind' has no keys"),
        ("learning_rte=1", "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ("renyi_alpha=2", "renyi_alpha=2: renyi_alpha: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_file(tmp_path), [override])

    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path), ["num_members=3"])

    assert load_config(config_file(tmp_path, dump_config(config))) == config


def test_two_ways_to_pull_weights_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prior_strength and weight_decay both pull weights back"):
        load_config(config_file(tmp_path), ["prior_strength=1", "weight_decay=0.1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["granularity=token", "length_exponent=0.5"],
            "length_exponent and length_weighting are about whole",
        ),
        (["objective=dpo", "length_weighting=own_length"], "length_exponent and length_weighting are about"),
        (["objective=dpo", "granularity=token"], "granularity token has no meaning for preferences"),
        (["num_members=4", "skip_responsibility=0.25"], "skip_responsibility must be below 1 / num_members"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_together_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file(tmp_path), overrides)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_writes_where_its_name_says(recipe: Path) -> None:
    config = load_config(recipe)

    assert config.output_dir == (RECIPES / "runs" / recipe.stem.replace("_", "-")).resolve()
    assert f"`softspec train {recipe.name}`" in recipe.read_text()
    assert config.objective == ("dpo" if recipe.stem in ("dpo", "annotators") else "sft")


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output_dir: Field required"):
        load_config(config_file(tmp_path, "base_model: a/b\ntrain_file: t.jsonl\n"))


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read '.*nothing.yaml': No such file or directory"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "text", ["a: [", "- a list", "just text", ""], ids=["broken", "list", "text", "empty"]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(config_file(tmp_path, text))


def test_a_base_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()

    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_config(config_file(tmp_path, REQUIRED.replace("some/base", "base")))
