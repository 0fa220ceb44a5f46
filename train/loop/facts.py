"""What a run tells of itself: the facts of an optimizer step, and of a look at the held-out data.

In: numbers. Out: frozen dataclasses, and their JSON form for files. The fields' order is the order of the keys there.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What happened in one optimizer step; most lists have a number for each member.

    `renyi_alpha` is the order, the mean over what was routed. `loss` (with these orders, the floor and the length
    weighting of the step), `mixture_nll`, `member_nll` and `prior_penalty` are nats per example. In all means examples
    count by their weight, as in the loss; in `load` and `routing_perplexity` also by their length weighting. Only
    `active_members`, how many members an example went to, and `skipped_responsibility`, what the others had of it
    together, count every example once: they tell what was computed. `margins` (nats) and `accuracies` are of
    preferences only. `starved` are the members that have starved for long as of this step, and `reseeded_from` the
    ones they were copied from, where they began anew. `weights` are the mixture's in this step, where they are learnt.
    """

    step: int
    epoch: float
    renyi_alpha: float
    loss: float
    mixture_nll: float
    member_nll: float
    load: list[float]
    routing_perplexity: float
    active_members: float
    skipped_responsibility: float
    margins: list[float] | None = None
    accuracies: list[float] | None = None
    prior_penalty: float
    learning_rate: float
    gradient_norms: list[float]
    starved: list[int]
    reseeded_from: list[int] | None = None
    weights: list[float] | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class HeldOutCompletions:
    """How members explain held-out completions: means over examples, nats; lists have a number for each member.

    Examples count by their weight in every mean, as in the loss; `examples` and `tokens` are plain counts.

    `mixture_nll` compares ensembles of any alpha and size: it is that of the mixture that is served. `renyi_loss` does
    not, it always falls with alpha. Responsibilities (`load`, `routing_perplexity`, `specialisation`, `soft_source_mi`)
    are those at alpha = 1, the Bayes posterior over members given the completion. `path_information` is of the
    completions as given. `soft_source_mi` needs sources.
    """

    examples: int
    tokens: int
    mixture_nll: float
    prefix_posterior_nll: float
    fixed_weights_nll: float
    member_nll: float
    member_nlls: list[float]
    base_nll: float
    renyi_loss: float
    load: list[float]
    routing_perplexity: float
    specialisation: float
    mutual_information: float
    path_information: float
    soft_source_mi: float | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOutPreferences:
    """How members explain held-out preferences: means over pairs of answers, nats; accuracies are shares.

    Pairs count by their weight, as in the loss; `preferences` is a plain count.

    A mixture's probability of a preference is the weighted mean of its members'. Labels are taken as they are, without
    smoothing; responsibilities are those at alpha = 1.
    """

    preferences: int
    mixture_nll: float
    mixture_accuracy: float
    member_nll: float
    renyi_loss: float
    margins: list[float]
    accuracies: list[float]
    load: list[float]
    routing_perplexity: float


HeldOut = HeldOutCompletions | HeldOutPreferences


def as_json(facts: StepFacts | HeldOut) -> dict[str, Any]:
    """The facts as `training.jsonl` and `ensemble.json` have them: by name, without those that do not apply."""
    return {name: value for name, value in asdict(facts).items() if value is not None}
