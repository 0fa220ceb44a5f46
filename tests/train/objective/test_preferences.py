"""Preferences: which rows are read, margins equal to stock PEFT's, and runs that learn what was preferred."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation
from softspec.artefact.manifest import load_manifest
from softspec.errors import DataError
from softspec.maths.renyi import dpo_loglik, renyi_loss, responsibilities
from softspec.train.data.preferences import PreferenceRow, read_preferences
from softspec.train.data.reading import Reading
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Preference, WithReference
from softspec.train.members.load import load_members
from softspec.train.members.members import Members
from softspec.train.members.spec import resolve_spec
from softspec.train.objective.preferences import Preferences, reference_margins
from softspec.train.objective.routing import Table
from softspec.train.result.export import peft_completion_logprobs, peft_loglik
from softspec.train.run import train_ensemble
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer
from tests.support.tiny_training import (
    config_of_no_files,
    preference_rows,
    random_examples,
    write_config,
    write_rows,
)
from tests.support.training_runs import logged

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Where is it?"}
ROME = {"role": "assistant", "content": "In Rome."}
PARIS = {"role": "assistant", "content": "In Paris."}
ACTIVATIONS: list[Activation] = [AlwaysActivation(), BlockActivation(block_size=32)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def load_one(folder: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> Preference:
    """The only preference of a file with one row."""
    path = write_rows(folder / "rows.jsonl", [row])
    return next(read_preferences(read_rows(str(path)), Reading(tokenizer, {tokenizer.eos_token_id}, 200)))


def random_pairs() -> list[Preference]:
    """Chosen and rejected completions of one prompt, of different lengths."""
    examples = random_examples()
    return [
        Preference(first, type(first)(first.prompt_ids, second.completion_ids))
        for first, second in zip(examples, examples[1:] + examples[:1], strict=True)
    ]


def with_reference(
    members: Members, pairs: Sequence[Preference], activation: Activation
) -> Sequence[Preference]:
    """The pairs with the base's margins."""
    return WithReference(
        pairs, reference_margins(members, pairs, range(len(pairs)), activation, batch_size=2)
    )


def table_of(members: Members, pairs: Sequence[Preference], activation: Activation) -> Table:
    """What the members make of the pairs, as training asks them."""
    config = config_of_no_files(objective="dpo", beta=0.1, activation=activation)
    return Preferences(config).batch(members, pairs).table()


# Rows


def test_a_prompt_with_two_messages_gives_two_completions_of_one_prompt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pair = load_one(tmp_path, tokenizer, {"prompt": [QUESTION], "chosen": [ROME], "rejected": [PARIS]})

    assert pair.chosen.prompt_ids == pair.rejected.prompt_ids
    assert tokenizer.decode(pair.chosen.completion_ids) == "In Rome.<|im_end|>"
    assert tokenizer.decode(pair.rejected.completion_ids) == "In Paris.<|im_end|>"


def test_the_prompt_of_two_conversations_is_what_they_begin_with(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    explicit = {"prompt": [QUESTION], "chosen": [ROME], "rejected": [PARIS]}
    implicit = {"chosen": [QUESTION, ROME], "rejected": [QUESTION, PARIS]}

    assert load_one(tmp_path, tokenizer, implicit) == load_one(tmp_path, tokenizer, explicit)


def test_text_is_used_without_the_chat_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "source": 7}
    pair = load_one(tmp_path, tokenizer, row)

    assert tokenizer.decode(pair.rejected.prompt_ids) == "2 + 2 ="
    assert tokenizer.decode(pair.rejected.completion_ids) == " 5<|im_end|>"
    assert pair.chosen.source == "7"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [SYSTEM, QUESTION, ROME], "rejected": [SYSTEM, QUESTION, PARIS]},
        {"prompt": "Where is it?", "chosen": [SYSTEM, QUESTION, ROME], "rejected": [SYSTEM, QUESTION, PARIS]},
        {
            "prompt": None,
            "chosen": [SYSTEM, QUESTION, ROME],
            "rejected": [SYSTEM, {**QUESTION, "name": None}, PARIS],
        },
        {
            "prompt": "Where is it?",
            "prompt_id": "x",
            "messages": [SYSTEM, QUESTION, ROME],
            "chosen": [SYSTEM, QUESTION, ROME],
            "rejected": [SYSTEM, QUESTION, PARIS],
            "score_chosen": 7,
        },
    ],
)
def test_the_columns_of_well_known_data_sets_are_one_preference(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]
) -> None:
    explicit = {"prompt": [SYSTEM, QUESTION], "chosen": [ROME], "rejected": [PARIS]}

    assert load_one(tmp_path, tokenizer, row) == load_one(tmp_path, tokenizer, explicit)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Q: a\nA: Yes", "Q: a\nA: No", "Q: a\nA:"),
        ("Q: a\nA:Yes", "Q: a\nA:No", "Q: a\nA:"),
        ("The sky is black.", "The sky is blue.", "The sky is bl"),
        ("The sky is", "The sky is blue.", "The sky i"),
    ],
)
def test_the_prompt_of_two_texts_is_what_they_begin_with_as_in_trl(
    chosen: str, rejected: str, prompt: str
) -> None:
    row = PreferenceRow(chosen=chosen, rejected=rejected)

    assert row.parts() == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def test_random_pairs_are_parted_as_trl_parts_them() -> None:
    """Where TRL is installed; where it is not, the cases above say what it does."""
    trl = pytest.importorskip("trl.data_utils")
    generator = random.Random(0)
    for _ in range(2_000):
        common = "".join(generator.choices("ab ", k=generator.randint(1, 6)))
        chosen, rejected = (common + "".join(generator.choices("ab ", k=3)) for _ in range(2))
        if chosen == rejected or not chosen.strip() or chosen[0] == " ":
            continue

        prompt, *pair = PreferenceRow(chosen=chosen, rejected=rejected).parts()

        theirs = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
        assert [prompt, *pair] == [theirs["prompt"], theirs["chosen"], theirs["rejected"]]
    for turns in ([QUESTION], [SYSTEM, QUESTION], [QUESTION, ROME, QUESTION]):
        for beside in ({}, {"prompt": "Where is it?"}):
            content = {**beside, "chosen": [*turns, ROME], "rejected": [*turns, PARIS]}
            theirs = trl.maybe_extract_prompt(content)

            parts = PreferenceRow.model_validate(content).parts()

            assert [
                [turn.model_dump(exclude_none=True) for turn in part]
                for part in parts
                if not isinstance(part, str)
            ] == [
                theirs["prompt"],
                theirs["chosen"],
                theirs["rejected"],
            ]


def test_the_likelihood_of_labels_that_may_be_wrong_is_not_trls_smoothing() -> None:
    """A margin of 2 nats, wrong with probability 0.2: a mixture of likelihoods here, a mean of losses in TRL."""
    margin, wrong = torch.tensor([2.0], dtype=torch.float64), 0.2

    ours = -dpo_loglik(margin, 1.0, wrong)

    def loss(sign: int) -> float:
        return math.log1p(math.exp(-sign * 2.0))

    trl = (1 - wrong) * loss(1) + wrong * loss(-1)
    assert ours.item() == pytest.approx(0.317, abs=5e-4)
    assert trl == pytest.approx(0.527, abs=5e-4)


def test_a_group_and_a_weight_are_the_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "group": "sum", "weight": 0.5}

    pair = load_one(tmp_path, tokenizer, row)

    assert (pair.bundle, pair.weight) == ("sum", 0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": "a", "rejected": "b"},
            "expected a 'prompt', or a 'chosen' and a 'rejected' that begin alike",
        ),
        ({"chosen": "a", "rejected": "ab"}, "expected a 'prompt', or"),
        ({"prompt": "a", "chosen": "b"}, "rejected: missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": [PARIS]}, "must both be text or both be messages"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected: empty completion"),
        ({"prompt": [QUESTION], "chosen": "b", "rejected": "c"}, "'prompt' is messages but 'chosen' is text"),
        ({"chosen": [ROME], "rejected": [PARIS]}, "'chosen' and 'rejected' share no first message"),
        ({"prompt": "a", "chosen": [ROME], "rejected": [PARIS]}, "share no first message"),
        ({"chosen": [QUESTION, ROME], "rejected": [QUESTION]}, "share no first message"),
        (
            {"chosen": [QUESTION, ROME, QUESTION, ROME], "rejected": [QUESTION, PARIS]},
            "'chosen' has messages of assistant, user, assistant behind the 1 that both begin with: expected one",
        ),
        (
            {"prompt": [QUESTION], "chosen": [QUESTION, ROME], "rejected": [QUESTION, PARIS]},
            "'chosen' has messages of user, assistant behind 'prompt': expected one message of the assistant",
        ),
        ({"prompt": [QUESTION], "chosen": [], "rejected": [ROME]}, "'chosen' has messages of nobody behind"),
        (
            {"prompt": "a", "chosen": json.dumps([ROME]), "rejected": json.dumps([PARIS])},
            "'chosen' is messages written as text",
        ),
        ({"chosen": json.dumps([QUESTION, ROME]), "rejected": "a"}, "'chosen' is messages written as text"),
        ({"prompt": "a", "chosen": "b", "rejected": str([PARIS])}, "'rejected' is messages written as text"),
        ({"prompt": "a", "chosen": ROME, "rejected": PARIS}, "chosen: expected text or a list (found"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "weight": True},
            "weight: expected a number (found true)",
        ),
        (
            {"prompt": [QUESTION], "chosen": [ROME], "rejected": [{"role": "assistant", "content": 5}]},
            "rejected.0.content: expected text or a list (found 5)",
        ),
        (
            {"prompt": [QUESTION], "chosen": [ROME], "rejected": [{**ROME, "score": 1}]},
            "'chosen' and 'rejected' are the same tokens once rendered",
        ),
        ({"prompt": "a" * 900, "chosen": "b", "rejected": "c"}, "1 of 1 rows is longer than max_length 200"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_number(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as error:
        load_one(tmp_path, tokenizer, row)

    assert message in str(error.value)
    assert "rows.jsonl:1" in str(error.value)
    assert "\n" not in str(error.value)


# Margins


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["always", "block of 32"])
def test_margins_equal_those_of_stock_peft_with_the_adapters_on_and_off(
    tmp_path: Path, activation: Activation
) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    ensemble = random_adapters(base, tmp_path / "ensemble", num_members=3)
    members = load_members(ensemble, AutoModelForCausalLM.from_pretrained(base))
    pairs = random_pairs()

    with torch.no_grad():
        known = with_reference(members, pairs, activation)
        ours = table_of(members, known, activation).margins

    def gaps(loglik: Tensor) -> Tensor:
        return loglik[:, : len(pairs)] - loglik[:, len(pairs) :]

    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    with members.removed() as model:
        trained = peft_loglik(ensemble, model, 3, examples, activation)
    untouched = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        sums = [
            peft_completion_logprobs(untouched, example, AlwaysActivation()).sum() for example in examples
        ]
    reference = torch.stack(sums)[None]
    torch.testing.assert_close(ours, gaps(trained) - gaps(reference), rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
def test_untrained_members_are_undecided_and_share_evenly(tmp_path: Path, alpha: float) -> None:
    """B = 0: every margin is 0, the loss is log 2 and responsibilities are the weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "base"))
    members = Members(model, resolve_spec(model, 4, 8, "all-linear", "all"), 3, seed=0)
    pairs = with_reference(members, random_pairs(), ACTIVATIONS[1])
    log_weights = torch.tensor([0.5, 0.3, 0.2]).log()

    loglik = table_of(members, pairs, ACTIVATIONS[1]).loglik

    expected = torch.full((len(pairs),), math.log(2), dtype=torch.float64)
    torch.testing.assert_close(renyi_loss(loglik, log_weights, alpha), expected, rtol=0, atol=1e-5)
    shares = responsibilities(loglik, log_weights, alpha)
    torch.testing.assert_close(
        shares, log_weights.double().exp()[:, None].expand_as(shares), atol=1e-5, rtol=0
    )


# Runs


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The output of a run, and its logged steps."""
    folder = tmp_path_factory.mktemp("dpo")
    write_rows(folder / "pairs.jsonl", preference_rows())
    config = write_config(
        folder,
        objective="dpo",
        train_file="pairs.jsonl",
        eval_file="pairs.jsonl",
        beta=0.5,
        max_steps=12,
        learning_rate=0.002,
    )
    train_ensemble(config)
    return config.output_dir, [event for event in logged(config) if "loss" in event]


def test_members_learn_to_prefer_what_was_chosen(log: tuple[Path, list[dict[str, Any]]]) -> None:
    _, steps = log

    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["margins"] == pytest.approx([0, 0], abs=1e-4)
    assert steps[-1]["loss"] < 0.3
    assert min(steps[-1]["margins"]) > 1
    assert steps[-1]["accuracies"] == [1, 1]


def test_the_manifest_says_that_preferences_were_trained(log: tuple[Path, list[dict[str, Any]]]) -> None:
    manifest = load_manifest(log[0])

    assert manifest.objective == "dpo"
    assert manifest.training["settings"]["beta"] == 0.5
    scores = manifest.held_out
    assert scores["preferences"] == 12
    assert scores["mixture_accuracy"] == 1
    assert 0 < scores["mixture_nll"] < math.log(2)
    assert 0 < scores["member_nll"] < math.log(2)


def test_completions_are_no_preferences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*chosen: missing"):
        train_ensemble(write_config(tmp_path, objective="dpo"))
