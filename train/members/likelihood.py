"""Likelihood: how probable each member finds the completions of a batch, (K, B).

In: `Members` and `Example`s. Out: log-likelihoods in nats, differentiable in the adapters. Knows nothing of
the objective or the optimizer.

With block activation the leading prompt tokens run once per example without adapters and without gradients,
and their keys and values are shared by all members: the rule the serving engine follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from softspec.artefact.activation import Activation, shared_tokens
from softspec.train.data.units import Example, Unit
from softspec.train.members.frozen import Frozen, Ids, copy_to_extend, entered
from softspec.train.members.head import AT_ONCE, Head
from softspec.train.members.kept import Tensors
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.members.spec import decoder_layers


@dataclass(frozen=True)
class Batch:
    """B padded examples; a trunk (A tokens) is the shared part of a prompt, a tail (S tokens) the rest of an example.

    Examples that begin alike have one trunk, `trunk_of[b]` of P. Trunks are padded on the left and tails on the right,
    so the real tokens of an example are adjacent. `supervised` marks tail positions whose *next* token, in `targets`,
    counts. Shapes (P, A), (B,) or (B, S). `trunk` has the keys and values of the trunks once they have run; `states`
    are those that enter the first adapted layer for the tails, (B, S, hidden), where they are known.
    """

    trunk_ids: Tensor
    trunk_mask: Tensor
    trunk_of: Tensor
    tail_ids: Tensor
    tail_mask: Tensor
    supervised: Tensor
    targets: Tensor
    trunk: Cache | None = None
    states: Tensor | None = None

    @property
    def size(self) -> int:
        """How many examples there are, B."""
        return len(self.tail_ids)


def trunk_and_tail(example: Example, activation: Activation) -> tuple[Ids, Ids]:
    """The ids of an example's trunk, and those behind it, without its last one, which nothing follows."""
    shared = shared_tokens(activation.block_size, len(example.prompt_ids))
    return example.prompt_ids[:shared], (example.prompt_ids + example.completion_ids)[shared:-1]


def tail_length(unit: Unit, activation: Activation) -> int:
    """The tokens that every member runs for a unit's longest completion; batches of like lengths waste least."""
    return max(len(trunk_and_tail(each, activation)[1]) for each in unit.completions)


def collate(examples: Sequence[Example], activation: Activation, device: torch.device) -> Batch:
    """A batch of the examples, each split into trunk and tail and padded; padding never changes a result."""
    trunks: dict[tuple[int, ...], int] = {}
    trunk_of, tails, supervised, targets = [], [], [], []
    for example in examples:
        trunk, tail = trunk_and_tail(example, activation)
        trunk_of.append(trunks.setdefault(trunk, len(trunks)))
        tails.append(tail)
        targets.append((*tail[1:], example.completion_ids[-1]))
        completion = len(example.completion_ids)
        supervised.append((False,) * (len(tail) - completion) + (True,) * completion)
    return Batch(
        trunk_ids=_padded(list(trunks), device, left=True),
        trunk_mask=_padded([(1,) * len(trunk) for trunk in trunks], device, left=True),
        trunk_of=torch.tensor(trunk_of, device=device),
        tail_ids=_padded(tails, device),
        tail_mask=_padded([(1,) * len(tail) for tail in tails], device),
        supervised=_padded(supervised, device).bool(),
        targets=_padded(targets, device),
    )


@torch.no_grad()
def with_trunk(members: Members, batch: Batch) -> Batch:
    """The batch with its trunks run by the base model, so that several passes over it share them."""
    if batch.trunk is not None or batch.states is not None:
        return batch
    if members.frozen is not None:
        return _with_frozen(members.frozen, batch)
    has_trunk = batch.trunk_ids.shape[1] > 0
    if not members.anyone(has_trunk):
        return batch
    if not has_trunk:
        batch = _with_hidden_token(batch)
    output = members.model.get_decoder()(
        input_ids=batch.trunk_ids,
        attention_mask=batch.trunk_mask,
        position_ids=(batch.trunk_mask.cumsum(1) - 1).clamp_min(0),
        use_cache=True,
    )
    return replace(batch, trunk=output.past_key_values)


def _with_hidden_token(batch: Batch) -> Batch:
    """The batch with trunks of one token that masks hide, because others of those who share the layers have trunks."""
    nothing = batch.trunk_ids.new_zeros(len(batch.trunk_ids), 1)
    return replace(batch, trunk_ids=nothing, trunk_mask=nothing)


def _with_frozen(frozen: Frozen, batch: Batch) -> Batch:
    """The batch with all that is frozen of it."""
    trunks = _unpadded(batch.trunk_ids, batch.trunk_mask)
    tails = _unpadded(batch.tail_ids, batch.tail_mask)
    trunk_of = batch.trunk_of.tolist()
    parts: list[Tensors] = []
    states: dict[int, Tensor] = {}
    for number, trunk in enumerate(trunks):
        own = [example for example, its_trunk in enumerate(trunk_of) if its_trunk == number]
        part, found = frozen.of(trunk, [tails[example] for example in own])
        parts.append(part)
        states |= {example: found[tails[example]] for example in own if found}
    length = batch.trunk_ids.shape[1]
    ordered = [states[example] for example in sorted(states)]
    return replace(
        batch,
        trunk=frozen.cache(parts, length) if length else None,
        states=pad_sequence(ordered, batch_first=True).to(batch.tail_ids.device) if ordered else None,
    )


def member_loglik(members: Members, batch: Batch) -> Tensor:
    """log p_k(completion | prompt) of every member and example, summed over completion tokens.

    Returns:
        (K, B), nats, float64: the sums reach hundreds of nats, where float32 costs 1e-5 in the gradient.
    """
    pairs = Pairs.all_pairs(members.num_members, batch.size, batch.tail_ids.device)
    return pair_loglik(members, batch, pairs).view(members.num_members, batch.size)


@torch.no_grad()
def base_loglik(members: Members, batch: Batch) -> Tensor:
    """log p(completion | prompt) of every example under the base model, adapters off; (1, B), nats, float64."""
    return pair_loglik(members, batch, None)[None]


@torch.no_grad()
def completion_logprobs(members: Members, batch: Batch) -> Tensor:
    """Every member's full predictive at each of the batch's N completion tokens, example after example.

    Returns:
        (K, N, V), nats, float32, normalised over V. All at once: for few tokens.
    """
    return torch.cat(list(completion_logprobs_in_parts(members, batch)), 1)


@torch.no_grad()
def completion_logprobs_in_parts(
    members: Members, batch: Batch, at_once: int = AT_ONCE // 2
) -> Iterator[Tensor]:
    """The same, a few tokens after the other, (K, n, V) each: all K predictives of a batch need much memory.

    Args:
        at_once: the most numbers in one part; half of what a step may have, for whoever reads them needs as many.
    """
    pairs = Pairs.all_pairs(members.num_members, batch.size, batch.tail_ids.device)
    states, head = supervised_states(members, batch, pairs)
    by_member = states.view(members.num_members, -1, states.shape[-1])
    size = max(1, replace(head, at_once=at_once).positions_at_once // members.num_members)
    for part in by_member.split(size, 1):
        yield head.logits(part.flatten(0, 1)).log_softmax(-1).view(*part.shape[:2], -1)


def pair_loglik(members: Members, batch: Batch, pairs: Pairs | None) -> Tensor:
    """log p(completion | prompt) of each pair, (R,), nats, float64; None for pairs is the base on every example."""
    tokens = token_loglik(members, batch, pairs)
    supervised = _of_pairs(batch.supervised, pairs)
    sums = torch.zeros(len(supervised), dtype=torch.float64, device=tokens.device)
    return sums.index_add(0, supervised.nonzero()[:, 0], tokens.double())


def token_loglik(members: Members, batch: Batch, pairs: Pairs | None, at_once: int = AT_ONCE) -> Tensor:
    """Log-probabilities of the completion tokens of each pair, pair after pair, (M,), nats, float32 or wider.

    Args:
        at_once: the most logits in memory.
    """
    states, head = supervised_states(members, batch, pairs)
    targets = _of_pairs(batch.targets, pairs)[_of_pairs(batch.supervised, pairs)]
    return replace(head, at_once=at_once).target_logprobs(states, targets)


def supervised_states(members: Members, batch: Batch, pairs: Pairs | None) -> tuple[Tensor, Head]:
    """The decoder's states at all supervised positions, pair after pair, (M, hidden), and what makes logits of them."""
    batch = with_trunk(members, batch)
    trunk_mask = batch.trunk_mask[batch.trunk_of]
    positions = trunk_mask.sum(1, keepdim=True) + torch.arange(
        batch.tail_ids.shape[1], device=trunk_mask.device
    )
    layers, first = decoder_layers(members.model), members.spec.layers[0]
    with members.running(pairs), entered(layers, first, batch.states):
        output = members.model.get_decoder()(
            input_ids=batch.tail_ids,
            attention_mask=torch.cat([trunk_mask, batch.tail_mask], 1),
            position_ids=positions,
            past_key_values=_extendable(batch.trunk, batch.trunk_of),
            use_cache=batch.trunk is not None,
        )
    states = output.last_hidden_state[_of_pairs(batch.supervised, pairs)]
    return states, Head(members.model, type(output))


def _extendable(trunk: Cache | None, trunk_of: Tensor) -> Cache | None:
    """A cache with each example's trunk, which one pass may extend; the trunk itself stays as it is."""
    extendable = copy_to_extend(trunk)
    if extendable is not None:
        extendable.batch_select_indices(trunk_of)
    return extendable


def _of_pairs(per_example: Tensor, pairs: Pairs | None) -> Tensor:
    return per_example if pairs is None else per_example[pairs.examples]


def _padded(parts: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> Tensor:
    """Numbers of different lengths as one tensor (B, longest), int64, padded with zeros that masks hide."""
    length = max(len(part) for part in parts)
    padding = [(0,) * (length - len(part)) for part in parts]
    filled = [(*pad, *part) if left else (*part, *pad) for part, pad in zip(parts, padding, strict=True)]
    return torch.tensor(filled, dtype=torch.long, device=device).view(len(parts), length)


def _unpadded(ids: Tensor, mask: Tensor) -> list[Ids]:
    return [tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True)]
