"""The base as an ensemble, and draws of an adapter with dropout, against transformers and stock PEFT."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from softspec.app.baselines.adapters import dropout_samples
from softspec.app.baselines.run import OfSeed, Plan
from softspec.app.baselines.variants import Noise
from softspec.artefact.manifest import load_manifest, member_dir
from softspec.ensemble.load import load
from softspec.ensemble.texts import Texts
from softspec.evaluation.records import Record, read_records
from softspec.evaluation.rows import read_questions
from softspec.train.data.units import Example
from softspec.train.result.export import peft_completion_logprobs

pytestmark = pytest.mark.slow


def records(found: OfSeed, name: str) -> list[Record]:
    return list(read_records(found.scores_of(name)))


def examples(plan: Plan, row: int) -> list[Example]:
    """The choices of a row as training reads them."""
    question = list(read_questions(plan.data.path))[row]
    asked = Texts(plan.config.base_model).asked(question.prompt, question.choices, "a row")
    return [Example(asked.prompt_ids, answer) for answer in asked.answers]


def by_peft(plan: Plan, adapter: Path, row: int) -> Tensor:
    """Log-probabilities of a row's choices under an adapter, by stock PEFT, (C,)."""
    base = AutoModelForCausalLM.from_pretrained(plan.config.base_model)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    return peft_scores(plan, model, row)


@torch.no_grad()
def peft_scores(plan: Plan, model: PeftModel, row: int) -> Tensor:
    found = [peft_completion_logprobs(model, each, plan.config.activation) for each in examples(plan, row)]
    return torch.stack([tokens.sum() for tokens in found])


def test_the_base_alone_is_the_model_as_it_is(finished: tuple[Plan, OfSeed]) -> None:
    plan, found = finished
    model = AutoModelForCausalLM.from_pretrained(plan.config.base_model).eval()

    for record in records(found, "base")[:3]:
        for example, log_prob in zip(examples(plan, record.row), record.log_probs, strict=True):
            ids = torch.tensor([example.prompt_ids + example.completion_ids])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            answer = logprobs.gather(1, ids[0, 1:, None])[len(example.prompt_ids) - 1 :]
            assert log_prob == pytest.approx(answer.sum().item(), abs=1e-3)


@pytest.mark.parametrize("name", ["single", "wide"])
def test_one_adapter_is_what_stock_peft_says(finished: tuple[Plan, OfSeed], name: str) -> None:
    plan, found = finished
    adapter = member_dir(plan.folder / "seed-0" / name, 0)

    for record in records(found, name)[:3]:
        expected = by_peft(plan, adapter, record.row).tolist()
        assert record.log_probs == pytest.approx(expected, abs=1e-3)
        assert record.member_log_probs == (pytest.approx(expected, abs=1e-3),)


def test_a_draw_is_stock_pefts_dropout_held_still(finished: tuple[Plan, OfSeed]) -> None:
    """PEFT drops inputs of A; with one mask for all tokens, in place of its own dropout, it says the same."""
    plan, found = finished
    adapter = member_dir(plan.folder / "seed-0" / "dropout", 0)
    drawn = load_file(member_dir(plan.folder / "seed-0" / "dropout-3-draws", 1) / "adapter_model.safetensors")
    whole = load_file(adapter / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(plan.config.base_model)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    kept = []
    for name, module in model.named_modules():
        key = f"{name}.lora_A.weight"
        if key in whole:
            mask = (drawn[key] / whole[key]).mean(0)
            module.lora_dropout["default"] = Held(mask)
            kept.append((mask > 0).double().mean().item())

    found_scores = records(found, "dropout")[2].member_log_probs[1]

    assert found_scores == pytest.approx(peft_scores(plan, model, 2).tolist(), abs=1e-3)
    assert sum(kept) / len(kept) == pytest.approx(0.8, abs=0.08)
    assert mask[mask > 0].tolist() == pytest.approx([1.25] * int((mask > 0).sum()), rel=1e-4)


class Held(nn.Module):
    """Dropout that was drawn once."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.mask


def test_draws_differ_and_weigh_alike(finished: tuple[Plan, OfSeed]) -> None:
    plan, found = finished
    manifest = load_manifest(plan.folder / "seed-0" / "dropout-3-draws")

    first = records(found, "dropout")[0]

    assert len(set(first.member_log_probs)) == manifest.num_members == 3
    members = torch.tensor(first.member_log_probs)
    expected = members.logsumexp(0) - torch.tensor(3.0).log()
    assert first.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_without_dropout_every_draw_is_the_adapter(finished: tuple[Plan, OfSeed]) -> None:
    plan, _ = finished
    single = plan.folder / "seed-0" / "single"

    drawn = dropout_samples(single, Noise(0.0, 2), seed=0)

    question = next(read_questions(plan.data.path))
    asked = [(question.prompt, question.choices)]
    with load(single, backend="transformers") as one, load(drawn, backend="transformers") as two:
        (alone,), (together,) = list(one.scored_choices(asked)), list(two.scored_choices(asked))
    for member in together.member_log_probs:
        assert member == pytest.approx(alone.log_probs, abs=1e-5)
