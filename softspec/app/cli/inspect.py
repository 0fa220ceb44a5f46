"""`softspec inspect`: what an ensemble directory holds."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.demo.shipped import named_ensemble
from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import load_manifest, member_rank

app = App(
    "inspect",
    help_epilogue="""\
Examples:
  softspec inspect runs/my
  softspec inspect runs/my --json""",
)


@app.default
def inspect(
    ensemble: Annotated[Path, Parameter(name="ENSEMBLE_DIR")],
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Print what matters of the manifest, or all of it.

    Args:
        ensemble: an ensemble directory, 'demo' for the one in the package
        as_json: print the whole manifest as JSON
    """
    ensemble = named_ensemble(ensemble)
    manifest = load_manifest(ensemble)
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    rows = {
        "name": manifest.name,
        "base model": manifest.base_model.path,
        "members": f"{manifest.num_members} of LoRA rank {member_rank(ensemble, manifest)}",
        "renyi_alpha": f"{manifest.renyi_alpha:g} ({manifest.objective}, per {manifest.granularity})",
        "weights rule": manifest.weights_rule,
        "activation": json.dumps(manifest.activation.model_dump()),
        "held out": json.dumps(manifest.held_out) if manifest.held_out else "not scored",
        "calibration": _calibrated(manifest.calibration),
    }
    for label, value in rows.items():
        print(f"{label:14}{value}")


def _calibrated(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none: confidence is null"
    kinds = [calibration] if calibration.also is None else [calibration, calibration.also]
    return "; ".join(f"{each.judged} by {each.metric}, thresholds for {_targets(each)}" for each in kinds)


def _targets(calibration: Calibration) -> str:
    return ", ".join(map(str, calibration.thresholds)) or "nothing"
