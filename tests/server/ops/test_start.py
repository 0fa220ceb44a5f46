"""What is wrong with ensembles, base or options ends the start of vLLM's server with one line of ours."""

from dataclasses import replace
from pathlib import Path

import pytest

from softspec.artefact.manifest import load_manifest, member_dir, save_manifest
from softspec.errors import SoftspecError
from softspec.server.ops.server_config import RecordSettings
from softspec.server.ops.settings import Settings
from softspec.server.upstream.settings import UpstreamSettings
from tests.support.scripted_vllm import NAME, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("damage", ["cut off", "engine", "base", "option", "upstream", "record", "alias"])
def test_what_is_wrong_stops_the_start_with_one_line(tmp_path: Path, damage: str) -> None:
    base = tiny_llama(tmp_path / "tiny-base")
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=2)
    weights = member_dir(ensemble, 1) / "adapter_model.safetensors"
    flags: tuple[str, ...] = ()
    settings = Settings((ensemble,))
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
        complaint = f"ensemble '{NAME}' was not loaded: '{weights}' cannot be read"
    elif damage == "engine":
        complaint = f"ensemble '{NAME}' was not loaded: the engine refuses '{member_dir(ensemble, 1)}'"
    elif damage == "base":
        manifest = load_manifest(ensemble)
        trained_on = manifest.base_model.model_copy(update={"fingerprint": "b" * 64})
        save_manifest(ensemble, manifest.model_copy(update={"base_model": trained_on}))
        complaint = f"ensemble '{NAME}' was trained on a base with fingerprint bbbbbbbbbbbb"
    elif damage == "upstream":
        flags = ("--port", "8123")
        itself = UpstreamSettings(url="http://localhost:8123/v1", model="m")
        settings = replace(settings, upstreams={"big": itself})
        complaint = "upstream 'big' points back at this server, which listens on port 8123"
    elif damage == "record":
        settings = replace(settings, record=RecordSettings(path=tmp_path / "nowhere" / "rows.jsonl"))
        complaint = f"the record '{tmp_path / 'nowhere' / 'rows.jsonl'}' cannot be written: No such file"
    elif damage == "alias":
        settings = replace(settings, aliases={"tiny-base": {NAME: 1}})
        complaint = "'tiny-base' is a model that is served: give the alias another name"
    else:
        flags = ("--stream-interval", "4")
        complaint = "--stream-interval: not tested with ensembles"

    with (
        pytest.raises(SoftspecError) as told,
        serving(
            ensemble,
            *flags,
            unreadable="member-1" * (damage == "engine"),
            SOFTSPEC_SETTINGS=settings.to_environment()["SOFTSPEC_SETTINGS"],
        ),
    ):
        pass

    assert str(told.value).startswith(complaint)
    assert "\n" not in str(told.value)
