"""The serving benchmark: its arithmetic by hand, its client against the exact mixture, and all of it end to end."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from tqdm import tqdm

from softspec.app.bench.core.document import Results
from softspec.app.bench.core.spread import Spread, paired_ratios
from softspec.app.bench.serving.facts import model as describe_model
from softspec.app.bench.serving.measure import Way, measure_all
from softspec.app.bench.serving.outside_client import SteppingClient, TopTokens, mix_top
from softspec.app.bench.serving.random_ensemble import first_members
from softspec.app.bench.serving.sample import SUMMARY, Sample, time_per_token
from softspec.app.bench.serving.settings import WAYS, BenchSettings, Cell
from softspec.app.bench.serving.table import format_report
from softspec.app.bench.serving.ways import local_ways
from softspec.app.cli.main import main
from softspec.artefact.activation import BlockActivation
from softspec.artefact.fit import require_fit
from softspec.artefact.manifest import BaseModelRef, Manifest, adapter_config, load_manifest, member_dir
from softspec.errors import ConfigError
from softspec.maths.mixture import mixture_logprobs, update_log_weights
from tests.support.tiny import random_adapters

if TYPE_CHECKING:
    from softspec.engine.start.local import LocalEngine

ROOT = Path(__file__).parents[3]


# Arithmetic


def sample(repeat: int, ttft_s: float = 1.0, tpot_s: float | None = 1.0) -> Sample:
    return Sample(repeat, 0, ttft_s, tpot_s, 1.0, (ttft_s,))


def test_pace_counts_only_while_all_users_decode() -> None:
    """From 1, when the second begins, to 3, when the first ends: 1 s a token for one, 1.5 s for the other."""
    assert time_per_token([[0, 1, 2, 3], [1, 2.5, 4, 5.5]]) == 1.25


def test_pace_of_one_user_leaves_the_first_token_out() -> None:
    assert time_per_token([[10.0, 10.5, 11.0, 12.0]]) == pytest.approx(2 / 3)


def test_users_who_never_decode_together_have_no_pace() -> None:
    assert time_per_token([[0, 1, 2], [2, 3, 4]]) is None


def test_time_to_first_token_is_the_median_user_and_the_rate_is_of_all_tokens() -> None:
    found = Sample.of(0, 2, 100.0, [[101, 102], [103, 104], [102, 110]], [[0, 1, 2]] * 3)

    assert (found.ttft_s, found.first_token_s, found.tpot_s) == (2, (1, 3, 2), 1)
    assert found.tokens_per_s == pytest.approx(6 / 10)


def test_spread_is_that_of_all_repeats() -> None:
    assert Spread.of([4, 1, 3, 2, 5]) == Spread(3, 1, 2, 4, 5, 5)
    assert Spread.of([7.0]) == Spread(7, 7, 7, 7, 7, 1)
    assert Spread.of([]) is None


def test_ratios_are_taken_within_each_repeat() -> None:
    """Both got slower together in repeat 1: the ratio of the medians would hide that they are always 2 apart."""
    above = [sample(0, 2.0), sample(1, 20.0), sample(2, 4.0), sample(3, 9.0)]
    below = [sample(2, 2.0), sample(1, 10.0), sample(0, 1.0)]

    assert paired_ratios(above, below, "ttft_s") == [2, 2, 2]


def test_repeats_without_a_pace_are_left_out_of_its_spread_and_ratios() -> None:
    found = SUMMARY.of(
        {"ensemble": [sample(0, tpot_s=None), sample(1, tpot_s=3.0)], "member": [sample(0), sample(1)]}
    )

    assert found["spreads"]["ensemble"]["tpot_s"]["count"] == 1
    assert found["ratios"]["ensemble/member"]["tpot_s"]["median"] == 3
    assert found["ratios"]["ensemble/member"]["ttft_s"]["count"] == 2


# The client outside


def member_logprobs(vocab_size: int, num_members: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_members, vocab_size, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def top_tokens(logprobs: torch.Tensor, count: int) -> list[TopTokens]:
    listed = [row.topk(count) for row in logprobs]
    return [
        TopTokens(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)), logprobs.shape[-1])
        for top in listed
    ]


LOG_WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def test_client_that_sees_the_whole_vocabulary_mixes_exactly() -> None:
    logprobs = member_logprobs(20)

    found = mix_top(top_tokens(logprobs, 20), LOG_WEIGHTS.tolist())

    expected = mixture_logprobs(logprobs, LOG_WEIGHTS)
    torch.testing.assert_close(torch.tensor([found[token] for token in range(20)]).double(), expected)


def test_tokens_that_a_member_does_not_list_share_what_it_has_left() -> None:
    top = TopTokens({4: math.log(0.5), 2: math.log(0.3)}, vocab_size=12)

    assert top.log_prob(4) == math.log(0.5)
    assert math.exp(top.log_prob(7)) == pytest.approx(0.2 / 10)


class ScriptedClient(SteppingClient):
    """The members' next token depends on the last one only; no server."""

    def __init__(self, tables: torch.Tensor, manifest: Manifest) -> None:
        self._tables = tables
        self._manifest = manifest

    async def _next(self, member: int, tokens: list[int]) -> TopTokens:
        return top_tokens(self._tables[tokens[-1]], self._tables.shape[-1])[member]


@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_client_follows_the_weights_rule(rule: str) -> None:
    tables = torch.stack([member_logprobs(8, seed=seed) for seed in range(8)])
    manifest = Manifest.model_validate(
        {
            "name": "scripted",
            "base_model": BaseModelRef(path="none"),
            "num_members": 3,
            "log_weights": LOG_WEIGHTS.tolist(),
            "renyi_alpha": 1,
            "weights_rule": rule,
        }
    )

    async def ask() -> list[int]:
        return [token async for token in ScriptedClient(tables, manifest).ask([1], 12)]

    found = asyncio.run(ask())

    log_weights, expected = LOG_WEIGHTS, [1]
    for _ in range(12):
        logprobs = tables[expected[-1]]
        expected.append(int(mixture_logprobs(logprobs, log_weights).argmax()))
        if rule == "prefix_posterior":
            log_weights = update_log_weights(log_weights, logprobs[:, expected[-1]])
    assert found == expected[1:]


# The ways inside


class FakeEngine:
    """Answers with what it is set to: the name that is asked, and what is on."""

    def __init__(self) -> None:
        self.on: dict[str, bool] = {}
        self.asked: list[tuple[str, dict[str, bool]]] = []

    async def measure_uncertainty(self, on: bool) -> None:
        self.on["uncertainty"] = on

    async def share_lower_layers(self, on: bool) -> None:
        self.on["sharing"] = on

    async def ask_ensemble(self, name: str, prompt_ids: Sequence[int], num_tokens: int) -> AsyncIterator[int]:
        self.asked.append((name, dict(self.on)))
        yield num_tokens

    ask_adapter = ask_ensemble


@pytest.mark.parametrize(
    ("way", "asked", "uncertainty", "sharing"),
    [
        ("member", ["a"], True, True),
        ("ensemble", ["both"], True, True),
        ("unshared", ["both"], True, False),
        ("mixture", ["both"], False, True),
        ("members", ["a", "b"], True, True),
    ],
)
def test_every_way_inside_sets_the_engine_for_itself(
    way: str, asked: list[str], uncertainty: bool, sharing: bool
) -> None:
    engine = FakeEngine()
    ways: dict[str, Way] = local_ways(cast("LocalEngine", engine), "both", ["a", "b"])

    async def measure() -> list[float]:
        for each in (ways["unshared"], ways["mixture"], ways[way]):
            assert each.prepare is not None
            await each.prepare()
        return await ways[way].answer([1, 2], 3)

    assert len(asyncio.run(measure())) == 3
    assert engine.asked == [(name, {"uncertainty": uncertainty, "sharing": sharing}) for name in asked]


# The plan and the loop


def test_every_repeat_has_every_way_in_an_order_of_its_own() -> None:
    settings, cell = BenchSettings(), Cell(1, 32)

    orders = [settings.order(cell, repeat) for repeat in range(20)]

    assert all(sorted(order) == sorted(WAYS) for order in orders)
    assert len({order[0] for order in orders}) > 3


def test_no_way_meets_a_prompt_again() -> None:
    settings = BenchSettings()

    prompts = [
        tuple(prompt)
        for cell in settings.cells
        for repeat in range(3)
        for way in WAYS
        for prompt in settings.prompts(cell, repeat, way, vocab_size=300)
    ]

    assert len(set(prompts)) == len(prompts)


def test_what_is_left_out_is_said() -> None:
    settings = BenchSettings(ways=("ensemble", "reference"), concurrency=(4, 1), prompt_tokens=(32,))

    assert "client: not among --ways" in settings.left_out
    assert "reference at 4 users x 32 prompt tokens: it answers one user" in settings.left_out


SMALL = BenchSettings(
    ways=("member", "ensemble"), concurrency=(1, 2), prompt_tokens=(8,), output_tokens=3, repeats=2
)


def measure(path: Path, settings: BenchSettings, answers_before_ctrl_c: int) -> dict[str, Any]:
    """Scripted ways: a token a second. Returns what the file holds in the end."""
    answers = 0

    async def answer(prompt_ids: Sequence[int], num_tokens: int) -> list[float]:
        nonlocal answers
        answers += 1
        if answers > answers_before_ctrl_c:
            raise KeyboardInterrupt
        return [float(token) for token in range(num_tokens)]

    ways = {name: Way(answer, "scripted") for name in settings.ways}
    results = Results(path, {"machine": {"cpu": "scripted"}}, SUMMARY)
    with tqdm(disable=True) as bar:
        asyncio.run(measure_all(ways, settings, 300, results, bar))
    return json.loads(path.read_text())


def test_a_finished_run_holds_every_sample_of_every_repeat(tmp_path: Path) -> None:
    document = measure(tmp_path / "bench.json", SMALL, answers_before_ctrl_c=10_000)

    assert document["complete"]
    assert document["machine"] == {"cpu": "scripted"}
    assert [cell["concurrency"] for cell in document["cells"]] == [1, 2]
    for cell in document["cells"]:
        assert {way: len(found) for way, found in cell["samples"].items()} == {"member": 2, "ensemble": 2}
        assert cell["spreads"]["ensemble"]["tpot_s"]["median"] == 1
        assert cell["ratios"]["ensemble/member"]["tpot_s"]["count"] == 2


def test_an_interrupted_run_leaves_the_repeats_that_were_measured(tmp_path: Path) -> None:
    """Warm-up and each repeat of one user are 2 ways x 2 answers: Ctrl-C comes in the second repeat."""
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "bench.json", SMALL, answers_before_ctrl_c=2 * 4 + 4 + 1)

    document = json.loads((tmp_path / "bench.json").read_text())
    assert not document["complete"]
    assert [len(cell["samples"]["ensemble"]) for cell in document["cells"]] == [1]
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]


# The command


@pytest.fixture(scope="module")
def ensemble(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "three"
    return random_adapters(tiny_base, folder, num_members=3, activation=BlockActivation(block_size=32))


def test_first_members_of_an_ensemble_are_an_ensemble(ensemble: Path, tmp_path: Path) -> None:
    manifest = load_manifest(first_members(ensemble, 2, tmp_path / "two"))

    assert manifest.num_members == 2
    assert manifest.log_weights == pytest.approx([math.log(0.5)] * 2)


def test_random_adapters_may_be_for_some_layers_only(tiny_base: Path, tmp_path: Path) -> None:
    folder = random_adapters(tiny_base, tmp_path / "top", num_members=2, layers=[1])

    require_fit(member_dir(folder, 1), tiny_base)
    assert adapter_config(folder, 1)["layers_to_transform"] == [1]
    assert describe_model(str(tiny_base), folder, load_manifest(folder))["adapted_layers"] == [1]


def test_random_adapters_are_for_all_layers_unless_some_are_named(tiny_base: Path, ensemble: Path) -> None:
    assert adapter_config(ensemble, 0)["layers_to_transform"] is None
    found = describe_model(str(tiny_base), ensemble, load_manifest(ensemble))
    assert found["adapted_layers"] == list(range(found["layers"]))


def test_random_adapters_for_a_layer_that_is_not_there_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[99\], expected numbers from 0 to"):
        random_adapters(tiny_base, tmp_path / "none", num_members=1, layers=[99])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing"], "no ensemble.json in 'missing'"),
        ([], "found nothing to measure: give an ensemble directory, or --random-adapters K"),
        (["missing", "--random-adapters", "4"], "'missing' and --random-adapters 4: give one of them"),
        (["missing", "missing"], "found 2 ensemble directories"),
        (["--random-adapters", "4", "--members", "2"], "--members is for an ensemble directory"),
        (["{}", "--layers", "all"], "'{}' and --layers all: its adapters say which layers they are for"),
        (
            ["--random-adapters", "2", "--base", "TINY", "--layers", "x"],
            "--layers is 'x': expected all, top_third",
        ),
        (["--random-adapters", "2", "--base", "TINY", "--layers", "0-99"], "the base has, 0 to"),
        (["{}", "--members", "4"], "--members is 4 but '{}' has 3"),
        (["{}", "--ways", "member", "magic"], "--ways has 'magic'"),
        (["{}", "--concurrency", "0"], "--concurrency is 0: expected at least 1"),
        (["{}", "--output-tokens", "2"], "--output-tokens is 2: expected at least 3"),
        (["{}", "--base", "./nowhere"], "base model './nowhere' does not exist"),
        (["{}", "--json", "nowhere/b.json"], "there is no directory 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    flags: list[str],
    message: str,
    tiny_base: Path,
    ensemble: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [flag.format(ensemble).replace("TINY", str(tiny_base)) for flag in flags]

    code = main(["bench", "serve", *filled, *([] if "--json" in filled else ["--json", "bench.json"])])

    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("softspec: ")]
    assert code == 2
    assert len(errors) == 1
    assert message.format(ensemble) in errors[0]


def bench(*flags: str) -> "subprocess.CompletedProcess[str]":
    """As a process of its own: vLLM reads its environment when it is imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "softspec.app.cli", "bench", "serve", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.vllm
def test_a_cache_too_small_for_the_largest_cell_names_the_flag(ensemble: Path, tmp_path: Path) -> None:
    """2 users with 3 members and a trunk, each of 4 blocks of 32 tokens, and vLLM's own block."""
    done = bench(
        *(str(ensemble), "--json", str(tmp_path / "bench.json")),
        *("--concurrency", "2", "--prompt-tokens", "100", "--num-gpu-blocks-override", "32"),
    )

    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "the KV cache has 32 blocks of 32 tokens but 33 are needed" in last
    assert "--num-gpu-blocks-override 33" in last


@pytest.mark.vllm
@pytest.mark.soak
def test_all_ways_are_measured_side_by_side(ensemble: Path, tmp_path: Path) -> None:
    """Our engine, an unmodified vLLM server in a process of its own, and the reference decoder."""
    path = tmp_path / "bench.json"
    done = bench(
        *(str(ensemble), "--members", "2", "--json", str(path), "--repeats", "2", "--output-tokens", "6"),
        *("--concurrency", "1", "2", "--prompt-tokens", "70", "--enforce-eager"),
    )

    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    assert document["complete"]
    assert document["engine"]["enforce_eager"]
    assert document["engine"]["threads"] >= 1
    assert document["model"]["members"] == 2
    assert document["model"]["parameters_per_adapter"] > 1000
    assert len(document["cells"]) == 2
    for cell in document["cells"]:
        expected = [way for way in WAYS if way != "reference" or cell["concurrency"] == 1]
        assert list(cell["samples"]) == expected
        for way in expected:
            samples = cell["samples"][way]
            assert [each["repeat"] for each in samples] == [0, 1]
            assert all(0 < each["ttft_s"] < 60 and each["tokens_per_s"] > 0 for each in samples)
            assert all(len(each["first_token_s"]) == cell["concurrency"] for each in samples)
        assert cell["ratios"]["client/ensemble"]["ttft_s"]["count"] == 2
    assert done.stdout.strip() == format_report(document).strip()
