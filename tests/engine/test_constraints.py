"""Constraints and adjustments in the engine: one member against an ordinary request, and requests that must fail alone.

The ordinary requests ask the same engine for the same adapter, past everything of ours but the scheduler.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softspec.engine.wire import LOCKSTEP_FAILED, MIXING_FAILED, NO_TOKEN_LEFT
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import prompt
from tests.support.tiny import random_adapters, tiny_tokenizer

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput

    from tests.stress.engine import InProcessEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning:vllm.*", "ignore::DeprecationWarning:xgrammar.*"),
]

VOCAB_SIZE = 320
EOS = 2
TOKENIZER = tiny_tokenizer(VOCAB_SIZE)
PROMPT = [*prompt(19, seed=6), 70]
RED = TOKENIZER.encode("red")

SOFT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "presence_penalty": {"presence_penalty": 1.7},
    "frequency_penalty": {"frequency_penalty": 0.9},
    "logit_bias": {"logit_bias": {80: 9.0, 81: 8.5, 90: -40.0}},
    "stop_token_ids": {"stop_token_ids": [*range(100, 200)]},
    "penalties and bias": {
        "repetition_penalty": 0.6,
        "presence_penalty": -0.4,
        "frequency_penalty": 0.2,
        "logit_bias": {80: 2.0},
    },
    "regex": {"regex": "[0-9]{3}-[a-c]{2}"},
    "regex and penalties": {"regex": "[a-z]{20}", "repetition_penalty": 2.0, "frequency_penalty": 0.5},
}
HARD: dict[str, dict[str, Any]] = {
    "allowed_token_ids": {"allowed_token_ids": [*range(60, 90)]},
    "bad_words": {"bad_words": [chr(letter) for letter in range(40, 110)]},
    "min_tokens": {"min_tokens": 8, "stop_token_ids": [*range(100, 320)]},
    "allowed_token_ids and bias": {"allowed_token_ids": [*range(60, 90)], "logit_bias": {61: 4.0}},
    "allowed_token_ids and penalty": {"allowed_token_ids": [*range(60, 90)], "repetition_penalty": 1.9},
}


@pytest.fixture(scope="module")
def broken(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble whose second adapter gives NaN."""
    path = random_adapters(
        tiny_base, tmp_path_factory.mktemp("broken") / "broken-2", 2, seed=9, name="broken-2"
    )
    weights = path / "member-1" / "adapter_model.safetensors"
    save_file({name: tensor.fill_(math.nan) for name, tensor in load_file(weights).items()}, weights)
    return path


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tiny_ensembles: dict[str, Path], broken: Path) -> Iterator["InProcessEngine"]:
    from tests.stress.engine import InProcessEngine

    engine = InProcessEngine(
        tiny_base,
        [tiny_ensembles["always-2"], tiny_ensembles["always-4"], broken],
        max_model_len=128,
        num_gpu_blocks_override=64,
        max_num_batched_tokens=256,
        max_num_seqs=16,
    )
    yield engine
    engine.close()


def params(**settings: Any) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    kinds = {kind: settings.pop(kind) for kind in ("regex", "choice", "json") if kind in settings}
    structure = StructuredOutputsParams(**kinds) if kinds else None
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **settings}, structured_outputs=structure)


def finish(engine: "InProcessEngine", *names: str) -> dict[str, "CompletionOutput"]:
    """The answers of these requests, none of which leaves anything behind."""
    done: dict[str, CompletionOutput] = {}
    while engine.scheduler.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0] for output in engine.step() if output.finished}
    assert not engine.scheduler.requests
    assert not engine.groups
    assert not engine.blocks()
    return {name: done[name] for name in names}


def ordinary(engine: "InProcessEngine", model: str, settings: "SamplingParams") -> "CompletionOutput":
    """What the member's adapter answers without us."""
    from softspec.engine.front.ensemble import lora_request_of

    request = lora_request_of(engine.specs[model].adapters[0])
    engine.engine.add_request("stock", {"prompt_token_ids": PROMPT}, settings, lora_request=request)
    return finish(engine, "stock")["stock"]


def member(engine: "InProcessEngine", model: str, settings: "SamplingParams") -> "CompletionOutput":
    """The same through a group of one, its telemetry put aside."""
    from softspec.engine.front.translation import record
    from softspec.engine.trace import ChoiceTrace

    engine.submit("ours", model, PROMPT, settings)
    found = finish(engine, "ours")["ours"]
    record(found, settings, engine.specs[model], ChoiceTrace())
    return found


def numbers(completion: "CompletionOutput") -> list[list[tuple[int, float, int | None]]]:
    """Token, log-probability and rank of all that was reported, by position."""
    return [
        sorted((token, entry.logprob, entry.rank) for token, entry in position.items())
        for position in completion.logprobs or []
    ]


@pytest.mark.parametrize("settings", SOFT.values(), ids=SOFT)
def test_one_member_is_an_ordinary_lora_request_digit_for_digit(
    engine: "InProcessEngine", settings: dict[str, Any]
) -> None:
    expected = ordinary(engine, "always-4/member-1", params(**settings, logprobs=4))
    found = member(engine, "always-4/member-1", params(**settings, logprobs=4))

    assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
    assert (found.finish_reason, found.stop_reason) == (expected.finish_reason, expected.stop_reason)
    assert numbers(found) == numbers(expected)


@pytest.mark.parametrize("settings", HARD.values(), ids=HARD)
def test_one_member_is_an_ordinary_lora_request_among_the_tokens_that_are_allowed(
    engine: "InProcessEngine", settings: dict[str, Any]
) -> None:
    """vLLM reports log-probabilities of before its masks, we those of after them: one constant apart at every token."""
    expected = ordinary(engine, "always-4/member-1", params(**settings, logprobs=64))
    found = member(engine, "always-4/member-1", params(**settings, logprobs=8))

    assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        gaps = [entry.logprob - theirs[token].logprob for token, entry in ours.items() if token in theirs]
        assert len(gaps) >= 1
        assert min(gaps) >= 0
        assert max(gaps) - min(gaps) < 1e-5


def test_a_set_of_tokens_is_the_same_set_as_a_grammar(
    engine: "InProcessEngine", tiny_base: Path, tiny_ensembles: dict[str, Path]
) -> None:
    from softspec.engine.front.translation import split_position

    allowed = TOKENIZER.encode("ab")
    found = []
    for settings in ({"allowed_token_ids": allowed}, {"choice": ["a", "b"]}):
        engine.submit("ours", "always-4", PROMPT, params(**settings, temperature=1.0, seed=3, max_tokens=1))
        logprobs = finish(engine, "ours")["ours"].logprobs
        found.append(split_position(logprobs, 0, engine.specs["always-4"], 0)[0])

    assert found[0] == found[1]
    reference = ReferenceEnsemble.load(tiny_base, tiny_ensembles["always-4"])
    raw = next(iter(reference.steps(PROMPT, SamplingSpec(temperature=0), max_tokens=1)))[0]
    assert found[0].log_prob > math.log(0.01)
    assert raw.token_id not in allowed


def test_forced_tokens_move_no_belief_and_count_nothing(engine: "InProcessEngine") -> None:
    from softspec.engine.front.translation import split_position

    spec = engine.specs["always-4"]
    engine.submit("ours", "always-4", PROMPT, params(choice=["red"]))
    completion = finish(engine, "ours")["ours"]

    assert completion.text == "red"
    for position in range(4):
        token, _ = split_position(completion.logprobs, position, spec, 0)
        assert (token.log_prob, *token.member_log_probs) == pytest.approx([0.0] * 5, abs=1e-6)
        assert (token.total_entropy, token.epistemic) == pytest.approx((0.0, 0.0), abs=1e-6)


COLOURS, SIZES = ("red", "green", "blue"), ("small", "large")
FORM = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}, "size": {"enum": SIZES}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}


def test_a_fields_doubt_is_that_of_the_letters_that_were_free(engine: "InProcessEngine") -> None:
    """Quotes, braces and keys are forced and add nothing, so the letters of a value have all of its doubt."""
    from softspec.engine.front.translation import record
    from softspec.engine.trace import ChoiceTrace
    from softspec.server.fields.doubt import doubtful_fields
    from softspec.server.fields.message import Message

    compact = {TOKENIZER.encode(space)[0]: -100.0 for space in " \n\t\r"}
    asked = params(json=json.dumps(FORM), logit_bias=compact, max_tokens=64)
    spec = engine.specs["always-4"]
    engine.submit("ours", "always-4", PROMPT, asked)
    completion = finish(engine, "ours")["ours"]
    trace = ChoiceTrace(tuple(spec.log_weights))
    record(completion, asked, spec, trace)

    text = completion.text
    fields = doubtful_fields(
        Message(content=text), trace.tokens, trace, lambda token: TOKENIZER.decode([token]).encode()
    )

    assert json.loads(text)["colour"] in COLOURS
    assert fields is not None
    for field, (key, value) in zip(fields, json.loads(text).items(), strict=True):
        start = text.index(f'"{value}"') + 1
        letters = trace.tokens[start : start + len(value)]
        assert field.path == f"/{key}"
        assert field.epistemic == pytest.approx(sum(token.epistemic for token in letters), abs=1e-5)
        assert field.max_epistemic == max(token.epistemic for token in letters) > 1e-3
        assert field.log_prob == pytest.approx(sum(token.log_prob for token in letters), abs=1e-5)
    assert sum(field.epistemic for field in fields) == pytest.approx(
        sum(token.epistemic for token in trace.tokens), abs=1e-4
    )
    # Each member alone says the same colour, and then what it finds likeliest: the first letter of a size.
    before = text[: text.index('"size":') + len('"size":')]
    settings = {"json": json.dumps(FORM), "logit_bias": compact, "max_tokens": len(before) + 2}
    alone = {k: member(engine, f"always-4/member-{k}", params(**settings)).text for k in range(4)}
    assert {each.text: each.members for each in fields[1].alternatives} == {
        letter: tuple(k for k in alone if alone[k] == before + letter) for letter in ('"l', '"s')
    }


CONTRADICTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "choice and allowed_token_ids": ({"choice": ["red"], "allowed_token_ids": [100]}, 0),
    "choice and bad_words": ({"choice": ["red"], "bad_words": ["red"]}, 2),
    "choice and logit_bias": ({"choice": ["red"], "logit_bias": {RED[1]: -100.0}}, 1),
    "only the end, and min_tokens": ({"allowed_token_ids": [EOS], "min_tokens": 2}, 0),
    "one word, and it is bad": ({"allowed_token_ids": RED[:1], "bad_words": ["r"]}, 0),
}


@pytest.mark.parametrize(("settings", "drawn"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_request_that_leaves_itself_no_token_ends_alone(
    engine: "InProcessEngine", settings: dict[str, Any], drawn: int
) -> None:
    engine.submit("beside", "always-4", PROMPT, params())
    expected = finish(engine, "beside")["beside"]
    for name, model in (("stuck", "always-4"), ("alone", "always-2/member-1")):
        engine.submit(name, model, PROMPT, params(**settings))
    engine.submit("beside", "always-4", PROMPT, params())

    found = finish(engine, "stuck", "alone", "beside")

    for name in ("stuck", "alone"):
        assert (found[name].finish_reason, found[name].stop_reason) == ("error", NO_TOKEN_LEFT)
        assert len(found[name].token_ids) == drawn
    assert found["beside"].token_ids == expected.token_ids
    assert found["beside"].finish_reason == "length"


@pytest.mark.parametrize(
    "settings",
    [
        {"min_tokens": 8},
        {"ignore_eos": True},
        {"min_tokens": 2, "bad_words": ["b"]},
        {"logit_bias": {RED[1]: -99.0}},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_what_does_not_contradict_a_grammar_goes_with_it(
    engine: "InProcessEngine", settings: dict[str, Any]
) -> None:
    asked = params(choice=["red", "blue"], **settings)
    expected = ordinary(engine, "always-4/member-1", asked)
    found = member(engine, "always-4/member-1", asked)
    engine.submit("ours", "always-4", PROMPT, asked)
    together = finish(engine, "ours")["ours"]

    print(settings, repr(expected.text), repr(together.text), json.dumps(together.token_ids))
    assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
    assert together.text.startswith(("red", "blue"))


def test_a_broken_adapter_ends_its_own_requests_and_is_named(
    engine: "InProcessEngine", caplog_vllm: pytest.LogCaptureFixture
) -> None:
    engine.submit("before", "always-4", PROMPT, params())
    expected = finish(engine, "before")["before"]

    for number in range(3):
        engine.submit("broken", "broken-2", PROMPT, params(temperature=1.0, top_p=0.9))
        engine.submit("member", "broken-2/member-1", PROMPT, params())
        engine.submit("sound", "broken-2/member-0", PROMPT, params())
        engine.submit("beside", "always-4", PROMPT, params())
        found = finish(engine, "broken", "member", "sound", "beside")

        for name in ("broken", "member"):
            assert (found[name].finish_reason, found[name].stop_reason) == ("error", MIXING_FAILED)
            assert not found[name].token_ids
        assert found["sound"].finish_reason == "length", number
        assert found["beside"].token_ids == expected.token_ids
    # A set: where a server's log was set up before, a line comes by two ways.
    errors = {record.getMessage() for record in caplog_vllm.records if record.levelname == "ERROR"}
    assert len(errors) == 6
    assert all("broken-2/member-1" in error for error in errors)
    assert not any("broken-2/member-0" in error for error in errors)


def test_an_exception_in_mixing_ends_the_requests_concerned(
    engine: "InProcessEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the fourth step of two requests, and in any place of the worker's own work."""
    from softspec.engine.worker import mixing

    draw, calls = mixing.draw_tokens, []

    def fails_once(scores: torch.Tensor, **settings: torch.Tensor) -> torch.Tensor:
        calls.append(len(scores))
        if len(calls) == 4:
            raise RuntimeError("this is bad")
        return draw(scores, **settings)

    monkeypatch.setattr(mixing, "draw_tokens", fails_once)
    engine.submit("one", "always-4", PROMPT, params())
    engine.submit("two", "always-4", PROMPT[1:], params())
    found = finish(engine, "one", "two")
    engine.submit("later", "always-4", PROMPT, params())
    later = finish(engine, "later")["later"]

    for completion in found.values():
        assert (completion.finish_reason, completion.stop_reason) == ("error", MIXING_FAILED)
        assert len(completion.token_ids) == 3
    assert later.finish_reason == "length"


def test_members_that_come_apart_are_told_from_all_other_errors(
    engine: "InProcessEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = engine.runner.sampler.mixer
    hand_out = type(mixer).hand_out

    def differently(sampled: torch.Tensor) -> None:
        hand_out(mixer, sampled)
        sampled[1] += 1

    monkeypatch.setattr(mixer, "hand_out", differently)
    engine.submit("apart", "always-4", PROMPT, params())

    found = finish(engine, "apart")["apart"]

    assert (found.finish_reason, found.stop_reason) == ("error", LOCKSTEP_FAILED)


def test_vllms_own_errors_carry_no_reason_of_ours(engine: "InProcessEngine") -> None:
    """A grammar that does not compile is found out inside the engine."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = json.dumps({"type": "array", "items": [{"type": "string"}]})
    asked = SamplingParams(max_tokens=5, structured_outputs=StructuredOutputsParams(json=schema))
    engine.submit("wrong", "always-4", PROMPT, asked)

    found = finish(engine, "wrong")["wrong"]

    assert (found.finish_reason, found.stop_reason) == ("error", None)


@pytest.fixture
def caplog_vllm(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """vLLM's logger does not propagate."""
    import logging

    logger = logging.getLogger("vllm")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
