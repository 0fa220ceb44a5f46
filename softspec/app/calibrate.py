"""One run of `softspec calibrate`: an ensemble over a file, and what was found into its `ensemble.json`.

In: an ensemble directory, and rows with a truth. Out: what was fitted. All is checked before the model is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from softspec.app.outputs import check_output
from softspec.app.smollm2 import base_of
from softspec.artefact.manifest import load_manifest
from softspec.calibration.calibrate import calibrate, plan_of, require_room, write
from softspec.calibration.fit import Fitted, Wanted
from softspec.calibration.judged import Asking
from softspec.ensemble.load import load


@dataclass(frozen=True)
class Place:
    """What computes, on which base, and what is written beside `ensemble.json`."""

    output: Path | None = None
    backend: Literal["vllm", "transformers"] = "transformers"
    base: str | None = None
    base_unchecked: bool = False
    overwrite: bool = False


def calibrate_file(
    ensemble: Path, data: Path, metrics: tuple[str, ...], wanted: Wanted, asking: Asking, place: Place
) -> Fitted:
    """Calibrate an ensemble on the rows of a file, and write that into its manifest.

    Raises:
        UserError: the ensemble, a row or a flag is wrong, or nothing can be said of these rows.
    """
    check_output(place.output, [data])
    manifest = load_manifest(ensemble)
    plan = plan_of(data, metrics, wanted, asking)
    require_room(manifest, plan.judged, place.overwrite)
    base = place.base or base_of([ensemble])
    with load(ensemble, backend=place.backend, base=base, base_unchecked=place.base_unchecked) as model:
        fitted = calibrate(model, plan)
    write(ensemble, fitted.calibration)
    return fitted
