"""`softspec select`: alpha and the number of members by held-out likelihood, and the ensemble that has them."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from softspec.app.outputs import check_output

app = App(
    "select",
    help_epilogue="""\
CONFIG is that of 'softspec train'; its eval_file, or else a part of its
train_file, is what is chosen by. A selection that was interrupted goes on
when the same command is given again.

Examples:
  softspec select my.yaml --alphas 0 0.5 0.8 --members 2 4 --json selection.json
  softspec select my.yaml --ranks 4 16 --layers all top_third --budget 20000""",
)


@app.default
def select(
    config: Path,
    /,
    *,
    alphas: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (),
    members: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    ranks: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    layers: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    budget: Annotated[int | None, Parameter(metavar="ADAPTER_STEPS")] = None,
    final_share: float = 0.3,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
    overwrite: bool = False,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
) -> None:
    """Choose alpha and the number of members, and say what was tried, what it cost and what was learned.

    Args:
        config: YAML file; relative paths in it are relative to it
        alphas: orders to try (default: 0 0.3 0.5 0.8 1)
        members: how many members may be kept; the most are trained (default: 1 to num_members)
        ranks: LoRA ranks to try (default: lora_r)
        layers: layers to try, all or top_third (default: layers_to_transform)
        budget: most adapter-steps of the whole selection; runs become shorter to fit
        final_share: share of the held-out rows that nothing is chosen by
        output: where the journal goes as JSON, beside the ensemble's own copy
        overwrite: replace the ensemble in output_dir
        overrides: in place of what the file says; may be given several times
    """
    from softspec.train.config import dump_config, load_config

    settings = load_config(config, overrides)
    check_output(output, [config])

    from softspec.app.cli.progress import hide_foreign_progress
    from softspec.train.selection.plan import Wanted
    from softspec.train.selection.select import select_ensemble
    from softspec.train.selection.table import told

    hide_foreign_progress()
    print(dump_config(settings), file=sys.stderr)
    wanted = Wanted(alphas, members, ranks, layers, budget, final_share)
    ensemble, journal = select_ensemble(settings, wanted, overwrite)
    if output:
        output.write_text(json.dumps(journal, indent=2) + "\n", encoding="utf-8")
    print(told(journal))
    print(f"wrote {ensemble}; serve it with: softspec serve {ensemble}")
