"""Copies of one member: three, at a point and on both sides of it along a direction, or two on both sides of it.

In: `Members` that a run has moved. Out: the copies' weights as vectors, gradients of units there, and what units say
along a direction. Changes nothing of the run: the members are back in their places when the replicas are gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.stability import Line, spreading_force
from softspec.train.data.units import Unit, in_batches
from softspec.train.loop.passes import add_gradients
from softspec.train.loop.state import Training
from softspec.train.members.likelihood import completion_logprobs_in_parts, pair_loglik
from softspec.train.members.members import Members
from softspec.train.members.pairs import Pairs
from softspec.train.objective.completions import CompletionBatch

CHANGE = 0.1
"""Nats by which a step along a direction changes a unit, the root of the mean square: less, and float32 shows."""


@dataclass(frozen=True)
class Replicas:
    """Members that begin at one point, the weights of one member of a run."""

    training: Training
    members: Members
    generator: torch.Generator

    point: Tensor
    """Where they begin, (P,)."""

    @torch.no_grad()
    def stand_at(self, places: Sequence[Tensor]) -> None:
        """Put the replicas at these points (P,)."""
        weights = self.members.parameters()
        for number, place in enumerate(places):
            parts = place.split([weight[0].numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight[number] = part.view_as(weight[0])

    def force(self, units: Sequence[Unit], renyi_alpha: float, direction: Tensor, step: float) -> Tensor:
        """(V - alpha J) v of these units, (P,), by two replicas and the gradients of a training step."""
        pair = replace(
            self.training,
            config=self.training.config.model_copy(update={"num_members": 2}),
            members=self.members,
            log_weights=uniform_log_weights(2).to(self.point.device),
            active_members=2.0,
        )

        def gradient(places: Tensor) -> Tensor:
            self.stand_at(list(places))
            for weight in self.members.parameters():
                weight.grad = None
            add_gradients(pair, units, renyi_alpha)  # of the mean loss times the number of members
            gradients = [weight.grad for weight in self.members.parameters()]
            assert all(each is not None for each in gradients)
            return torch.cat([each.flatten(1) for each in gradients if each is not None], 1) / 2

        return spreading_force(gradient, self.point, direction, step)

    def gradients(self, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
        """Of the log-likelihood of what these units say, and of what the model itself would have said; (P,) each.

        What is routed together is one: the units' log-likelihoods are added up as they weigh.
        """
        batch = self.training.objective.batch(self.members, units)
        first = torch.zeros(len(units), dtype=torch.long, device=self.members.model.device)
        pairs = Pairs(torch.arange(len(units), device=first.device), first, len(units))
        weights = torch.tensor([unit.weight for unit in units], dtype=torch.float64, device=first.device)
        if not isinstance(batch, CompletionBatch):
            each = batch.loglik(pairs)
            chance = each.detach().exp()
            kept = torch.rand(len(units), generator=self.generator).to(chance) < chance
            # The other answer's log-probability is log(1 - p).
            own = torch.where(kept, 1.0, -chance / (1 - chance).clamp_min(1e-12))
            return self._gradient((weights * each).sum(), keep=True), self._gradient(
                (weights * own * each).sum()
            )
        sampled = replace(batch.padded, targets=self._own_targets(batch))
        of_labels = pair_loglik(self.members, batch.padded, pairs)
        of_own = pair_loglik(self.members, sampled, pairs)
        return self._gradient((weights * of_labels).sum()), self._gradient((weights * of_own).sum())

    @torch.no_grad()
    def _own_targets(self, batch: CompletionBatch) -> Tensor:
        """The batch's targets, where the first replica has drawn those that count, each behind the true ones."""
        drawn = [
            torch.multinomial(part[0].exp().cpu(), 1, generator=self.generator)[:, 0]
            for part in completion_logprobs_in_parts(self.members, batch.padded)
        ]
        targets = batch.padded.targets.clone()
        targets[batch.padded.supervised] = torch.cat(drawn).to(targets)
        return targets

    def _gradient(self, total: Tensor, keep: bool = False) -> Tensor:
        weights = self.members.parameters()
        gradients = torch.autograd.grad(total, weights, retain_graph=keep, allow_unused=True)
        parts = [
            torch.zeros_like(weight[0]).flatten() if gradient is None else gradient[0].flatten()
            for gradient, weight in zip(gradients, weights, strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def along(self, direction: Tensor, units: Sequence[Unit], step: float) -> Line:
        """What each unit says along a direction, with the variance of the score under the model's own answers."""
        self.stand_at([self.point, self.point + step * direction, self.point - step * direction])
        size = self.training.config.micro_batch_size
        lines = [self._along(part, step) for part in in_batches(units, size)]
        return Line(
            torch.cat([line.scores for line in lines]), torch.cat([line.curvatures for line in lines])
        )

    def _along(self, units: Sequence[Unit], step: float) -> Line:
        batch = self.training.objective.batch(self.members, units)
        if not isinstance(batch, CompletionBatch):
            centre, plus, minus = batch.table().loglik.cpu()
            scores = (plus - minus) / (2 * step)
            chance = centre.exp().clamp_max(1 - 1e-12)
            return Line(scores, scores.square() * chance / (1 - chance))
        owners = batch.padded.supervised.nonzero()[:, 0].cpu()
        targets = batch.padded.targets[batch.padded.supervised]
        columns = torch.zeros(2, len(owners), dtype=torch.float64)
        done = 0
        for part in completion_logprobs_in_parts(self.members, batch.padded):
            here = slice(done, done + part.shape[1])
            done = here.stop
            slopes = (part[1].double() - part[2].double()) / (2 * step)
            chances = part[0].double().exp()
            mean = (chances * slopes).sum(-1)
            columns[0, here] = slopes.gather(-1, targets[here, None])[:, 0].cpu()
            columns[1, here] = ((chances * slopes.square()).sum(-1) - mean.square()).clamp_min(0).cpu()
        if batch.by_token:
            return Line(columns[0], columns[1])
        sums = torch.zeros(2, len(units), dtype=torch.float64).index_add(1, owners, columns)
        return Line(sums[0], sums[1])


@contextmanager
def replicas_of(training: Training, member: int = 0, seed: int = 0, count: int = 3) -> Iterator[Replicas]:
    """Copies of a member, in its place for as long as the context is open."""
    moved = training.members.adapter_state(member)
    with training.members.removed() as base:
        copies = Members(base, training.members.spec, count)
        for number in range(count):
            copies.load_adapter(number, moved)
        point = torch.cat([weight.detach()[0].flatten() for weight in copies.parameters()])
        yield Replicas(training, copies, torch.Generator().manual_seed(seed), point)


def step_for(replicas: Replicas, direction: Tensor, units: Sequence[Unit]) -> float:
    """How far to go along a direction so that these units change by `CHANGE`."""
    first = 1e-2 * replicas.point.norm().item() / max(direction.norm().item(), 1e-30)
    slope = replicas.along(direction, units, first).scores.square().mean().sqrt().item()
    return CHANGE / slope if slope > 0 else first
