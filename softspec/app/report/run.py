"""One run of `softspec report`: what is there of a run becomes one page; what is not is said, with how to get it.

In: an ensemble directory, scores files, answers of members. Out: an HTML file, and if asked for JSON and preference
rows. A model is loaded only to ask members about prompts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from softspec.app import interruption
from softspec.app.report.given import (
    Wanted,
    check_outputs,
    data_of,
    of_same_data,
    require_all_used,
    require_own,
)
from softspec.app.report.page import Page, as_html
from softspec.app.report.refusals import RedTeam, judge_refusals, preferences, refusal_rule
from softspec.app.report.samples import draw_samples, read_prompts, read_samples
from softspec.app.report.training import LOG_NAME, read_training
from softspec.app.report.views import ScoresView, scores_view, training_view
from softspec.app.smollm2 import base_of
from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import Manifest, load_manifest
from softspec.console import tell
from softspec.errors import ConfigError
from softspec.evaluation.judge import named_baselines
from softspec.evaluation.rows import Prompt
from softspec.evaluation.score import ensemble_digest


def write_report(run: Path, wanted: Wanted) -> None:
    """Write the page, and the files that were asked for beside it.

    Raises:
        UserError: a file is missing, malformed, or of another run.
        Interrupted: by Ctrl-C while members are asked; the same command goes on.
    """
    if wanted.asked.draws < 2:
        raise ConfigError("--bootstrap must be at least 2")
    check_outputs(wanted)
    manifest = load_manifest(run)
    digest = ensemble_digest(run, manifest, manifest.base_model.path)
    baselines = named_baselines(wanted.baselines)
    data = [data_of(path, wanted.data) for path in wanted.scores]
    for path in wanted.scores:
        require_own(path, manifest, digest)
    require_all_used(wanted, baselines)
    rule = refusal_rule(wanted.refusal)
    prompts = None if wanted.prompts is None else read_prompts(wanted.prompts)
    kept = _kept_samples(run, manifest, digest, wanted)
    log = read_training(run / LOG_NAME)
    views = [
        scores_view(path, of_same_data(path, baselines), own, wanted.asked, f"Scores {number}")
        for number, (path, own) in enumerate(zip(wanted.scores, data, strict=True), start=1)
    ]
    if prompts is not None:
        _ask_members(run, digest, prompts, wanted)
        kept = wanted.kept
    red_team = None
    if kept is not None:
        _, answers = read_samples(kept)
        red_team = judge_refusals(answers, manifest.log_weights, rule, wanted.asked.seed)
    page = Page(
        title=manifest.name,
        facts=_facts(run, manifest),
        training=None if log is None else training_view(log),
        scores=views,
        calibration=_calibrations(manifest),
        red_team=red_team,
        missing=_missing(log is not None, views, manifest, red_team),
    )
    wanted.output.write_text(as_html(page), encoding="utf-8")
    if wanted.document is not None:
        _write_json(wanted.document, manifest, views, red_team)
    if wanted.preferences is not None and red_team is not None:
        _export(wanted.preferences, red_team)


def _export(path: Path, red_team: RedTeam) -> None:
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in preferences(red_team)]
    path.write_bytes("".join(rows).encode("utf-8", "replace"))
    tell(
        f"{len(rows) // 2} of {len(red_team.prompts)} prompts are in '{path}', those on which members differ beyond "
        f"chance; {red_team.samples} answers of each member were judged, more find more"
    )


def _kept_samples(run: Path, manifest: Manifest, digest: str, wanted: Wanted) -> Path | None:
    """The file of members' answers to judge, if there are no prompts to ask."""
    if wanted.prompts is not None:
        return None
    if wanted.samples is None:
        if wanted.preferences is not None:
            raise ConfigError(
                "--red-team needs answers of members: give --red-team-prompts PROMPTS.jsonl, or --red-team-samples"
            )
        return None
    header, _ = read_samples(wanted.samples)
    if header.model_digest != digest or header.num_members != manifest.num_members:
        raise ConfigError(f"'{wanted.samples}' has answers of other members than those of '{run}'")
    return wanted.samples


def _ask_members(run: Path, digest: str, prompts: Sequence[Prompt], wanted: Wanted) -> None:
    drawing = replace(wanted.drawing, base=wanted.drawing.base or base_of([run]))
    with interruption.interruptible(f"interrupted; the same command goes on from '{wanted.kept}'"):
        draw_samples(run, digest, prompts, wanted.kept, drawing)


def _facts(run: Path, manifest: Manifest) -> list[tuple[str, str]]:
    held_out = manifest.held_out.get("mixture_nll")
    weights = ", ".join(f"{math.exp(weight):.3f}" for weight in manifest.log_weights)
    found = [
        ("directory", run.name),
        ("base model", _without_folders(manifest.base_model.path)),
        ("members", f"{manifest.num_members}, weights {weights} ({manifest.weights_rule})"),
        ("objective", f"{manifest.objective}, alpha {manifest.renyi_alpha:g}, per {manifest.granularity}"),
        (
            "trained on",
            f"{manifest.training['examples']:,} examples" if "examples" in manifest.training else "",
        ),
        ("held out", f"mixture NLL {held_out:.4f} nats" if held_out is not None else ""),
    ]
    return [(name, value) for name, value in found if value]


def _without_folders(base: str) -> str:
    """A hub id as it is, of a directory only the name: where it lies is nobody else's business."""
    return Path(base).name if Path(base).is_absolute() else base


def _missing(
    has_training: bool, views: Sequence[ScoresView], manifest: Manifest, red_team: RedTeam | None
) -> list[tuple[str, str]]:
    found = []
    if not has_training:
        found.append(("training curves", f"`{LOG_NAME}` is not in the directory; `softspec train` writes it"))
    if not views:
        found.append(
            (
                "metrics",
                "`softspec evaluate RUN DATA.jsonl --scores SCORES.jsonl`, then this with `--scores SCORES.jsonl`",
            )
        )
    if views and not any(view.responsibilities for view in views):
        found.append(
            ("responsibilities by source", "rows of `softspec evaluate` with a `source`, or `ratings`")
        )
    if manifest.calibration is None:
        found.append(("calibration", "`softspec calibrate RUN DATA.jsonl`"))
    if red_team is None:
        found.append(("red team", "this with `--red-team-prompts PROMPTS.jsonl`"))
    return found


def _calibrations(manifest: Manifest) -> list[Calibration]:
    first = manifest.calibration
    return [each for each in (first, None if first is None else first.also) if each is not None]


def _write_json(
    path: Path, manifest: Manifest, views: Sequence[ScoresView], red_team: RedTeam | None
) -> None:
    document: dict[str, Any] = {
        "name": manifest.name,
        "scores": [
            {
                **view.document,
                "contested": [{"row": row.row, "epistemic": row.uncertainty} for row in view.contested],
            }
            for view in views
        ],
        "red_team": None if red_team is None else asdict(red_team),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_bytes(f"{text}\n".encode("utf-8", "replace"))
