"""The answer key, against one masked forward pass per member without caches and naive Python decoding."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from softspec.artefact.activation import Activation, AlwaysActivation, BlockActivation, shared_tokens
from softspec.artefact.manifest import Manifest, load_manifest, member_dir, save_manifest
from softspec.maths.answer import summarise
from softspec.maths.mixture import sequence_loglik
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support import oracle
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.slow

PROMPT = [1, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
ACTIVATIONS: dict[str, Activation] = {"always": AlwaysActivation(), "block": BlockActivation(block_size=4)}
GREEDY = SamplingSpec(temperature=0.0)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=list(ACTIVATIONS.values()), ids=list(ACTIVATIONS))
def ensemble_dir(
    request: pytest.FixtureRequest, base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return random_adapters(base_dir, folder, num_members=3, activation=request.param)


@pytest.fixture(scope="module")
def reference(base_dir: Path, ensemble_dir: Path) -> ReferenceEnsemble:
    return ReferenceEnsemble.load(base_dir, ensemble_dir)


def rewrite_manifest(reference: ReferenceEnsemble, **changes: object) -> ReferenceEnsemble:
    return ReferenceEnsemble(reference.model, reference.manifest.model_copy(update=changes))


class MaskedMember:
    """The definition of an adapter that wakes up at one position: a single cache-free pass over the whole text.

    Every target adds scale * B A x to its output at positions from `awake_from` on and nothing before.
    """

    def __init__(self, base_dir: Path, adapter_dir: Path, awake_from: int) -> None:
        self.model = LlamaForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        tensors = load_file(adapter_dir / "adapter_model.safetensors")
        for name, down in tensors.items():
            if name.endswith("lora_A.weight"):
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = tensors[name.replace("lora_A", "lora_B")]
                self.model.get_submodule(module).register_forward_hook(_woken(2.0 * up @ down, awake_from))

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """(T, V), the prediction after each token."""
        return self.model(torch.tensor([token_ids]), use_cache=False).logits[0]


def _woken(delta: Tensor, awake_from: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        awake = (torch.arange(output.shape[1]) >= awake_from)[None, :, None]
        return output + awake * (inputs[0] @ delta.T)

    return add


@pytest.fixture(scope="module")
def masked_members(base_dir: Path, ensemble_dir: Path) -> list[MaskedMember]:
    manifest = load_manifest(ensemble_dir)
    awake_from = shared_tokens(manifest.activation.block_size, len(PROMPT))
    return [MaskedMember(base_dir, member_dir(ensemble_dir, k), awake_from) for k in range(3)]


def naive_decode(
    members: list[MaskedMember], spec: SamplingSpec, max_tokens: int, rule: str
) -> list[tuple[int, float, list[float], float, float]]:
    """(token, log-probability, weights before it, total entropy, mutual information) per step."""
    weights, output_ids, steps = [1 / 3] * 3, list[int](), []
    for position in range(max_tokens):
        logits = torch.stack([m.logits([*PROMPT, *output_ids])[-1] for m in members]).double()
        rows = logits.softmax(-1).tolist()
        mixture = oracle.mix(rows, weights)
        logprobs = [math.log(p) for p in mixture]
        scores = oracle.penalise(
            oracle.restore(logprobs, weights, logits.tolist()),
            PROMPT,
            output_ids,
            spec.repetition_penalty,
            spec.presence_penalty,
            spec.frequency_penalty,
        )
        token_id = naive_draw(scores, spec, position)
        information = oracle.mutual_information(rows, weights)
        steps.append((token_id, logprobs[token_id], weights, oracle.entropy(mixture), information))
        if rule == "prefix_posterior":
            weights = oracle.responsibilities([math.log(row[token_id]) for row in rows], weights, 1.0)
        output_ids.append(token_id)
    return steps


def naive_draw(scores: list[float], spec: SamplingSpec, position: int) -> int:
    if spec.temperature == 0:
        return max(range(len(scores)), key=lambda v: scores[v])
    allowed = oracle.survivors(scores, spec.temperature, spec.top_k, spec.top_p, spec.min_p)
    return oracle.draw(scores, spec.temperature, allowed, spec.seed, position)


SPECS = {
    "greedy": GREEDY,
    "drawn": SamplingSpec(seed=7),
    "filtered": SamplingSpec(temperature=1.4, top_k=30, top_p=0.9, min_p=0.01, seed=2**63 - 1),
    "penalised": SamplingSpec(
        temperature=0.8, repetition_penalty=1.2, presence_penalty=0.6, frequency_penalty=0.4, seed=3
    ),
}


@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_decoding_is_the_naive_loop(
    reference: ReferenceEnsemble, masked_members: list[MaskedMember], spec: SamplingSpec, rule: str
) -> None:
    tokens = rewrite_manifest(reference, weights_rule=rule).decode(PROMPT, spec, max_tokens=8)

    expected = naive_decode(masked_members, spec, 8, rule)
    assert [token.token_id for token in tokens] == [step[0] for step in expected]
    assert [token.log_prob for token in tokens] == pytest.approx([step[1] for step in expected], abs=1e-4)
    assert [token.total_entropy for token in tokens] == pytest.approx([s[3] for s in expected], abs=1e-4)
    assert [token.epistemic for token in tokens] == pytest.approx([s[4] for s in expected], abs=1e-4)
    assert all(
        token.total_entropy == pytest.approx(token.aleatoric_entropy + token.epistemic, abs=1e-5)
        for token in tokens
    )


def test_scores_are_those_of_one_masked_pass(
    reference: ReferenceEnsemble, masked_members: list[MaskedMember]
) -> None:
    completion = [60, 61, 62, 63, 64]

    scores = reference.score(PROMPT, completion)

    for member, masked in enumerate(masked_members):
        logprobs = masked.logits([*PROMPT, *completion]).log_softmax(-1)[len(PROMPT) - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
        torch.testing.assert_close(scores[member], expected, rtol=0, atol=1e-4)


def test_decoded_answer_scores_the_same_when_read_as_a_whole(reference: ReferenceEnsemble) -> None:
    """Chain rule with prefix weights = the trained, whole-completion mixture; and decoding = scoring."""
    tokens = reference.decode(PROMPT, SamplingSpec(seed=1), max_tokens=12)
    answer = summarise(tokens, reference.manifest.log_weights)

    scores = reference.score(PROMPT, [token.token_id for token in tokens]).sum(1)

    assert answer.member_log_probs == pytest.approx(scores.tolist(), abs=1e-3)
    assert answer.log_prob == pytest.approx(sequence_loglik(reference.prior, scores).item(), abs=1e-3)


def test_stop_token_ends_the_answer_and_belongs_to_it(reference: ReferenceEnsemble) -> None:
    tokens = [token.token_id for token in reference.decode(PROMPT, GREEDY, max_tokens=8)]
    stop = tokens[3]

    stopped = reference.decode(PROMPT, GREEDY, max_tokens=8, stop_token_ids={stop})

    assert [token.token_id for token in stopped] == tokens[: tokens.index(stop) + 1]


def test_steps_show_the_whole_mixture(reference: ReferenceEnsemble) -> None:
    token, logprobs = next(reference.steps(PROMPT, SamplingSpec(seed=4), max_tokens=1))

    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert token.log_prob == logprobs[token.token_id].item()


def test_prompt_of_one_token_is_enough(reference: ReferenceEnsemble) -> None:
    assert len(reference.decode([5], GREEDY, max_tokens=3)) == 3


def test_members_differ(reference: ReferenceEnsemble) -> None:
    """Guards the other tests: with equal members they would prove little."""
    token = reference.decode(PROMPT, GREEDY, max_tokens=1)[0]

    assert token.epistemic > 0.01
    assert len({round(score, 3) for score in token.member_log_probs}) == 3


def test_block_activation_changes_the_answer(base_dir: Path, tmp_path: Path) -> None:
    folder = random_adapters(base_dir, tmp_path, num_members=2, activation=ACTIVATIONS["block"])
    block = ReferenceEnsemble.load(base_dir, folder)
    always = rewrite_manifest(block, activation=AlwaysActivation())

    first, second = (e.score(PROMPT, [50]) for e in (block, always))

    assert (first - second).abs().max() > 1e-3


def test_uneven_prior_weights_are_used(base_dir: Path, tmp_path: Path) -> None:
    """With all the weight on one member the mixture is that member."""
    folder = random_adapters(base_dir, tmp_path, num_members=2)
    manifest: Manifest = load_manifest(folder).model_copy(
        update={"log_weights": (math.log(1e-9), math.log(1 - 1e-9))}
    )
    save_manifest(folder, manifest)

    token = ReferenceEnsemble.load(base_dir, folder).decode(PROMPT, GREEDY, max_tokens=1)[0]

    assert token.log_prob == pytest.approx(token.member_log_probs[1], abs=1e-6)
    assert token.epistemic == pytest.approx(0, abs=1e-5)
