"""The transformers backend against stock PEFT: the reference decoder asks one member and one prompt at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

import softspec
from softspec import Ensemble, ReferenceEnsemble, SamplingSpec
from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from softspec.artefact.fingerprint import fingerprint
from softspec.artefact.manifest import BaseModelRef, Manifest, load_manifest, save_manifest
from softspec.ensemble.stacked.backend import StackedBackend
from softspec.maths.answer import summarise
from softspec.train.members.head import Head
from softspec.train.members.members import Members
from softspec.train.members.spec import decoder_layers
from softspec.train.result.export import write_ensemble
from tests.support.asked_ensemble import PROMPTS, ROWS, user
from tests.support.parity import largest_difference
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer
from tests.support.tiny_training import random_members

BLOCKS = BlockActivation(block_size=32)
TOLERANCE = 1e-4
"""Nats."""
RANDOM = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.001}


def gemma(folder: Path) -> Path:
    """Attention reaches back 16 positions in two of three layers."""
    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.1, sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def on_the_top_layer(base: Path, folder: Path, activation: Activation = BLOCKS, seed: int = 0) -> Path:
    """An ensemble whose adapters begin in the last of three layers."""
    members = random_members(AutoModelForCausalLM.from_pretrained(base), 3, layers=(2,), seed=seed)
    manifest = Manifest(
        name="top",
        base_model=BaseModelRef(path=str(base), fingerprint=fingerprint(str(base))),
        num_members=3,
        log_weights=(-0.5108256237659907, -1.6094379124341003, -1.6094379124341003),
        renyi_alpha=0.8,
        weights_rule="fixed",
        activation=activation,
    )
    write_ensemble(folder, members, manifest)
    return folder


@pytest.fixture(scope="module", params=["all layers", "top layer, fixed weights", "windows", "one member"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("ensembles") / "it"
    if request.param == "windows":
        return random_adapters(gemma(base), folder, 2, activation=BlockActivation(block_size=32))
    tiny_llama(base, layers=3)
    if request.param == "top layer, fixed weights":
        return on_the_top_layer(base, folder)
    return random_adapters(base, folder, num_members=3 if request.param == "all layers" else 1)


@pytest.fixture(scope="module")
def ensemble(directory: Path) -> Iterator[Ensemble]:
    with softspec.load(directory, backend="transformers") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reference(directory: Path) -> ReferenceEnsemble:
    return ReferenceEnsemble.load(load_manifest(directory).base_model.path, directory)


def test_given_answers_are_as_likely_as_under_stock_peft(
    ensemble: Ensemble, reference: ReferenceEnsemble
) -> None:
    """As choices, and with the numbers of their tokens; the last token ends the turn."""
    choices = list(ensemble.scored_choices(iter(ROWS)))
    scores = ensemble.score(PROMPTS, [answers for _, answers in ROWS], detail="tokens")

    assert len(choices) == len(scores) == len(ROWS)
    for (prompt, answers), choice, own in zip(ROWS, choices, scores, strict=True):
        asked = ensemble.texts.asked(prompt, answers, "row")
        assert [each.text for each in own] == answers
        for number, (ids, score) in enumerate(zip(asked.answers, own, strict=True)):
            tokens = reference.replay(asked.prompt_ids, ids)
            expected = summarise(tokens, ensemble.log_weights, ensemble.manifest.weights_rule)
            assert largest_difference(list(score.tokens), tokens) < TOLERANCE
            assert score.uncertainty.mutual_information == pytest.approx(
                expected.mutual_information, abs=TOLERANCE
            )
            assert choice.num_tokens[number] == len(ids) == score.uncertainty.num_tokens
            assert ids[-1] in ensemble.texts.stop_ids
            assert choice.log_probs[number] == pytest.approx(expected.log_prob, abs=TOLERANCE)
            members = [member[number] for member in choice.member_log_probs]
            assert members == pytest.approx(expected.member_log_probs, abs=TOLERANCE)


@pytest.mark.parametrize("activation", [BLOCKS, AlwaysActivation()])
def test_what_the_base_makes_of_prompts_is_kept_for_the_next_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: Activation
) -> None:
    """Another ensemble of this base that is asked the same runs the layers below its adapters for answers alone."""
    monkeypatch.setenv("SOFTSPEC_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    tiny_llama(base, layers=3)
    below: list[list[int]] = []
    for seed in range(2):
        directory = on_the_top_layer(base, tmp_path / str(seed), activation, seed)
        with softspec.load(directory, backend="transformers") as ensemble:
            backend, ran = ensemble.backend, list[int]()
            assert isinstance(backend, StackedBackend)
            expected = list(ensemble.scored_choices(ROWS))
            backend.keep_prompts(10_000)
            decoder_layers(backend.members.model)[0].get_submodule("mlp").register_forward_hook(
                lambda layer, args, output, ran=ran: ran.append(output.shape[:2].numel())
            )
            found = list(ensemble.scored_choices(ROWS))
        below.append(ran)
        for one, other in zip(found, expected, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            for member, other_member in zip(one.member_log_probs, other.member_log_probs, strict=True):
                assert member == pytest.approx(other_member, abs=1e-5)
    assert len(below[0]) > 1
    assert below[1] == below[0][-1:]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"temperature": 0.0}, RANDOM], ids=["greedy", "seeded"])
def test_answers_are_those_of_the_reference_decoder(
    ensemble: Ensemble, reference: ReferenceEnsemble, how: dict[str, Any]
) -> None:
    """Prompts of all lengths at once, each answered twice; some answers end before the others."""
    found = ensemble.generate(PROMPTS, max_tokens=8, seed=5, n=2, detail="tokens", **how)

    assert [answer.prompt for answer in found] == [number for number in range(len(ROWS)) for _ in range(2)]
    for number, answer in list(enumerate(found))[:: 2 if not how["temperature"] else 1]:
        assert answer.seed == 5 + number
        ids = ensemble.texts.prompt_ids(PROMPTS[answer.prompt], "prompt")
        spec = SamplingSpec(seed=answer.seed, **how)
        expected = reference.decode(ids, spec, 8, ensemble.texts.stop_ids)
        assert largest_difference(list(answer.tokens), expected) < TOLERANCE
        ended = answer.token_ids[-1] in ensemble.texts.stop_ids
        assert answer.finish_reason == ("stop" if ended else "length")


@pytest.fixture(scope="module")
def small(tiny_ensembles: dict[str, Path]) -> Iterator[Ensemble]:
    with softspec.load(tiny_ensembles["block-2"], backend="transformers") as loaded:
        yield loaded


def layers_seen(small: Ensemble) -> tuple[list[tuple[int, int]], list[Any]]:
    """What the first layer is given from now on, as (rows, tokens), and the hook to remove."""
    backend, seen = small.backend, list[tuple[int, int]]()
    assert isinstance(backend, StackedBackend)
    hook = decoder_layers(backend.members.model)[0].register_forward_hook(
        lambda layer, args, output: seen.append((output.shape[0], output.shape[1]))
    )
    return seen, [hook]


def test_what_choices_share_runs_once(small: Ensemble) -> None:
    """A prompt of 70 tokens: two blocks once, its other tokens once a member, then the choices alone."""
    seen, (hook,) = layers_seen(small)

    list(small.scored_choices([("x" * 70, ["abc", "def", "ghi"])] * 5))

    hook.remove()
    assert seen == [(1, 64), (2, 6), (6, 3)]


def test_options_that_begin_alike_share_their_logits(
    small: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty options of one token and the end: one predictive before them, and one behind each."""
    seen, logits = list[int](), Head.logits

    def watched(head: Head, states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return logits(head, states)

    monkeypatch.setattr(Head, "logits", watched)

    list(small.scored_choices([("Which letter? ", [chr(97 + number) for number in range(20)])]))

    assert sum(seen) == small.num_members * (1 + 20)


def test_rows_are_read_as_they_are_scored(small: Ensemble) -> None:
    read = 0

    def rows() -> Iterator[tuple[str, Sequence[str]]]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield "x", [chr(97 + number % 26)]

    scored = small.scored_choices(rows())
    first = next(scored)

    assert read < 100
    assert first.num_tokens == (2,)


@pytest.mark.slow
def test_memory_is_bounded_whatever_is_asked_at_once(tiny_ensembles: dict[str, Path]) -> None:
    """No pass has more tokens than the limit, caches included, and the numbers stay as they are."""
    with softspec.load(tiny_ensembles["block-2"], backend="transformers") as ensemble:
        backend, rows = ensemble.backend, [("x" * n, ["a" * m for m in (1, 9, 30)]) for n in range(1, 41)]
        assert isinstance(backend, StackedBackend)
        all_at_once = list(ensemble.scored_choices(rows))
        backend._limits = replace(backend._limits, tokens_at_once=400)
        seen = layers_seen(ensemble)[0]

        few_at_once = list(ensemble.scored_choices(rows))

    assert max(rows * tokens for rows, tokens in seen) <= 400
    for one, other in zip(all_at_once, few_at_once, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=TOLERANCE)


def test_an_answer_ends_before_a_stop_string(small: Ensemble) -> None:
    whole = small.generate(PROMPTS, seed=3, max_tokens=30)
    stop = [whole[0].text[4:6], whole[1].text[3]]

    found = small.generate(PROMPTS, seed=3, max_tokens=30, stop=stop)

    for answer, longer in zip(found, whole, strict=True):
        places = [longer.text.find(each) for each in stop if each in longer.text]
        expected = min(places, default=len(longer.text))
        assert longer.text.startswith(answer.text)
        assert not any(each in answer.text for each in stop)
        assert answer.finish_reason == ("stop" if places else longer.finish_reason)
        assert not places or (len(answer.text) <= max(places) and len(answer.text) >= expected)
    assert len({answer.seed for answer in found}) == len(PROMPTS)


def test_an_answer_has_no_more_tokens_than_the_context_has_room_for(small: Ensemble) -> None:
    (answer,) = small.generate(["x" * 1020], max_tokens=50, temperature=0)

    assert len(answer.token_ids) <= 4


@pytest.mark.slow
def test_members_of_a_loaded_ensemble_are_on_the_device_and_in_the_precision_that_were_asked_for(
    tiny_ensembles: dict[str, Path],
) -> None:
    with softspec.load(
        tiny_ensembles["block-2"], backend="transformers", dtype="bfloat16", device="cpu"
    ) as ensemble:
        backend = ensemble.backend
        assert isinstance(backend, StackedBackend)
        assert isinstance(backend.members, Members)
        assert backend.members.model.dtype == torch.bfloat16
        rough = next(ensemble.scored_choices(ROWS[:1]))
    with softspec.load(tiny_ensembles["block-2"], backend="transformers") as ensemble:
        exact = next(ensemble.scored_choices(ROWS[:1]))

    assert rough.log_probs == pytest.approx(exact.log_probs, rel=0.05)


def test_a_prompt_of_messages_is_the_chat_templates(small: Ensemble) -> None:
    tokenizer = tiny_tokenizer()
    text = str(tokenizer.apply_chat_template(user("Why?"), add_generation_prompt=True, tokenize=False))

    assert small.texts.prompt_ids(user("Why?"), "prompt") == tuple(tokenizer.encode(text))


@pytest.mark.slow
def test_rules_of_the_manifest_hold(tiny_base: Path, tmp_path: Path) -> None:
    """Weights that are fixed make the mixture a product over tokens."""
    folder = random_adapters(tiny_base, tmp_path / "it", 2)
    save_manifest(folder, load_manifest(folder).model_copy(update={"weights_rule": "fixed"}))
    with softspec.load(folder, backend="transformers") as ensemble:
        ((score,),) = ensemble.score(["x"], [["abc"]], detail="tokens")
        (choice,) = ensemble.scored_choices([("x", ["abc"])])

    by_token = [
        torch.tensor(token.member_log_probs).double().exp().mean().log().item() for token in score.tokens
    ]
    assert choice.log_probs[0] == pytest.approx(sum(by_token), abs=TOLERANCE)
