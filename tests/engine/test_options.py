"""Of vLLM's engine options those that were tested with ensembles pass, and every other one is named at start.

vLLM's own parser, arguments and configuration are the judge of what an option is and what its default is.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from softspec.engine.options import TESTED_OPTIONS, require_tested, untested_options
from softspec.errors import UnsupportedEngineError

pytestmark = pytest.mark.vllm

# What people give to a server, with values that are not vLLM's defaults.
BENIGN = (
    "--max-model-len 64",
    "--gpu-memory-utilization 0.5",
    "--dtype float32",
    "--dtype bfloat16",
    "--enforce-eager",
    "--port 8001 --host 127.0.0.1",
    "--api-key secret",
    "--served-model-name one two",
    "--max-num-seqs 8",
    "--max-num-active-seqs 5 --max-num-seqs 8",
    "--max-num-batched-tokens 96",
    "--tensor-parallel-size 2",
    "--kv-cache-memory-bytes 1G",
    "--num-gpu-blocks-override 40",
    "--block-size 32",
    "--enable-prefix-caching",
    "--max-loras 9 --max-cpu-loras 12 --max-lora-rank 64",
    "--max-logprobs 50",
    "--seed 5",
    "--revision main",
    "--trust-remote-code",
    "--shutdown-timeout 20",
    "--disable-log-stats --enable-log-requests --uvicorn-log-level warning",
    "--generation-config vllm",
    "--override-generation-config {}",
    "--chat-template template.jinja",
    "--enable-auto-tool-choice --tool-call-parser hermes",
    "--reasoning-parser qwen3",
    "--ssl-keyfile key --ssl-certfile cert",
    '--root-path /v --allowed-origins ["*"]',
)
UNTESTED = {
    "--long-prefill-token-threshold": "512",
    "--data-parallel-size": "2",
    "--decode-context-parallel-size": "2",
    "--prefill-context-parallel-size": "2",
    "--pipeline-parallel-size": "2",
    "--nnodes": "2",
    "--scheduling-policy": "priority",
    "--watermark": "0.1",
    "--no-enable-chunked-prefill": None,
    "--no-async-scheduling": None,
    "--stream-interval": "4",
    "--kv-cache-dtype": "fp8",
    "--quantization": "fp8",
    "--load-format": "dummy",
    "--tokenizer": ".",
    "--hf-overrides": '{"rope_theta": 1}',
    "--lora-dtype": "bfloat16",
    "--lora-target-modules": "q_proj",
    "--fully-sharded-loras": None,
    "--logits-processors": "a.B",
    "--logprobs-mode": "raw_logits",
    "--compilation-config": '{"mode": 0}',
    "--optimization-level": "0",
    "--attention-backend": "FLASH_ATTN",
    "--kv-transfer-config": '{"kv_connector": "X", "kv_role": "kv_both"}',
    "--kv-offloading-size": "1",
    "--cpu-offload-gb": "1",
    "--enable-sleep-mode": None,
    "--speculative-config": '{"method": "ngram", "num_speculative_tokens": 2}',
    "--enable-prompt-embeds": None,
    "--additional-config": '{"x": 1}',
    "--disable-sliding-window": None,
    "--model-impl": "transformers",
}


@cache
def parser() -> Any:
    """vLLM's server's own."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def given(base: Path, *flags: str) -> tuple[Any, ...]:
    """The engine arguments that vLLM's server reads from a command line with these flags, and with none."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    lines = [["--model", str(base), *more] for more in (flags, ())]
    return tuple(AsyncEngineArgs.from_cli_args(parser().parse_args(line)) for line in lines)


@pytest.mark.parametrize("flags", ["", *BENIGN])
def test_options_that_people_give_raise_no_alarm(tiny_base: Path, flags: str) -> None:
    assert untested_options(*given(tiny_base, *flags.split())) == []


@pytest.mark.parametrize(("flag", "value"), UNTESTED.items(), ids=list(UNTESTED))
def test_every_other_option_is_named(tiny_base: Path, flag: str, value: str | None) -> None:
    found, defaults = given(tiny_base, flag, *([] if value is None else [value]))

    with pytest.raises(UnsupportedEngineError) as refusal:
        require_tested(untested_options(found, defaults), allow_untested=False)

    named = str(refusal.value).partition(":")[0].split(", ")
    assert flag.replace("--no-", "--") in named
    assert str(refusal.value).endswith("remove it, or take the risk with --allow-untested")
    assert "\n" not in str(refusal.value)


def test_the_brave_are_warned(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, defaults = given(tiny_base, "--stream-interval", "4", "--watermark", "0.1")

    with caplog.at_level(logging.WARNING):
        require_tested(untested_options(found, defaults), allow_untested=True)

    assert "--watermark, --stream-interval: not tested with ensembles" in caplog.text


def test_engine_that_runs_has_written_into_its_options_and_raises_no_alarm(tiny_base: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = parser().parse_args(["--model", str(tiny_base), "--enforce-eager"])
    AsyncEngineArgs.from_cli_args(args).create_engine_config()

    found, (_, defaults) = AsyncEngineArgs.from_cli_args(args), given(tiny_base)
    assert untested_options(found, defaults, in_use=True) == []


def test_tested_options_exist(tiny_base: Path) -> None:
    """An option that vLLM renames would silently fall off the list, or a new one of that name onto it."""
    from dataclasses import fields

    assert set(TESTED_OPTIONS) <= {field.name for field in fields(given(tiny_base)[0])}
