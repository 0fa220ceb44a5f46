"""Small ensembles, many at once: low-rank members of a linear base, where a schedule's effect costs seconds to see.

In: a world and configurations that differ in seed and schedule. Out: what each ensemble became. Learning rates, orders,
reach, responsibilities and AdamW are those of `softspec train`; only the base is not a transformer.

A row asks for the colours of things, as one of several sources sees them; its answer has the colours, and tokens of a
form that is the same in every answer, new to the base in most worlds, and longer or shorter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.renyi import bounded_order, responsibilities, soft_source_mi
from softspec.train.config import TrainConfig
from softspec.train.loop.health import Starvation, patience_of
from softspec.train.loop.optimizer import MembersAdamW
from softspec.train.loop.reseed import NOISE, WORST_SHARE
from softspec.train.loop.schedule import learning_rate, reach_nats, renyi_alpha
from tests.support.tiny_training import config_of_no_files

WIDTH, WORDS, COLOURS, THINGS, RANK, SCALE = 64, 60, 10, 48, 8, 2.0
ROWS, GROUPS, ROWS_OF_A_GROUP, HELD_OUT = 16, 4, 16, 400


@dataclass(frozen=True)
class World:
    """How often each source speaks, and on how many of 48 things sources differ.

    `form` tokens of an answer are always the same, `filler` tokens are drawn; a `familiar` base finds no word unlikely.
    In groups a row has one thing and 16 rows of a source are routed as one; otherwise it has four.
    """

    sources: tuple[float, ...] = (0.5, 0.5)
    contested: int = 24
    form: int = 12
    filler: int = 0
    familiar: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an ensemble became, in nats a row of held-out data; `source_mi` is I(member; source) at alpha = 1.

    `least_load` is the load, in parts of a fair share, of the member that had least in the last tenth of the training.
    `worst_gain` is how much better than the base the worst member is on what it is responsible for.
    """

    mixture_nll: float
    source_mi: float
    least_load: float
    worst_gain: float


class Data:
    """Rows of a world, which the seed decides."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.generator = torch.Generator().manual_seed(seed)
        tokens = world.form + world.filler
        self.shares = torch.tensor(world.sources)
        self.things, self.positions = self._normal(THINGS, WIDTH), self._normal(tokens, WIDTH)
        self.form = torch.randint(COLOURS, WORDS, (world.form,), generator=self.generator)
        self.filler = torch.softmax(1.5 * self._normal(WORDS), 0)
        self.base = self._normal(WORDS, WIDTH) * (0.3 if world.familiar else 3) / math.sqrt(WIDTH)
        colours = [
            torch.randperm(COLOURS, generator=self.generator)[: len(world.sources)] for _ in range(THINGS)
        ]
        self.colours = torch.stack(colours)
        self.colours[world.contested :] = self.colours[world.contested :, :1]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def rows(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (count, T, WIDTH), tokens (count, T) and sources (count,) of new rows; 3 % of colours are wrong."""
        world, generator = self.world, self.generator
        each = ROWS_OF_A_GROUP if world.grouped else 1
        drawn = torch.multinomial(self.shares, count // each, True, generator=generator)
        sources = drawn.repeat_interleave(each)
        asked = torch.rand(count, THINGS, generator=generator).argsort(1)[:, : 1 if world.grouped else 4]
        said = self.colours[asked, sources[:, None]]
        wrong = torch.rand(said.shape, generator=generator) < 0.03
        said = said.where(~wrong, torch.randint(COLOURS, said.shape, generator=generator))
        tokens = [said, self.form.expand(count, -1)]
        if world.filler:
            drawn = torch.multinomial(self.filler, count * world.filler, True, generator=generator)
            tokens.append(drawn.view(count, world.filler))
        features = torch.cat([self.things[asked], self.positions.expand(count, -1, -1)], 1)
        return features, torch.cat(tokens, 1), sources


def loglik(bases: Tensor, a: Tensor, b: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
    """Log-likelihoods of rows, (Q, K, N), under the members of Q ensembles, each with rows of its own."""
    inner = torch.einsum("qntd,qkrd->qkntr", features, a)
    logits = torch.einsum("qntd,qvd->qntv", features, bases)[:, None]
    logits = logits + SCALE * torch.einsum("qkntr,qkvr->qkntv", inner, b)
    chosen = tokens[:, None, :, :, None].expand(-1, a.shape[1], -1, -1, -1)
    return torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1).sum(-1)


def train_linear(world: World, configs: Sequence[TrainConfig]) -> list[Outcome]:
    """Train an ensemble for each configuration; they differ only in seed, alpha, schedule, floor and reseeding."""
    first, count = configs[0], len(configs)
    members, steps = first.num_members, first.max_steps or 0
    data = [Data(world, config.seed) for config in configs]
    bases = torch.stack([each.base for each in data])
    bound = 1 / math.sqrt(WIDTH)
    a = torch.stack([bound * (2 * torch.rand(members, RANK, WIDTH, generator=d.generator) - 1) for d in data])
    flat = [
        torch.nn.Parameter(a.flatten(0, 1)),
        torch.nn.Parameter(torch.zeros(count * members, WORDS, RANK)),
    ]
    optimizer = MembersAdamW(flat, first.learning_rate, 0.0)
    starvations = [Starvation(members, patience_of(steps)) for _ in configs]
    size = GROUPS * ROWS_OF_A_GROUP if world.grouped else ROWS
    loads: list[Tensor] = []
    for step in range(steps):
        features, tokens, _ = _stacked(data, size)
        a, b = (weight.unflatten(0, (count, members)) for weight in flat)
        of_rows = loglik(bases, a, b, features, tokens)
        bundles = _bundles(world, of_rows.detach())
        shares = _shares(configs, bundles, step, steps)
        loads.append(shares.mean(2))
        counted = shares.repeat_interleave(of_rows.shape[2] // bundles.shape[2], 2)
        counted = counted * (counted >= first.skip_responsibility)
        optimizer.zero_grad()
        (-members / size * (counted * of_rows).sum()).backward()
        _clip(flat)
        optimizer.step(learning_rate(first, step, steps))
        for number, (config, starvation) in enumerate(zip(configs, starvations, strict=True)):
            for starved in starvation.begins(shares[number].mean(1).tolist()):
                if config.reseeds_starved:
                    start = number * members
                    _reseed(flat, optimizer, bundles[number], shares[number], start, starved, step)
    least = members * torch.stack(loads[-math.ceil(steps / 10) :]).mean(0).amin(1)
    trained = [weight.detach().unflatten(0, (count, members)) for weight in flat]
    return _outcomes(world, data, bases, trained, least)


def _stacked(data: Sequence[Data], count: int) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*(each.rows(count) for each in data), strict=True)]


def _bundles(world: World, of_rows: Tensor) -> Tensor:
    """Log-likelihoods of what is routed as one, (Q, K, G), float64."""
    return of_rows.double().unflatten(2, (-1, ROWS_OF_A_GROUP)).sum(3) if world.grouped else of_rows.double()


def _shares(configs: Sequence[TrainConfig], bundles: Tensor, step: int, steps: int) -> Tensor:
    """Responsibilities (Q, K, G) under each configuration's schedule."""
    count, members, number = bundles.shape
    log_weights = uniform_log_weights(members)
    orders = torch.tensor([max(1e-6, renyi_alpha(config, step, steps)) for config in configs])
    reach = torch.tensor([reach_nats(config, step, steps) for config in configs], dtype=torch.float64)
    floor = torch.tensor([config.responsibility_floor for config in configs])[:, None, None]
    table = bundles.transpose(0, 1).flatten(1)
    spread = [each.double().repeat_interleave(number) for each in (orders, reach)]
    shares = responsibilities(table, log_weights, bounded_order(table, log_weights, *spread))
    return (1 - floor) * shares.unflatten(1, (count, number)).transpose(0, 1) + floor / members


def _clip(weights: Sequence[torch.nn.Parameter]) -> None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    for gradient in gradients:
        gradient *= (1 / norms.clamp_min(1e-30)).clamp_max(1)[:, None, None]


def _reseed(
    weights: Sequence[torch.nn.Parameter],
    optimizer: MembersAdamW,
    bundles: Tensor,
    shares: Tensor,
    offset: int,
    starved: int,
    seed: int,
) -> None:
    """As `softspec.train.loop.reseed`, for the members of one ensemble, which begin at `offset`."""
    explained = bundles.logsumexp(0)
    worst = (-explained).topk(max(1, int(WORST_SHARE * len(explained)))).indices
    donor, target = offset + int(shares[:, worst].sum(1).argmax()), offset + starved
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            source = weight[donor].clone()
            noise = torch.randn(source.shape, generator=generator)
            weight[target] = source + NOISE * source.square().mean().sqrt() * noise
    optimizer.copy_moments(donor, target)


@torch.no_grad()
def _outcomes(
    world: World, data: Sequence[Data], bases: Tensor, weights: Sequence[Tensor], least_loads: Tensor
) -> list[Outcome]:
    a, b = weights
    features, tokens, sources = _stacked(data, HELD_OUT // ROWS_OF_A_GROUP * ROWS_OF_A_GROUP)
    tables = _bundles(world, loglik(bases, a, b, features, tokens))
    untrained = _bundles(world, loglik(bases, a, 0 * b, features, tokens))[:, 0]
    each = ROWS_OF_A_GROUP if world.grouped else 1
    log_weights = uniform_log_weights(a.shape[1])
    outcomes = []
    for table, base, source, least in zip(tables, untrained, sources, least_loads, strict=True):
        shares = responsibilities(table, log_weights, 1.0)
        gains = (shares * (table - base)).sum(1) / shares.sum(1).clamp_min(1e-9)
        outcomes.append(
            Outcome(
                mixture_nll=-(log_weights[:, None] + table).logsumexp(0).mean().item() / each,
                source_mi=soft_source_mi(shares, source[::each]).item(),
                least_load=least.item(),
                worst_gain=gains.min().item() / each,
            )
        )
    return outcomes


def linear_config(seed: int, **settings: object) -> TrainConfig:
    """The configuration of a run of 300 steps."""
    return config_of_no_files(**{"seed": seed, "max_steps": 300, **settings})
