"""The answer key: the same decode loop as the serving engine, in transformers and PEFT, written to be read.

In: a base checkpoint and an ensemble directory. Out: drawn tokens with their uncertainties, and member scores.
float32, one request at a time, one forward pass per member and token. Knows nothing of vLLM, which is tested
against it.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from softspec.artefact.activation import shared_tokens
from softspec.artefact.manifest import Manifest, load_manifest, member_dir
from softspec.artefact.weights import load_whole
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import mixture_logits, prefix_log_weights, update_log_weights
from softspec.maths.sampling import SamplingSpec, apply_penalties, draw_tokens
from softspec.maths.uncertainty import Predictive, predict


class ReferenceEnsemble:
    """K adapters on one base, decoded in lockstep as one mixture.

    Use `load`. Shapes: K members, T positions, V vocabulary; everything in nats.
    """

    def __init__(self, model: PeftModel, manifest: Manifest, adapters: Sequence[str] = ()) -> None:
        """Decode with these adapters of the model, one a member; by default "member-0" ... "member-{K-1}"."""
        self.model = model.eval()
        self.manifest = manifest
        self.adapters = adapters or [f"member-{k}" for k in range(manifest.num_members)]
        self.prior = torch.tensor(manifest.log_weights, dtype=torch.float64)

    @classmethod
    def load(cls, base_path: str | Path, ensemble_dir: Path) -> "ReferenceEnsemble":
        """Read the base in float32 and every member's adapter.

        Raises:
            ManifestError: `ensemble_dir` is not a complete ensemble.
            ConfigError: there is no base, or it lacks weights.
        """
        manifest = load_manifest(ensemble_dir)
        base = load_whole(str(base_path), None, torch.float32)
        model = PeftModel.from_pretrained(base, member_dir(ensemble_dir, 0), adapter_name="member-0")
        for member in range(1, manifest.num_members):
            model.load_adapter(member_dir(ensemble_dir, member), adapter_name=f"member-{member}")
        return cls(model, manifest)

    def member(self, k: int) -> "ReferenceEnsemble":
        """Member k as an ensemble of one, which is how it is served; the model is shared."""
        alone = self.manifest.model_copy(update={"num_members": 1, "log_weights": (0.0,)})
        return ReferenceEnsemble(self.model, alone, [self.adapters[k]])

    def decode(
        self,
        prompt_ids: Sequence[int],
        spec: SamplingSpec,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
    ) -> list[TokenUncertainty]:
        """Draw up to `max_tokens` tokens; one of `stop_token_ids` ends the answer and is its last token."""
        return [token for token, _ in self.steps(prompt_ids, spec, max_tokens, stop_token_ids)]

    @torch.no_grad()
    def steps(
        self,
        prompt_ids: Sequence[int],
        spec: SamplingSpec,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
    ) -> Iterator[tuple[TokenUncertainty, Tensor]]:
        """The tokens that `decode` draws, each with the raw mixture's log-probabilities (V,)."""
        caches = self.caches_after_shared_prompt(prompt_ids)
        pending = list(prompt_ids[caches[0].get_seq_length() :])
        log_weights, output_ids = self.prior, list[int]()
        while len(output_ids) < max_tokens:
            member_logits = self._logits(pending, caches)[:, -1]
            member_logprobs = member_logits.log_softmax(-1)
            predictive = predict(member_logprobs, log_weights)
            scores = mixture_logits(predictive.logprobs, log_weights, member_logits.logsumexp(-1))
            token_id = draw_next(scores, prompt_ids, output_ids, spec)
            yield _record(token_id, member_logprobs, predictive), predictive.logprobs
            if token_id in stop_token_ids:
                return
            if self.manifest.weights_rule == "prefix_posterior":
                log_weights = update_log_weights(log_weights, member_logprobs[:, token_id])
            output_ids.append(token_id)
            pending = [token_id]

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
        """Log-probability of each token of a known completion under each member, (K, T)."""
        return _chosen(self._along(prompt_ids, completion_ids), completion_ids)

    @torch.no_grad()
    def replay(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[TokenUncertainty]:
        """The tokens of a known completion with the numbers they would have had if `decode` had drawn them."""
        logprobs = self._along(prompt_ids, completion_ids)
        weights = prefix_log_weights(self.prior, _chosen(logprobs, completion_ids))
        if self.manifest.weights_rule == "fixed":
            weights = self.prior[:, None].expand_as(weights)
        return [
            _record(token_id, logprobs[:, t], predict(logprobs[:, t], weights[:, t]))
            for t, token_id in enumerate(completion_ids)
        ]

    def caches_after_shared_prompt(self, prompt_ids: Sequence[int]) -> list[DynamicCache]:
        """One cache per member, filled by the base alone with the tokens on which adapters are off."""
        trunk = DynamicCache(config=self.model.config)
        shared = shared_tokens(self.manifest.activation.block_size, len(prompt_ids))
        if shared:
            with self.model.disable_adapter():
                self.model(torch.tensor([prompt_ids[:shared]]), past_key_values=trunk, use_cache=True)
        return [copy.deepcopy(trunk) for _ in range(self.manifest.num_members)]

    def _along(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
        """Log-probabilities (K, T, V) before each token of a known completion, in one pass for each member."""
        caches = self.caches_after_shared_prompt(prompt_ids)
        pending = [*prompt_ids[caches[0].get_seq_length() :], *completion_ids]
        return self._logits(pending, caches)[:, -len(completion_ids) - 1 : -1].log_softmax(-1)

    def _logits(self, token_ids: Sequence[int], caches: Sequence[DynamicCache]) -> Tensor:
        """Logits (K, T, V) after the next T tokens of each member, whose cache grows by them."""
        rows = []
        for adapter, cache in zip(self.adapters, caches, strict=True):
            self.model.set_adapter(adapter)
            logits = self.model(torch.tensor([token_ids]), past_key_values=cache, use_cache=True).logits
            rows.append(logits[0])
        return torch.stack(rows)


def draw_next(
    scores: Tensor, prompt_ids: Sequence[int], output_ids: Sequence[int], spec: SamplingSpec
) -> int:
    """The next token from the mixture's scores (V,), after biases, penalties, temperature and filters."""
    vocab_size, scores = len(scores), scores.clone()
    for token_id, bias in spec.logit_bias:
        scores[token_id] += bias
    counts = torch.bincount(torch.tensor(output_ids, dtype=torch.int64), minlength=vocab_size)
    in_prompt = torch.zeros(vocab_size, dtype=torch.bool)
    in_prompt[list(prompt_ids)] = True
    penalised = apply_penalties(
        scores[None],
        in_prompt[None],
        counts[None],
        torch.tensor([spec.repetition_penalty]),
        torch.tensor([spec.presence_penalty]),
        torch.tensor([spec.frequency_penalty]),
    )
    drawn = draw_tokens(
        penalised,
        torch.tensor([spec.temperature]),
        torch.tensor([spec.top_k]),
        torch.tensor([spec.top_p]),
        torch.tensor([spec.min_p]),
        torch.tensor([spec.seed]),
        torch.tensor([len(output_ids)]),
    )
    return int(drawn.item())


def _chosen(logprobs: Tensor, token_ids: Sequence[int]) -> Tensor:
    """What (K, T, V) log-probabilities say of these T tokens, (K, T)."""
    targets = torch.tensor(token_ids, dtype=torch.int64).expand(logprobs.shape[:-1])
    return logprobs.gather(-1, targets[..., None]).squeeze(-1)


def _record(token_id: int, member_logprobs: Tensor, predictive: Predictive) -> TokenUncertainty:
    return TokenUncertainty(
        token_id=token_id,
        log_prob=float(predictive.logprobs[token_id]),
        total_entropy=float(predictive.total_entropy),
        aleatoric_entropy=float(predictive.aleatoric_entropy),
        epistemic=float(predictive.epistemic),
        disagreement=float(predictive.disagreement),
        member_log_probs=tuple(member_logprobs[:, token_id].tolist()),
        member_choices=tuple(member_logprobs.argmax(-1).tolist()),
    )
