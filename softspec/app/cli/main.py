"""The command line: `softspec train | serve | inspect | demo | bench`.

In: arguments. Out: data on stdout, progress and logs on stderr, and an exit code: 0, 2 for what the user can fix (one
clear line), 1 for what they cannot, 128 + signal number when interrupted. Imports `train` and `server` where needed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from softspec import __version__
from softspec.artefact.manifest import load_manifest, member_rank
from softspec.errors import SoftspecError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (serve, bench_serve):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.command(options, rest)
    except SoftspecError as error:
        print(f"softspec: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softspec",
        description="Train alpha-Renyi LoRA ensembles and serve them as one model that knows when it does not know.",
    )
    parser.add_argument("--version", action="version", version=f"softspec {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train an ensemble from a YAML file")
    command.add_argument("config", type=Path, help="YAML file; relative paths in it are relative to it")
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint of an interrupted run, with the --set it began with",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the ensemble in output_dir")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in place of what the file says, for instance renyi_alpha=0.5 or activation.block_size=64; repeatable",
    )
    command.set_defaults(command=train)

    command = commands.add_parser(
        "serve",
        help="serve ensembles with an OpenAI-compatible API",
        epilog="Every other flag goes to vLLM, for instance --port 8000 or --max-model-len 4096 (tokens).",
        allow_abbrev=False,
    )
    command.add_argument("ensembles", type=Path, nargs="+", metavar="ENSEMBLE_DIR")
    command.add_argument(
        "--base", help="base model: directory or hub id (default: the one the ensemble names)"
    )
    command.add_argument("--policy-action", default="answer", help="answer or abstain (default: answer)")
    command.add_argument(
        "--policy-metric", default="mutual_information", help="what is compared with the threshold, in nats"
    )
    command.add_argument(
        "--policy-threshold", type=float, help="abstain when the metric is above this, in nats"
    )
    command.set_defaults(command=serve)

    command = commands.add_parser("inspect", help="show what an ensemble directory holds")
    command.add_argument("ensemble", type=Path, metavar="ENSEMBLE_DIR")
    command.add_argument("--json", action="store_true", help="print the whole manifest as JSON")
    command.set_defaults(command=inspect)

    command = commands.add_parser(
        "demo", help="train, serve and ask an ensemble on generated contradictory sources"
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="directory (default: runs/demo)"
    )
    command.add_argument("--base", help="base model: directory or hub id (default: SmolLM2-135M-Instruct)")
    command.add_argument(
        "--alpha-0", action="store_true", help="also train the alpha = 0 control, for as long again"
    )
    command.add_argument(
        "--json", action="store_true", help="print demo.json to stdout instead of the report"
    )
    command.set_defaults(command=demo)

    benchmarks = commands.add_parser("bench", help="measure on this machine")
    subjects = benchmarks.add_subparsers(required=True, metavar="WHAT")
    _add_bench_serve(subjects)
    _add_bench_train(subjects)
    return parser


def _add_bench_serve(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from softspec.app.bench.serving.settings import WAYS, BenchSettings

    defaults = BenchSettings()
    command = benchmarks.add_parser(
        "serve",
        help="an ensemble beside other ways to its answers: time to first token, per token, tokens per second",
        description="Ways: " + "; ".join(f"{way}: {what}" for way, what in WAYS.items()) + ".",
        epilog="Every other flag goes to vLLM, here and in the unmodified server. The directory comes first.",
        allow_abbrev=False,
    )
    command.add_argument("ensemble", type=Path, nargs="?", metavar="ENSEMBLE_DIR")
    command.add_argument(
        "--random-adapters",
        type=int,
        metavar="K",
        help="instead of a directory: K random adapters of rank 16, which cost what trained ones do",
    )
    command.add_argument("--members", type=int, metavar="K", help="use only the directory's first K members")
    command.add_argument(
        "--base", help="base model: directory or hub id (default: the one the ensemble names)"
    )
    command.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    command.add_argument("--ways", nargs="+", default=defaults.ways, metavar="WAY", help="default: all")
    lists = {"--concurrency": defaults.concurrency, "--prompt-tokens": defaults.prompt_tokens}
    for flag, values in lists.items():
        shown = " ".join(map(str, values))
        command.add_argument(
            flag,
            nargs="+",
            type=int,
            default=values,
            metavar="N",
            help=f"default: {shown}; every pair is measured",
        )
    numbers = {
        "--output-tokens": defaults.output_tokens,
        "--repeats": defaults.repeats,
        "--seed": defaults.seed,
    }
    for flag, value in numbers.items():
        command.add_argument(flag, type=int, default=value, metavar="N", help="default: %(default)s")
    command.set_defaults(command=bench_serve)


def _add_bench_train(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from softspec.app.bench.training.settings import REGIMES, WAYS, BenchSettings

    defaults = BenchSettings()
    command = benchmarks.add_parser(
        "train",
        help="a training step of K members beside other ways to it: seconds, memory, tokens per second",
        description="Ways: " + "; ".join(f"{way}: {what}" for way, what in WAYS.items()) + ".",
    )
    command.add_argument(
        "--base",
        help="directory or hub id; a directory without weights gets random ones (default: SmolLM2-135M-Instruct)",
    )
    command.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    command.add_argument("--ways", nargs="+", default=defaults.ways, metavar="WAY", help="default: all")
    command.add_argument(
        "--regimes",
        nargs="+",
        default=defaults.regimes,
        metavar="REGIME",
        help=f"default: {' '.join(REGIMES)}",
    )
    command.add_argument(
        "--lengths",
        nargs="+",
        default=["/".join(map(str, pair)) for pair in defaults.lengths],
        metavar="PROMPT/COMPLETION",
        help="tokens of an example (default: 256/32 32/8)",
    )
    command.add_argument(
        "--members", nargs="+", type=int, default=defaults.members, metavar="K", help="default: 4 8"
    )
    numbers = {
        "--batch": (defaults.batch, "examples of a micro-batch, two of which are a step"),
        "--rank": (defaults.rank, "of every adapter"),
        "--repeats": (defaults.repeats, "in each of which every way has a turn"),
        "--steps": (defaults.steps, "of a turn"),
        "--seed": (defaults.seed, "of data and adapters"),
    }
    for flag, (value, what) in numbers.items():
        command.add_argument(
            flag, type=int, default=value, metavar="N", help=f"{what} (default: %(default)s)"
        )
    command.add_argument(
        "--alpha",
        type=float,
        default=defaults.renyi_alpha,
        help="order of the objective (default: %(default)s)",
    )
    command.set_defaults(command=bench_train)


def train(options: argparse.Namespace, _: Sequence[str]) -> None:
    _hide_foreign_progress()
    from softspec.train.config import dump_config, load_config, pinned
    from softspec.train.loop.checkpoint import run_folder
    from softspec.train.processes import is_main_process
    from softspec.train.run import train_ensemble

    config = load_config(options.config, options.set)
    if options.resume:
        config = load_config(options.config, [*run_folder(config).overrides, *options.set])
    if is_main_process():
        print(dump_config(config), file=sys.stderr)
    overrides = [pinned(override) for override in options.set]
    output = train_ensemble(config, options.resume, options.overwrite, overrides)
    if is_main_process():
        print(f"wrote {output}; serve it with: softspec serve {output}")


def serve(options: argparse.Namespace, vllm_args: Sequence[str]) -> None:
    from softspec.server.ops.launch import serve as run_server
    from softspec.server.ops.settings import Settings
    from softspec.server.policy.policy import Policy

    policy = Policy(options.policy_action, options.policy_metric, options.policy_threshold)
    ensembles = tuple(path.resolve() for path in options.ensembles)
    run_server(Settings(ensembles, policy), options.base, vllm_args)


def inspect(options: argparse.Namespace, _: Sequence[str]) -> None:
    manifest = load_manifest(options.ensemble)
    if options.json:
        print(manifest.model_dump_json(indent=2))
        return
    rows = {
        "name": manifest.name,
        "base model": manifest.base_model.path,
        "members": f"{manifest.num_members} of LoRA rank {member_rank(options.ensemble, manifest)}",
        "renyi_alpha": f"{manifest.renyi_alpha:g} ({manifest.objective}, per {manifest.granularity})",
        "weights rule": manifest.weights_rule,
        "activation": json.dumps(manifest.activation.model_dump()),
        "held out": json.dumps(manifest.held_out) if manifest.held_out else "not scored",
        "calibration": "yes" if manifest.calibration else "none: confidence is null",
    }
    for label, value in rows.items():
        print(f"{label:14}{value}")


def demo(options: argparse.Namespace, _: Sequence[str]) -> None:
    _hide_foreign_progress()
    from softspec.app.demo.report import format_report
    from softspec.app.demo.story import DemoSettings, run_demo

    results = run_demo(options.output, DemoSettings(base=options.base, alpha_0=options.alpha_0))
    print(json.dumps(results, indent=2) if options.json else format_report(results))


def bench_serve(options: argparse.Namespace, vllm_args: Sequence[str]) -> None:
    from softspec.app.bench.serving.settings import BenchSettings

    settings = BenchSettings(
        tuple(options.ways),
        tuple(options.concurrency),
        tuple(options.prompt_tokens),
        options.output_tokens,
        options.repeats,
        options.seed,
    )
    _hide_foreign_progress()
    from softspec.app.bench.serving.bench import bench_serve as run
    from softspec.app.bench.serving.table import format_report

    document = run(
        options.ensemble,
        options.random_adapters,
        options.members,
        options.base,
        options.json,
        settings,
        vllm_args,
    )
    print(format_report(document))


def bench_train(options: argparse.Namespace, _: Sequence[str]) -> None:
    from softspec.app.bench.training.settings import BenchSettings, parse_lengths

    settings = BenchSettings(
        ways=tuple(options.ways),
        lengths=parse_lengths(options.lengths),
        members=tuple(options.members),
        regimes=tuple(options.regimes),
        batch=options.batch,
        rank=options.rank,
        renyi_alpha=options.alpha,
        repeats=options.repeats,
        steps=options.steps,
        seed=options.seed,
    )
    _hide_foreign_progress()
    from softspec.app.bench.training.run import bench_train as run
    from softspec.app.bench.training.table import format_report

    print(format_report(run(options.base, options.json, settings)))


def _hide_foreign_progress() -> None:
    """Our own bars are the only ones: transformers draws one for every checkpoint it reads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
