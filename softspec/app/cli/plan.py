"""`softspec plan`: what an ensemble needs, before there is a server."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from softspec.app.bench.core.flags import LayersText, WholeNumber, parse_layers
from softspec.app.outputs import check_output
from softspec.app.plan.device import DeviceName

app = App(
    "plan",
    usage="softspec plan [ENSEMBLE_DIR] [OPTIONS]",
    help_epilogue="""\
Arithmetic, nothing is started: memory as vLLM divides it, times at best.
Devices are as in their data sheets; 'cpu' is two cores.

Examples:
  softspec plan runs/my --gpu l4 --context 1500 --concurrency 8
  softspec plan --base llama/config.json --members 4 --layers top_third""",
)


@app.default
def plan(
    ensemble: Annotated[Path | None, Parameter(name="ENSEMBLE_DIR")] = None,
    /,
    *,
    base: Annotated[str | None, Parameter(metavar="BASE")] = None,
    members: Annotated[WholeNumber | None, Parameter(metavar="K")] = None,
    rank: Annotated[WholeNumber | None, Parameter(metavar="R")] = None,
    layers: LayersText | None = None,
    activation: Literal["block", "always"] | None = None,
    context: Annotated[WholeNumber, Parameter(metavar="TOKENS")] = 2048,
    output_tokens: Annotated[WholeNumber, Parameter(metavar="TOKENS")] = 256,
    concurrency: Annotated[WholeNumber, Parameter(metavar="USERS")] = 16,
    gpu: DeviceName = "h200",
    memory_gib: Annotated[float | None, Parameter(metavar="GIB")] = None,
    bandwidth_gbs: Annotated[float | None, Parameter(metavar="GBS")] = None,
    tflops: float | None = None,
    kv_gib: Annotated[float | None, Parameter(metavar="GIB")] = None,
    output: Annotated[Path | None, Parameter(name="--json", metavar="FILE")] = None,
) -> None:
    """Say what an ensemble needs: memory, time per token and to the first one.

    Args:
        ensemble: an ensemble directory; without one, one that is not there yet
        base: directory, config.json or hub id (default: the one it names)
        members: members (default: those of the directory, or 4)
        rank: LoRA rank (default: that of the directory, or 16)
        layers: decoder layers with adapters, from 0 (default: the directory's)
        activation: adapters off for whole blocks of the prompt, or never
        context: tokens of a prompt and its answer together
        output_tokens: tokens of the answer among them
        concurrency: users who ask at once
        gpu: the device
        memory_gib: its memory, in GiB, where it differs
        bandwidth_gbs: what it reads, in 10^9 bytes a second, where it differs
        tflops: what it computes, in 10^12 operations a second, where it differs
        kv_gib: KV cache in GiB, instead of what is left (default on a CPU: 4)
        output: where all numbers go, as JSON
    """
    from softspec.app.plan.case import Load
    from softspec.app.plan.given import Machine, Wanted, case_of
    from softspec.app.plan.page import format_plan, plan_document

    check_output(output)
    machine = Machine(gpu, memory_gib, bandwidth_gbs, tflops, kv_gib)
    wanted = Wanted(members, rank, None if layers is None else parse_layers(layers), activation)
    case = case_of(ensemble, base, wanted, Load(context, output_tokens, concurrency), machine)
    if output is not None:
        output.write_text(json.dumps(plan_document(case, machine.room), indent=1) + "\n", encoding="utf-8")
    print(format_plan(case, machine.room))
