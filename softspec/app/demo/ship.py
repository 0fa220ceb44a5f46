"""Make the ensemble that travels in the package: `softspec demo`, then `python -m softspec.app.demo.ship runs/demo`.

In: the folder of a finished demo. Out: its ensemble in 16 bits, scored again as it is now, with no path of this machine
in any file.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from softspec.app.demo.facts import invent_things
from softspec.app.demo.folder import HELD_OUT_NAME, RESULTS_NAME, open_folder
from softspec.app.demo.measure import by_kind, measure
from softspec.app.demo.settings import DemoSettings
from softspec.app.demo.shipped import NAME, SHIPPED
from softspec.app.smollm2 import DEFAULT_BASE, local_base
from softspec.artefact.manifest import BaseModelRef, load_manifest, member_dir, save_manifest
from softspec.errors import ConfigError

COMMAND = "softspec demo --output runs/demo && python -m softspec.app.demo.ship runs/demo"


def ship(folder: Path, destination: Path = SHIPPED) -> Path:
    """Write the ensemble of a finished demo with the default settings to `destination`, in 16 bits; returns it.

    Raises:
        ConfigError: `folder` is no finished demo of the default settings.
    """
    settings = DemoSettings()
    if not (folder / RESULTS_NAME).is_file() or open_folder(folder, settings).lacks("policy"):
        raise ConfigError(f"'{folder}' is no finished demo; run: softspec demo --output {folder}")
    return write_16_bit(folder, str(local_base()), settings, destination)


def write_16_bit(folder: Path, base: str, settings: DemoSettings, destination: Path) -> Path:
    """The ensemble in `folder` with weights in float16, scored as it then is on the demo's held-out statements."""
    manifest = load_manifest(folder)
    shutil.rmtree(destination, ignore_errors=True)
    for member in range(manifest.num_members):
        _write_member(member_dir(folder, member), member_dir(destination, member))
    named = BaseModelRef(path=DEFAULT_BASE, fingerprint=manifest.base_model.fingerprint)
    training = {**manifest.training, "data_seed": settings.seed, "command": COMMAND}
    save_manifest(
        destination,
        manifest.model_copy(update={"name": NAME, "base_model": named, "training": training, "held_out": {}}),
    )
    score(destination, base, folder / HELD_OUT_NAME, settings)
    return destination


def score(ensemble: Path, base: str, held_out: Path, settings: DemoSettings) -> None:
    """Put the scores on held-out statements, and the questions' mutual information, into the ensemble's manifest."""
    things = invent_things(settings.seed)
    measured = measure(ensemble, base, held_out, things)
    manifest = load_manifest(ensemble)
    scores = {**manifest.held_out, "question_mutual_information": by_kind(measured.information, things)}
    save_manifest(ensemble, manifest.model_copy(update={"held_out": scores}))


def _write_member(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    weights = load_file(source / "adapter_model.safetensors")
    halves = {name: weight.to(torch.float16) for name, weight in weights.items()}
    save_file(halves, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = DEFAULT_BASE
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(f"wrote {ship(Path(sys.argv[1]))}")
