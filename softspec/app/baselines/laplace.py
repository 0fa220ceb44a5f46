"""Last-layer Laplace (Daxberger et al. 2021, arXiv:2106.14806) of one adapter, by laplace-torch.

In: an adapter, the rows it was trained on, and its scores. Out: the same scores under draws of its output layer. Where
every row has the same choices and their first tokens differ, a choice is a class: the layer is the rows of the output
head for these tokens, its inputs are the decoder's states at the end of the prompt.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel

from softspec.app.baselines.beside import beside
from softspec.artefact.activation import Activation
from softspec.ensemble.backend import Asked
from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.stacked.backend import StackedBackend
from softspec.evaluation.records import Record, read_records
from softspec.evaluation.rows import read_questions
from softspec.maths.mixture import sequence_loglik, uniform_log_weights
from softspec.train.config import TrainConfig
from softspec.train.data.units import Example, Preference, Unit
from softspec.train.loop.keeping import keep_frozen
from softspec.train.members.likelihood import collate, supervised_states
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.processes import Processes

AT_ONCE = 16
"""Prompts that run together."""


Ids = tuple[int, ...]
Labels = tuple[Ids, ...]
"""The C classes: the choices as tokens, whose first ones differ."""


class DoesNotApply(Exception):
    """Why there is no last-layer Laplace of this model and these rows, as the end of a sentence."""


def last_layer_records(
    ensemble: Ensemble,
    config: TrainConfig,
    units: Sequence[Unit],
    data: Path,
    scores: Path,
    samples: int,
    seed: int,
) -> Iterator[Record]:
    """The scores of one adapter, in `scores`, again under draws of its last layer.

    Args:
        config, units: how and on what it was trained. data: the rows of the scores.
    Raises:
        DoesNotApply: the choices are no classes, or the training rows do not tell them apart.
    """
    members, activation = _members(ensemble), ensemble.manifest.activation
    labels = _labels_of(_asked(ensemble, data))
    examples, classes = _labelled(units, labels)
    layer = LastLayer(members.model, labels)
    prompts = [example.prompt_ids for example in examples]
    asked = (row.prompt_ids for row in _asked(ensemble, data))
    base = ensemble.manifest.base_model.fingerprint
    assert base is not None, "it was trained by this command"
    keep_frozen(config, members, Processes(), map(_example, chain(prompts, asked)), base)
    states = torch.cat([states for states, _ in _last_states(members, prompts, activation, layer)])
    draws = layer.posterior_draws(states, classes, samples, seed)

    def rescored() -> Iterator[Record]:
        prompts = (row.prompt_ids for row in _asked(ensemble, data))
        rows = zip(read_records(scores), _asked(ensemble, data), strict=True)
        for states, logprobs in _last_states(members, prompts, activation, layer):
            moved = torch.einsum("bh,sch->bsc", states.double(), draws - layer.weight)
            for (record, asked), of_row, by in zip(islice(rows, len(states)), logprobs, moved, strict=True):
                yield moved_record(record, labels, asked.answers, of_row.double(), by)

    return rescored()


def moved_record(
    record: Record, labels: Labels, answers: Sequence[Ids], logprobs: Tensor, moved: Tensor
) -> Record:
    """A row of an adapter's scores under draws of its last layer, as members that weigh alike.

    Only the logits of the classes' first tokens move, so a choice's log-probability moves with that of its first token.

    Args:
        answers: the row's choices. logprobs: of the classes' first tokens under the adapter, (C,), float64.
        moved: how far a draw moves the logit of each, (S, C).
    """
    rest = torch.log1p(-logprobs.exp().sum().clamp_max(1 - 1e-12))
    normaliser = torch.logsumexp(torch.cat([logprobs + moved, rest.expand(len(moved), 1)], 1), 1)
    places = [labels.index(answer) for answer in answers]
    shift = (moved - normaliser[:, None])[:, places]
    members = torch.tensor(record.member_log_probs, dtype=torch.float64) + shift
    mixture = sequence_loglik(uniform_log_weights(len(members)), members)
    return replace(
        record,
        log_probs=tuple(mixture.tolist()),
        member_log_probs=tuple(tuple(row) for row in members.tolist()),
    )


class LastLayer:
    """The rows of the output head for the classes' first tokens, (C, hidden), float64."""

    def __init__(self, model: PreTrainedModel, labels: Labels) -> None:
        self.tokens = torch.tensor([answer[0] for answer in labels])
        self.weight = model.get_output_embeddings().weight[self.tokens].detach().double()

    def logprobs(self, states: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities of the classes' first tokens, (B, C), from states (B, hidden) and all logits (B, V).

        Raises:
            DoesNotApply: the logits are not this layer's outputs: the base does something to them.
        """
        own = states.double() @ self.weight.T
        if not torch.allclose(own, logits[:, self.tokens].double(), rtol=1e-2, atol=1e-2):
            raise DoesNotApply("needs a base whose logits are a linear map of its last states")
        return logits.log_softmax(-1)[:, self.tokens]

    def posterior_draws(self, states: Tensor, classes: Tensor, samples: int, seed: int) -> Tensor:
        """Draws of the layer from its posterior given states (N, hidden) and classes (N,); (S, C, hidden).

        As the library has it by default: Kronecker factors of the generalised Gauss-Newton matrix, and the precision
        of a Gaussian prior around zero at which the marginal likelihood is largest.
        """
        layer = nn.Linear(self.weight.shape[1], len(self.weight), bias=False).double()
        layer.weight.data = self.weight.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's, about a predictive that is not asked for
            posterior = beside("laplace").Laplace(layer, "classification", "all", "kron")
            posterior.fit(DataLoader(TensorDataset(states.double(), classes), batch_size=256))
            posterior.optimize_prior_precision(method="marglik")
        drawn = posterior.sample(samples, generator=torch.Generator().manual_seed(seed))
        return drawn.view(samples, *self.weight.shape)


def _members(ensemble: Ensemble) -> Members:
    assert isinstance(ensemble.backend, StackedBackend), "its states are transformers' to give"
    return ensemble.backend.members


def _asked(ensemble: Ensemble, data: Path) -> Iterator[Asked]:
    for question in read_questions(data):
        yield ensemble.texts.asked(question.prompt, question.choices, question.place)


def _labels_of(rows: Iterable[Asked]) -> Labels:
    """The classes that all rows share."""
    found: set[Ids] = set()
    for row in rows:
        found = found or set(row.answers)
        if set(row.answers) != found:
            raise DoesNotApply("needs the same choices in all rows")
    if len({answer[0] for answer in found}) < len(found):
        raise DoesNotApply("needs choices whose first tokens differ")
    return tuple(sorted(found))


def _labelled(units: Sequence[Unit], labels: Labels) -> tuple[list[Example], Tensor]:
    """The training examples that were answered with a class, and with which."""
    if any(isinstance(unit, Preference) for unit in units):
        raise DoesNotApply("needs labels to learn from, not preferences")
    examples = [example for unit in units for example in unit.completions if example.completion_ids in labels]
    if any(example.weight != 1 for example in examples):
        raise DoesNotApply("laplace-torch knows no weights of training rows ('weight', 'votes')")
    classes = torch.tensor([labels.index(example.completion_ids) for example in examples])
    if (found := len(classes.unique())) < 2:
        raise DoesNotApply(f"needs training rows that were answered with 2 of the choices, found {found}")
    return examples, classes


def _example(prompt: Ids) -> Example:
    """A prompt whose next token is asked for, whatever it is."""
    return Example(prompt, (0,))


@torch.no_grad()
def _last_states(
    members: Members, prompts: Iterable[Ids], activation: Activation, layer: LastLayer
) -> Iterator[tuple[Tensor, Tensor]]:
    """The decoder's states at the end of each prompt, (B, hidden), and what `layer` makes of them, (B, C)."""
    device, rest = members.model.device, iter(prompts)
    while part := list(islice(rest, AT_ONCE)):
        batch = collate(list(map(_example, part)), activation, device)
        states, head = supervised_states(members, batch, Pairs.all_pairs(1, batch.size, device))
        yield states.cpu(), layer.logprobs(states, head.logits(states)).cpu()
