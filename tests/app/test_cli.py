"""The command line: data on stdout, one clear line and exit code 2 for what the user can fix."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softspec import __version__
from softspec.app.cli.main import app, main
from softspec.app.cli.vllm_flags import split_arguments
from softspec.maths.answer import METRICS
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import DEFAULT_METRIC
from tests.support.tiny import random_adapters

ROOT = Path(__file__).parents[2]
INSTALL_VLLM = "pip install 'softspec[serve-cpu]', or 'softspec[serve-gpu]' for GPUs"
COMMANDS = [
    ["train"],
    ["select"],
    ["serve"],
    ["score"],
    ["inspect"],
    ["plan"],
    ["demo"],
    ["bench", "load"],
    ["bench", "serve"],
    ["bench", "train"],
]


def understood(arguments: Sequence[str]) -> Any:
    """The bound arguments of the command's function, which is not called."""
    return app.parse_args(list(arguments), exit_on_error=False, print_error=False)[1]


# Answers


def test_inspect_prints_the_manifest_as_json(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_adapters(tiny_base, tmp_path / "my", num_members=2, name="my")

    code = main(["inspect", str(folder), "--json"])

    assert code == 0
    assert json.loads(capsys.readouterr().out)["num_members"] == 2


def test_inspect_says_what_there_is(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_adapters(tiny_base, tmp_path / "my", num_members=2, rank=4, name="my")

    main(["inspect", str(folder)])

    assert "2 of LoRA rank 4" in capsys.readouterr().out


def test_inspect_knows_the_ensemble_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["inspect", "demo"]) == 0
    assert capsys.readouterr().out.startswith("name          demo\n")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"softspec {__version__}\n"


# Mistakes


def only_line_of_a_mistake(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says to these arguments, in one line on stderr, before it ends with exit code 2."""
    code = main(arguments)

    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("softspec: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--foo", "Unknown command"),
        ("trane my.yaml", 'Did you mean "train"?'),
        ("trane --help", 'Did you mean "train"?'),
        ("bench tran", 'Did you mean "train"?'),
        ("train", "CONFIG requires an argument. See 'softspec train --help'."),
        ("train missing.yaml", "cannot read 'missing.yaml'"),
        ("train a.yaml b.yaml", "b.yaml"),
        ("train a.yaml --sett x=1", "Did you mean --set?"),
        ("train a.yaml --set", "--set requires an argument"),
        ("train a.yaml --set x=1 y=2", "y=2"),
        ("train a.yaml --resume yes", "yes"),
        ("train a.yaml --no-resume", "Unknown option: --no-resume"),
        ("train a.yaml --empty-set", "Unknown option: --empty-set"),
        ("inspect", "ENSEMBLE_DIR requires an argument"),
        ("inspect missing", "no ensemble.json in 'missing'"),
        ("inspect my --jason", "Did you mean --json?"),
        ("inspect my --port 8000", "Unknown option: --port"),
        ("serve", "found no ENSEMBLE_DIR"),
        ("serve --port 8000", "found no ENSEMBLE_DIR"),
        ("serve --port 8000 my", "found no ENSEMBLE_DIR"),
        ("serve missing", "no ensemble.json in"),
        ("serve missing --base", "--base requires an argument"),
        ("serve missing --policy-threshold much", "is 'much': expected a number, target_error=SHARE or"),
        ("demo my", "my"),
        ("demo --output", "--output requires an argument"),
        ("demo --outptu runs", "Did you mean --output?"),
        ("bench load", "URL requires an argument"),
        ("bench load http://h --rate 1 --duration 2 --requests 3", "give one of them"),
        ("bench train", "--json requires an argument. See 'softspec bench train --help'."),
        ("bench train --json f --ways", "--ways requires at least 1"),
        ("bench train --json f --members 4 many", 'unable to convert "many" into int'),
        ("bench train --json f --batch 4.5", "'4.5' is no whole number"),
        ("bench train --json f --lengths 256/32 8", "--lengths has '8': expected PROMPT/COMPLETION"),
        ("bench train --json f --has-trl", "Unknown option: --has-trl"),
        ("bench serve my", "--json requires an argument"),
        ("bench serve my --json f --repeats few", "'few' is no whole number"),
        ("bench serve my your --json f", "found 2 ensemble directories"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    line = only_line_of_a_mistake(arguments.split(), capsys)

    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy-action", "abstain"], "needs a threshold"),
        (["--policy-action", "guess"], "expected answer, abstain or route"),
        (["--policy-threshold=-0.4"], "threshold is -0.4"),
        (["--policy-metric", "surprise"], f"expected one of {DEFAULT_METRIC}"),
        (["--policy-threshold", "0.4"], "threshold given for action 'answer', which withholds nothing"),
        (["--policy-metric", "epistemic"], "metric given for action 'answer', which withholds nothing"),
        (["--policy-min-tokens", "0"], "min_tokens is 0: expected a number of at least 1"),
        (["--policy-pinned"], "pinned but withholds nothing"),
        (["--policy-hold-tokens", "4"], "hold_tokens given for action 'answer'"),
        (["--policy-action", "route", "--policy-threshold", "1"], "no upstream is configured"),
        (["--upstream", "http://h/v1"], "--upstream has no '=': expected NAME=URL,model=MODEL"),
        (["--upstream", "big=http://h/v1"], "upstream 'big': model: missing"),
        (["--upstream", "big=http://h/v1,model=m,api_key_env=NOT_SET"], "variable NOT_SET is not set"),
        (
            ["--record", "nowhere/record.jsonl"],
            "nowhere/record.jsonl' cannot be written: No such file or directory",
        ),
        (["--server-config", "nowhere.yaml"], "cannot read 'nowhere.yaml': No such file or directory"),
        (["--grpc"], "'--grpc' cannot be given to 'softspec serve'"),
        (["--shutdown-timeout", "9"], "its name here is --drain-timeout"),
        (["--drain-timeout=-1"], "--drain-timeout is -1: expected 0 or more seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_policy_or_flag_that_cannot_be_followed_is_refused_before_the_server_starts(
    flags: list[str], message: str, tiny_ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = only_line_of_a_mistake(["serve", str(tiny_ensembles["always-2"]), *flags], capsys)

    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "arguments", "install"),
    [
        ("transformers", ["train", "config.yaml"], "pip install 'softspec[train]'"),
        ("openai", ["demo"], "pip install 'softspec[demo]'"),
        ("psutil", ["bench", "train", "--json", "f"], "pip install 'softspec[bench]'"),
        ("vllm", ["demo"], INSTALL_VLLM),
        ("vllm", ["serve", "ensemble"], INSTALL_VLLM),
    ],
    ids=["train", "demo", "bench", "demo that cannot serve", "serve"],
)
def test_a_command_without_its_extra_says_what_to_install(
    missing: str, arguments: list[str], install: str, tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "ensemble").symlink_to(tiny_ensembles["always-2"])
    settings = {"base_model": "base", "train_file": "train.jsonl", "output_dir": "my"}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    code = f"import sys; sys.modules['{missing}'] = None; from softspec.app.cli.main import main; sys.exit(main())"

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    command = " ".join(["softspec", *arguments[: 2 if arguments[0] == "bench" else 1]])
    lines = [line for line in done.stderr.splitlines() if line.startswith("softspec: ")]
    assert lines == [f"softspec: '{command}' needs packages that are not installed ({missing}): {install}"]
    assert done.returncode == 2


# What the system refuses, and who leaves


def running(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command that raises this."""

    def command(tokens: Sequence[str]) -> None:
        raise error

    monkeypatch.setattr("softspec.app.cli.main.app", command)
    return main(["inspect", "my"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/etc/x"), "'/etc/x': Permission denied"),
        (OSError("of a library\nin two lines"), "of a library in two lines"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=["disk", "permission", "library", "no words"],
)
def test_what_the_system_refuses_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, line: str
) -> None:
    assert running(monkeypatch, error) == 2
    assert capsys.readouterr().err == f"softspec: {line}\n"


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert running(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_of_which_a_library_makes_another_error_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when it comes while modules are being imported."""

    def command(tokens: Sequence[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x'") from None

    monkeypatch.setattr("softspec.app.cli.main.app", command)
    # A shell's background jobs begin with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["inspect", "my"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_an_error_of_ours_is_still_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        running(monkeypatch, ZeroDivisionError())


def test_a_reader_who_leaves_is_not_told_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert running(monkeypatch, BrokenPipeError(32, "Broken pipe")) == 141
    assert capsys.readouterr().err == ""


# What goes to vLLM


@pytest.mark.parametrize("command", [["serve"], ["bench", "serve", "--json", "f"]], ids=["serve", "bench"])
@pytest.mark.parametrize(
    ("arguments", "directories", "passed"),
    [
        ("my", ["my"], []),
        ("my --port 8000", ["my"], ["--port", "8000"]),
        ("--base b my --port 8000", ["my"], ["--port", "8000"]),
        ("my --port 8000 --base b --enforce-eager", ["my"], ["--port", "8000", "--enforce-eager"]),
        ("my two --base=b", ["my", "two"], []),
        ("my -O3 -tp 2 -dph", ["my"], ["-O3", "-tp", "2", "-dph"]),
        ("my --lora-target-modules a b --x=y", ["my"], ["--lora-target-modules", "a", "b", "--x=y"]),
        ("my --hf-overrides '{\"a\": 1}'", ["my"], ["--hf-overrides", '{"a": 1}']),
        ("my --max_model_len 64 --swap-space -1", ["my"], ["--max_model_len", "64", "--swap-space", "-1"]),
        ("my --served-model-name=--base", ["my"], ["--served-model-name=--base"]),
        ("my --bas b", ["my"], ["--bas", "b"]),
        ("my -- --base b", ["my"], ["--base", "b"]),
        ("--port 8000", [], ["--port", "8000"]),
    ],
)
def test_every_other_flag_goes_to_vllm_unchanged_and_in_order(
    command: list[str], arguments: str, directories: list[str], passed: list[str]
) -> None:
    bound = understood([*command, *shlex.split(arguments)])

    assert split_arguments(bound.args) == ([Path(directory) for directory in directories], passed)
    assert bound.kwargs.get("base") == ("b" if re.search(r"^(?!.*-- ).*--base.b", arguments) else None)


def test_our_own_flags_may_stand_anywhere() -> None:
    bound = understood(["serve", "my", "--x", "1", "--policy-action", "abstain", "--policy-threshold=-0.4"])

    assert bound.args == ("my", "--x", "1")
    assert bound.kwargs == {"policy_action": "abstain", "policy_threshold": -0.4}


# Flags from dataclasses


def test_bench_settings_are_flags() -> None:
    line = "bench train --json f --lengths 40/5 8/2 --members 3 --ways trl softspec --alpha 0.5 --seed 7"

    settings = understood(line.split()).kwargs["settings"]

    assert (settings.lengths, settings.members) == (((40, 5), (8, 2)), (3,))
    assert (settings.ways, settings.renyi_alpha, settings.seed) == (("trl", "softspec"), 0.5, 7)
    assert settings.steps == 2


def test_set_may_be_given_several_times() -> None:
    bound = understood(["train", "--set", "a=1", "my.yaml", "--set", "b=[1, 2]", "--set", "c=-3"])

    assert bound.args == (Path("my.yaml"),)
    assert bound.kwargs["overrides"] == ("a=1", "b=[1, 2]", "c=-3")


# Help


def page(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The help of a command."""
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_softspec_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == page([], capsys)


@pytest.mark.parametrize("command", [[], ["bench"], *COMMANDS], ids=" ".join)
def test_help_fits_80_columns_and_has_no_flag_that_nobody_asked_for(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    text = page(command, capsys)

    assert max(len(line) for line in text.splitlines()) <= 80
    assert "--no-" not in text.replace("--no-shared-layers", "")
    assert "--empty-" not in text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_two_examples_that_are_understood(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    examples = page(command, capsys).split("Examples:\n")[1].strip().splitlines()

    assert len(examples) == 2
    for example in examples:
        program, *arguments = shlex.split(example)
        assert (program, arguments[: len(command)]) == ("softspec", command)
        understood(arguments)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("serve", f"what is compared with the threshold: {DEFAULT_METRIC} (the default), max_epistemic,"),
        ("serve", "above this: a share from 0 to 1 for the disagreements, nats for the others"),
        ("serve", "judge an answer from this many tokens on (default 1)"),
        ("demo", "--output DIR where the ensemble and demo.json go [default: runs/demo]"),
        ("bench train", "tokens of a prompt and of its completion [default: 256/32 75/3 32/8]"),
        ("bench train", "--alpha FLOAT order of the objective, 0 to 1 [default: 0.8]"),
        ("bench serve", "--prompt-tokens INT... tokens of a prompt [default: 32 1008]"),
        ("bench serve", "--json FILE where the results go [required]"),
    ],
)
def test_help_shows_units_and_defaults(
    command: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = page(command.split(), capsys).replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split()

    assert expected in " ".join(words)


# What it costs to start


def cpu_seconds(*arguments: str) -> float:
    """The least of three runs, so that a busy machine does not count."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "softspec.app.cli", *arguments], cwd=ROOT, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_starting_costs_less_than_0_4_seconds(flag: str) -> None:
    assert cpu_seconds(flag) < 0.4


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], {"torch", "pydantic", "yaml", "transformers", "vllm"}),
        (["--help"], {"torch", "pydantic", "yaml", "transformers", "vllm"}),
        (["train", "--help"], {"torch", "pydantic", "yaml", "transformers"}),
        (["serve", "--help"], {"torch", "pydantic", "transformers", "vllm"}),
        (["bench", "load", "--help"], {"torch", "transformers", "vllm"}),
        (["bench", "train", "--help"], {"torch", "pydantic", "transformers"}),
        (["bench", "serve", "--help"], {"torch", "transformers", "vllm"}),
        (["inspect", "missing"], {"torch", "transformers", "vllm"}),
        (["plan", "--base", "tests"], {"torch", "transformers", "vllm"}),
        (["serve", "missing"], {"torch", "transformers", "vllm"}),
        (["train", "missing.yaml"], {"torch", "transformers"}),
        (["serve", "demo", "--server-config", "missing.yaml"], {"torch", "transformers", "vllm", "fastapi"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_waits_only_for_what_it_needs(arguments: list[str], unneeded: set[str]) -> None:
    code = "import sys; from softspec.app.cli.main import main; main(); print(*sys.modules, file=sys.stderr)"

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )

    loaded = set(done.stderr.split())
    assert "cyclopts" in loaded
    assert loaded & unneeded == set()


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ([], {}, (False, False)),
        (["--base-unchecked", "--allow-untested"], {}, (True, True)),
        ([], {"SOFTSPEC_BASE_UNCHECKED": "1", "SOFTSPEC_ALLOW_UNTESTED": "0"}, (True, False)),
    ],
    ids=["neither", "flags", "variables"],
)
def test_risks_are_taken_by_flag_or_variable(
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    variables: dict[str, str],
    expected: tuple[bool, bool],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    taken = understood(["serve", "my", *flags, "--port", "1"])

    found = taken.arguments
    assert (found.get("base_unchecked", False), found.get("allow_untested", False)) == expected
    assert found["arguments"] == ("my", "--port", "1")


RULE_FLAGS = {
    "metric": METRICS,
    "threshold": (0.0, 0.35, 1e-9),
    "min_tokens": (1, 7),
    "hold_tokens": (0, 16, 99),
}


@given(data=st.data(), action=st.sampled_from(["abstain", "route"]))
@settings(max_examples=20, deadline=None)  # imports, at first
def test_policy_of_the_flags_arrives_in_vllms_processes(
    data: st.DataObject, action: str, tiny_ensembles: dict[str, Path]
) -> None:
    given = {name: data.draw(st.sampled_from(values), name) for name, values in RULE_FLAGS.items()}
    if action == "route":
        given["upstream"] = data.draw(st.sampled_from(["big", "small"]))
        given["on_failure"] = data.draw(st.sampled_from(["answer", "abstain", "error"]))
    flags = [f"--policy-{name.replace('_', '-')}={value}" for name, value in given.items()]
    upstreams = [f"--upstream={name}=http://h/v1,model=m" for name in ("big", "small")]

    with patch("softspec.server.ops.launch.serve") as serve:
        code = main(
            ["serve", str(tiny_ensembles["always-2"]), f"--policy-action={action}", *flags, *upstreams]
        )

    told = Settings.from_environment(serve.call_args.args[0].to_environment())
    assert code == 0
    assert asdict(told.rules.default) == {
        "action": action,
        "upstream": None,
        "on_failure": "abstain",
        "calibration": None,
        **given,
    }
    assert set(told.upstreams) == {"big", "small"}
