"""`softspec serve` refuses what cannot work before a model is loaded, and writes vLLM's command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softspec.artefact.activation import BlockActivation
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, save_manifest
from softspec.errors import ConfigError, ManifestError
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.settings import LogSettings
from softspec.server.ops.launch import checked_arguments, serve, server_arguments, server_environment
from softspec.server.ops.served_base import served_fingerprint
from softspec.server.ops.server_config import RecordSettings
from softspec.server.ops.settings import Settings
from tests.support.tiny import random_adapters, tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(scope="module")
def ensemble(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapters(base, tmp_path_factory.mktemp("ensemble"), num_members=3, rank=12)


def flag(arguments: Sequence[str], name: str) -> str:
    """The value that argparse would take: the last one."""
    position = len(arguments) - 1 - list(reversed(arguments)).index(name)
    return arguments[position + 1]


def renamed(ensemble: Path, **changes: object) -> Manifest:
    return load_manifest(ensemble).model_copy(update=changes)


def test_engine_has_room_for_every_member(base: Path, ensemble: Path) -> None:
    arguments = server_arguments({ensemble: load_manifest(ensemble)}, None, [])

    assert arguments[0] == str(base)
    assert int(flag(arguments, "--max-loras")) == 3
    assert flag(arguments, "--max-lora-rank") == "16"
    assert flag(arguments, "--served-model-name") == "tiny-base"
    assert "--enable-lora" in arguments


def test_max_logprobs_leave_openai_its_twenty_and_options_their_hundred(ensemble: Path) -> None:
    arguments = server_arguments({ensemble: load_manifest(ensemble)}, None, [])

    assert int(flag(arguments, "--max-logprobs")) == 4 + 3 + 128 * 3 >= 20 + 4 + 3


def test_flags_of_the_user_win(ensemble: Path) -> None:
    arguments = server_arguments(
        {ensemble: load_manifest(ensemble)}, None, ["--max-loras", "9", "--port", "1"]
    )

    assert flag(arguments, "--max-loras") == "9"
    # vLLM's default is --max-loras, and it refuses less.
    assert "--max-cpu-loras" not in arguments
    assert flag(arguments, "--port") == "1"


def test_two_ensembles_share_one_engine(ensemble: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(ensemble)
    manifests = {ensemble: load_manifest(ensemble), other: renamed(ensemble, name="other")}

    found = flag(server_arguments(manifests, None, []), "--max-loras")
    assert int(found) == 6


def test_two_ensembles_of_one_name_are_refused(ensemble: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.symlink_to(ensemble)
    manifests = {ensemble: load_manifest(ensemble), other: load_manifest(ensemble)}

    with pytest.raises(ConfigError, match="expected different names"):
        server_arguments(manifests, "maker/model", [])


@pytest.mark.parametrize(
    "argument",
    [
        "--speculative-config={}",
        "--scheduler-cls",
        "--scheduler_cls",
        "--worker-extension-cls=x.Y",
        "--grpc",
        "--headless",
    ],
)
def test_flags_that_would_take_the_ensemble_apart_are_refused(ensemble: Path, argument: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be given to 'softspec serve': .*; remove it"):
        server_arguments({ensemble: load_manifest(ensemble)}, None, [argument])


def on_base(ensemble: Path, name: str, **base: str | None) -> Manifest:
    return renamed(
        ensemble, name=name, base_model=BaseModelRef.model_validate({"path": "maker/model", **base})
    )


def test_revision_of_the_training_is_served_unless_the_user_chose(ensemble: Path) -> None:
    manifests = {ensemble: on_base(ensemble, "a", revision="v1")}

    assert flag(server_arguments(manifests, None, []), "--revision") == "v1"
    assert flag(server_arguments(manifests, None, ["--revision", "v2"]), "--revision") == "v2"
    assert "--revision" not in server_arguments(manifests, "maker/other", [])


@pytest.mark.parametrize(
    ("one", "other", "complaint"),
    [
        ({"revision": "v1"}, {"revision": "v2"}, r"different bases \['maker/model@v1', 'maker/model@v2'\]"),
        ({"revision": "v1"}, {}, r"different bases \['maker/model', 'maker/model@v1'\]"),
        ({"fingerprint": "a" * 64}, {"fingerprint": "b" * 64}, "'a' on aaaaaaaaaaaa, 'b' on bbbbbbbbbbbb"),
    ],
)
def test_ensembles_of_different_bases_are_refused(
    ensemble: Path,
    tmp_path: Path,
    one: dict[str, str],
    other: dict[str, str],
    complaint: str,
) -> None:
    (tmp_path / "b").symlink_to(ensemble)
    manifests = {ensemble: on_base(ensemble, "a", **one), tmp_path / "b": on_base(ensemble, "b", **other)}

    with pytest.raises(ConfigError, match=complaint):
        server_arguments(manifests, None, [])


def test_one_base_in_two_places_is_one_base(ensemble: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(ensemble)
    manifests = {
        ensemble: on_base(ensemble, "a", path="gone", fingerprint="a" * 64),
        tmp_path / "b": on_base(ensemble, "b", path=str(base), fingerprint="a" * 64),
    }

    assert server_arguments(manifests, None, [])[0] == str(base)


def test_another_base_is_refused_before_vllm_is_loaded(ensemble: Path, tmp_path: Path) -> None:
    trained_on = BaseModelRef(path="anything", fingerprint="b" * 64)
    copied = Path(shutil.copytree(ensemble, tmp_path / "copy"))
    save_manifest(copied, renamed(copied, base_model=trained_on))
    base = renamed(ensemble).base_model.path

    with pytest.raises(ConfigError, match=r"trained on a base .* bbbbbbbbbbbb .*--base-unchecked"):
        serve(Settings((copied,)), base, [], 30)


def test_cut_off_adapter_is_told_before_vllm_is_loaded(ensemble: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(ensemble, tmp_path / "copy"))
    weights = copied / "member-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    with pytest.raises(ManifestError, match=r"member-2/adapter_model.safetensors' cannot be read .* cut off"):
        serve(Settings((copied,)), None, [], 30)


def test_alias_that_leads_nowhere_is_refused_before_vllm_is_loaded(ensemble: Path) -> None:
    settings = Settings((ensemble,), aliases={"my": {"nobody": 1}})

    with pytest.raises(ConfigError, match="the alias 'my' stands for 'nobody', which is no ensemble"):
        checked_arguments(settings, None, [], 30)


def test_record_that_others_may_read_is_refused_before_vllm_is_loaded(ensemble: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.unanswered.jsonl"
    path.touch()
    path.chmod(0o644)

    with pytest.raises(ConfigError, match="may be read by others"):
        serve(Settings((ensemble,), record=RecordSettings(path=tmp_path / "rows.jsonl")), None, [], 30)


@pytest.mark.parametrize(
    ("flags", "variable"), [(["--api-key", "x"], ""), (["--api_key=x"], ""), ([], "x")], ids=str
)
def test_keys_of_vllm_beside_ours_are_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], variable: str
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", variable)

    with pytest.raises(
        ConfigError, match="two doors: --keys, and vLLM's own --api-key or VLLM_API_KEY; keep one"
    ):
        serve(Settings((tmp_path,), access=AccessSettings(keys=tmp_path / "keys.yaml")), None, flags, 30)


def test_base_that_is_no_checkpoint_can_only_be_served_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(ConfigError, match=r"cannot be compared .*--base-unchecked"):
        served_fingerprint(str(tmp_path / "model.gguf"), None, unchecked=False)

    assert served_fingerprint(str(tmp_path / "model.gguf"), None, unchecked=True) is None
    assert "is not compared" in caplog.text


def test_missing_base_directory_is_refused_by_name(ensemble: Path) -> None:
    with pytest.raises(ConfigError, match=r"base model '/no/such/model' does not exist: .* --base PATH"):
        server_arguments({ensemble: load_manifest(ensemble)}, "/no/such/model", [])


def test_hub_ids_are_left_to_vllm(ensemble: Path) -> None:
    arguments = server_arguments({ensemble: load_manifest(ensemble)}, "maker/model-1b", [])

    assert arguments[0] == "maker/model-1b"
    assert flag(arguments, "--served-model-name") == "model-1b"


def test_base_gives_way_when_an_ensemble_has_its_name(base: Path, ensemble: Path) -> None:
    arguments = server_arguments({ensemble: renamed(ensemble, name="tiny-base")}, None, [])

    assert flag(arguments, "--served-model-name") == str(base)


def test_directory_without_manifest_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no ensemble\.json"):
        serve(Settings((tmp_path,)), None, [], 30)


@pytest.mark.slow
def test_wrong_arguments_are_refused_before_torch_or_vllm_are_loaded() -> None:
    """Either takes seconds, which is long for a misspelt directory."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from softspec.errors import ManifestError\n"
        "from softspec.server.ops.launch import serve\n"
        "from softspec.server.ops.settings import Settings\n"
        "try:\n"
        "    serve(Settings((Path('nowhere'),)), None, [], 30)\n"
        "except ManifestError:\n"
        "    sys.exit(1 if {'torch', 'vllm'} & set(sys.modules) else 0)\n"
        "sys.exit(2)\n"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("rank", [None, "8"])
def test_adapter_without_a_rank_is_refused(ensemble: Path, tmp_path: Path, rank: str | None) -> None:
    copied = Path(shutil.copytree(ensemble, tmp_path / "copy"))
    path = copied / "member-0" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": rank}))

    with pytest.raises(ManifestError, match=f"'r' is {rank!r}, expected the LoRA rank"):
        load_manifest(copied)


def test_uvicorn_does_not_log_requests_a_second_time(ensemble: Path) -> None:
    settings = Settings((ensemble,), base_unchecked=True)
    silent = replace(settings, log=LogSettings(requests=False))

    assert "--disable-uvicorn-access-log" in checked_arguments(settings, None, [], 30)
    assert "--disable-uvicorn-access-log" not in checked_arguments(silent, None, [], 30)


def test_standard_output_is_left_to_the_request_log() -> None:
    chosen = server_environment(Settings((Path("a"),)), {})
    wished = server_environment(Settings((Path("a"),)), {"VLLM_LOGGING_STREAM": "ext://sys.stdout"})

    assert chosen["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert wished["VLLM_LOGGING_STREAM"] == "ext://sys.stdout"


def test_vllm_may_not_log_content_where_the_server_does_not(
    ensemble: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings((ensemble,), base_unchecked=True)

    with pytest.raises(ConfigError, match="--enable-log-requests logs prompts and answers"):
        serve(settings, str(base), ["--enable_log_requests"], 30)
    monkeypatch.setenv("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "True")
    with pytest.raises(ConfigError, match="VLLM_DEBUG_LOG_API_SERVER_RESPONSE logs prompts and answers"):
        serve(settings, str(base), [], 30)


@pytest.mark.parametrize(
    ("found", "expected"),
    [("", "softspec"), ("other", "other,softspec"), ("softspec,other", "other,softspec")],
)
def test_plugin_is_named_beside_the_users_plugins(found: str, expected: str) -> None:
    environment = server_environment(Settings((Path("a"),)), {"VLLM_PLUGINS": found})

    assert environment["VLLM_PLUGINS"] == expected
    assert Settings.from_environment(environment).ensembles == (Path("a"),)


def test_plugins_that_vllm_loads_by_itself_stay_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """vLLM loads what VLLM_PLUGINS names and nothing else, once it is set. Endpoint plugins are loaded only then."""
    package = tmp_path / "other-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    groups = ("general", "platform", "io_processor", "stat_logger", "endpoint")
    package.joinpath("entry_points.txt").write_text(
        "".join(f"[vllm.{group}_plugins]\nof_{group} = math:pi\n" for group in groups)
    )
    monkeypatch.syspath_prepend(tmp_path)

    names = server_environment(Settings((Path("a"),)), {})["VLLM_PLUGINS"].split(",")

    assert {"of_general", "of_platform", "of_io_processor", "of_stat_logger", "softspec"} <= set(names)
    assert "of_endpoint" not in names


@pytest.mark.parametrize(("has_gpu", "chosen"), [(False, {"": "0", "1": "1"}), (True, {"": None, "0": None})])
def test_model_runner_is_vllms_choice_on_gpus_and_the_first_on_cpus(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, chosen: dict[str, str | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    for wish, expected in chosen.items():
        wishes = {"VLLM_USE_V2_MODEL_RUNNER": wish} if wish else {}
        environment = server_environment(Settings((Path("a"),)), wishes)
        assert environment.get("VLLM_USE_V2_MODEL_RUNNER") == expected


@pytest.mark.parametrize(("cores", "wish", "expected"), [(2, None, "0"), (3, None, None), (2, "1", "1")])
def test_model_computes_on_both_of_two_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, wish: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)))
    wishes = {} if wish is None else {"VLLM_CPU_NUM_OF_RESERVED_CPU": wish}

    environment = server_environment(Settings((Path("a"),)), wishes)

    assert environment.get("VLLM_CPU_NUM_OF_RESERVED_CPU") == expected


def test_kv_blocks_end_where_the_adapters_begin(base: Path, ensemble: Path) -> None:
    """Members share whole blocks of the prompt; vLLM's CPU default of 128 would leave nothing to share."""
    manifest = renamed(ensemble, activation=BlockActivation(block_size=32))

    assert flag(server_arguments({ensemble: manifest}, None, []), "--block-size") == "32"
    assert "--block-size" not in server_arguments({ensemble: load_manifest(ensemble)}, None, [])
