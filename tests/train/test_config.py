"""The training configuration: what is accepted, what is refused, and in which words."""

from pathlib import Path

import pytest

from softspec.artefact.activation import AlwaysActivation, BlockActivation
from softspec.errors import ConfigError
from softspec.train.config import dump_config, load_config, pinned

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


def refused(path: Path, *overrides: str) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert message.isprintable()
    assert "config.yaml" in message or "--set" in message
    return message


def without(key: str) -> str:
    """The required keys but one."""
    return "".join(f"{line}\n" for line in REQUIRED.splitlines() if not line.startswith(f"{key}:"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("renyi_alpha: 1.5", "renyi_alpha: expected a number of at most 1 (found 1.5)"),
        ("renyi_alpha: -0.1", "renyi_alpha: expected a number of at least 0"),
        ("renyi_alpha: yes", 'renyi_alpha: expected a number (found "yes")'),
        ("renyi_alpha: true", "renyi_alpha: expected a number (found true)"),
        ("renyi_alpha: .nan", "renyi_alpha: expected a finite number (found NaN)"),
        ("renyi_alpha: '0.5'", 'renyi_alpha: expected a number (found "0.5")'),
        ("learning_rate: .inf", "learning_rate: expected a finite number"),
        ("learning_rate: 1e999", "learning_rate: expected a finite number"),
        ("learning_rate: 1" + "0" * 5000, "line 4: a number of more than 300 digits"),
        ("learning_rate:", "learning_rate: expected a number (found null)"),
        ("weights_floor: 1.5", "weights_floor: expected a number of at most 1"),
        ("alpha: 0.8", "unknown key 'alpha'; expected 'renyi_alpha'"),
        ("learning_rte: 0.1", "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ('"seed\\n": 1', "not YAML as expected: the character \\n"),
        ("num_members: 0", "num_members: expected a number of at least 1 (found 0)"),
        ("num_members: true", "num_members: expected a whole number (found true)"),
        ("num_members: 2.5", "num_members: expected a whole number (found 2.5)"),
        ("num_members: 010", 'num_members: expected a whole number (found "010")'),
        ("num_members: 1:30", 'num_members: expected a whole number (found "1:30")'),
        ("num_members: 99999999999", "num_members: expected a number of at most 2147483647"),
        ("num_epochs: 1e308", "num_epochs: expected a number of at most 1000000"),
        ("max_steps: [5]", "max_steps: expected a whole number (found [5])"),
        ("seed: null", "seed: expected a whole number (found null)"),
        ("gradient_checkpointing: 1", "gradient_checkpointing: expected true or false (found 1)"),
        ("dtype: float16", "dtype: expected 'auto', 'float32' or 'bfloat16' (found \"float16\")"),
        ("name: 5", "name: expected text (found 5)"),
        ("name: {a: 1}", "name: expected text"),
        ("base_model:", "base_model: expected text (found null)"),
        ('base_model: " "', "base_model: expected text that is not empty"),
        ('train_file: ""', "train_file: expected text that is not empty"),
        ('output_dir: ""', "output_dir: expected text that is not empty"),
        ("output_dir: 2024", "output_dir: expected text (found 2024)"),
        ("output_dir: /", "output_dir '/' is the root of the file system"),
        (f"output_dir: {'a' * 300}", "cannot be a path: File name too long"),
        ("train_file: ~nobody-of-this-name/rows", "'~nobody-of-this-name/rows' cannot be a path: Could not"),
        ('train_file: "a\\0b"', "the character \\x00"),
        ('name: "\\ud83d"', "the character \\ud83d"),
        ("activation: {kind: sometimes}", "activation: Input tag 'sometimes'"),
        ("activation: always", "activation: expected an object"),
        (
            "activation: {kind: block, block_size: 0}",
            "activation.block_size: expected a number of at least 1",
        ),
        ("activation: {kind: block, block_size: true}", "activation.block_size: expected a whole number"),
        ("activation: {kind: block, blocks: 8}", "activation.blocks: unknown key (found 8)"),
        ("target_modules: []", "at least one module"),
        (
            "target_modules: .*_proj",
            "target_modules: '.*_proj' is a path or a pattern; expected the last part",
        ),
        ("target_modules: q_proj, v_proj", "target_modules: 'q_proj, v_proj' is a path or a pattern"),
        ("target_modules: all_linear", "target_modules: 'all_linear' is no module; expected all-linear"),
        ("target_modules: [all-linear]", "target_modules: 'all-linear' is no module; expected all-linear by"),
        ("target_modules: [q_proj, 5]", "target_modules.1: expected text (found 5)"),
        ("target_modules: null", "target_modules: expected a list or 'all-linear' (found null)"),
        ("layers_to_transform: [0, true]", "layers_to_transform.1: expected a whole number (found true)"),
        ("layers_to_transform: half", "layers_to_transform: expected a list or 'all' or 'top_third'"),
        ("report_to: all", "report_to: 'all' is no tracker; expected names"),
        ("report_to: [none, wandb]", "report_to: 'none' is no tracker"),
        ("report_to: 5", "report_to: expected text (found 5)"),
        ("report_to: false", "report_to: expected a list (found false)"),
        ("eval_steps: 5", "eval_steps needs an eval_file"),
        ("base_model: ./nowhere", "nowhere' does not exist; expected a directory or a hub id"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    key = line.split(":")[0]

    assert message in refused(config_file(tmp_path, f"{without(key)}{line}\n"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("renyi_alpha=yes", 'renyi_alpha: expected a number (found "yes")'),
        ("num_members=010", "num_members: expected a whole number"),
        ("output_dir=", "output_dir: expected text (found null)"),
        ('output_dir=""', "output_dir: expected text that is not empty"),
        ("output_dir=/", "--set output_dir=/: '/' is the root of the file system"),
        ("train_file=~nobody-of-this-name/x", "'~nobody-of-this-name/x' cannot be a path"),
        ('name="\\ud83d"', "the character \\ud83d"),
        ("seed=1" + "0" * 5000, "a number of more than 300 digits"),
        ("activation={kind: block, kind: always}", "the key 'kind' is there twice"),
        ("no.such=1", "unknown key 'no.such'"),
        ("sequence_len=5", "it is called 'max_length' here"),
        ("report_to=all", "report_to: 'all' is no tracker"),
        ("name=a\nb: c", "--set name=a\\nb: c: the value is not YAML as expected"),
        ("seed=&a 1", "an anchor, alias or tag"),
    ],
)
def test_a_wrong_override_is_refused_as_the_file_would_be(
    tmp_path: Path, override: str, message: str
) -> None:
    assert message in refused(config_file(tmp_path), override)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("gradient_checkpointing: on", "gradient_checkpointing", True),
        ("gradient_checkpointing: No", "gradient_checkpointing", False),
        ("name: no", "name", "no"),
        ("name: 2024-05-01", "name", "2024-05-01"),
        ("name: 1e-4x", "name", "1e-4x"),
        ("target_modules: q_proj", "target_modules", ("q_proj",)),
        ("target_modules: All-Linear", "target_modules", "all-linear"),
        ("layers_to_transform: 1", "layers_to_transform", (1,)),
        ("layers_to_transform: top_third", "layers_to_transform", "top_third"),
        ("report_to: none", "report_to", ()),
        ("report_to: null", "report_to", ()),
        ("report_to: []", "report_to", ()),
        ('report_to: ""', "report_to", ()),
        ("report_to: [none]", "report_to", ()),
        ("report_to: wandb", "report_to", ("wandb",)),
        ("model_revision: 1.10", "model_revision", None),
    ],
)
def test_a_value_means_what_it_says(tmp_path: Path, line: str, key: str, value: object) -> None:
    path = config_file(tmp_path, f"{REQUIRED}{line}\n")
    if key == "model_revision":  # a number, in which the last 0 of the text would be lost
        assert "model_revision: expected text (found 1.1)" in refused(path)
        return

    assert getattr(load_config(path), key) == value
    assert getattr(load_config(config_file(tmp_path), [line.replace(": ", "=", 1)]), key) == value


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
        ("renyi_alpha=2", "renyi_alpha=2: renyi_alpha: expected a number of at most 1 (found 2)"),
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
        (["beta=0.5"], "beta has no effect without objective dpo: leave it out"),
        (["label_smoothing=0.1"], "label_smoothing has no effect without objective dpo"),
        (["group_rows=8"], "group_rows has no effect without granularity group"),
        (["reference_length=64"], "reference_length has no effect without length_exponent"),
        (["weights_floor=0.2"], "weights_floor has no effect without weights_learning_rate"),
        (["prior_std=2"], "prior_std has no effect without prior_strength"),
        (["prior_mean=zero", "weight_decay=0.1"], "prior_mean has no effect without prior_strength"),
        (["num_members=4", "skip_responsibility=0.25"], "skip_responsibility must be below 1 / num_members"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_together_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file(tmp_path), overrides)


def test_a_setting_may_stand_beside_what_it_needs(tmp_path: Path) -> None:
    path = config_file(tmp_path)

    assert load_config(path, ["objective=dpo", "beta=0.5", "label_smoothing=0.1"]).beta == 0.5
    assert load_config(path, ["granularity=group", "group_rows=8"]).group_rows == 8
    assert load_config(path, ["length_exponent=0.5", "reference_length=64"]).reference_length == 64
    assert load_config(path, ["prior_strength=1", "prior_std=2", "prior_mean=zero"]).prior_std == 2


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_writes_where_its_name_says(recipe: Path) -> None:
    config = load_config(recipe)

    assert config.output_dir == (RECIPES / "runs" / recipe.stem.replace("_", "-")).resolve()
    assert f"`softspec train {recipe.name}`" in recipe.read_text()
    assert config.objective == ("dpo" if recipe.stem in ("dpo", "annotators") else "sft")


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output_dir: missing"):
        load_config(config_file(tmp_path, "base_model: a/b\ntrain_file: t.jsonl\n"))


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read '.*nothing.yaml': No such file or directory"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML as expected: line 1: "),
        ("- a list", "found a list, expected keys"),
        ("just text", "found text, expected keys"),
        ("", "found nothing, expected keys"),
        ("5", "found '5', expected keys"),
        (REQUIRED + "seed: 1\nseed: 2\n", "line 5: the key 'seed' is there twice; keep one"),
        (REQUIRED + "5: 1\n", "line 4: a key that is no text"),
        (REQUIRED + "seed:\t1\n", "line 4: while scanning for the next token found character '\\t'"),
        (REQUIRED + "seed: &s 1\n", "line 4: an anchor, alias or tag; write the value itself"),
        (REQUIRED + "name: !!binary aGk=\n", "line 4: an anchor, alias or tag"),
        (REQUIRED + "---\n" + REQUIRED, "expected a single document"),
        (f"a: {'[' * 5000}{']' * 5000}", "nested more than 50 levels deep"),
        (b"a: \xff", "unacceptable character #x00ff"),
        (b"\xff\xfea", "not YAML as expected"),
    ],
)
def test_a_file_that_is_no_mapping_of_plain_values_is_refused(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    assert message in refused(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_of_the_encoding_is_no_part_of_the_first_key(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(REQUIRED, encoding=encoding)

    assert load_config(path).output_dir == tmp_path / "out"


def test_a_base_after_set_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("elsewhere/base", "base"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert load_config(config_file(tmp_path), ["base_model=base"]).base_model == str(Path("base").absolute())
    assert pinned("base_model=base") == f'base_model="{Path("base").absolute()}"'
    assert pinned("base_model=owner/name") == 'base_model="owner/name"'


@pytest.mark.parametrize("override", ["learning_rate=1e-05", "name=éà😀", "name='1e-4'", "report_to=none"])
def test_what_a_run_keeps_of_an_override_says_the_same_again(tmp_path: Path, override: str) -> None:
    path = config_file(tmp_path)

    assert load_config(path, [pinned(override)]) == load_config(path, [override])


def test_another_kind_of_activation_begins_without_the_keys_of_the_first(tmp_path: Path) -> None:
    path = config_file(tmp_path, REQUIRED + "activation: {kind: block, block_size: 64}\n")

    assert load_config(path, ["activation.kind=always"]).activation == AlwaysActivation()
    assert load_config(path, ["activation.kind=block"]).activation == BlockActivation(block_size=64)


def test_a_base_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()

    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_config(config_file(tmp_path, REQUIRED.replace("some/base", "base")))
