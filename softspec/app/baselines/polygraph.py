"""The scores of one model's answers that lm-polygraph has, by its own code: none is written here.

In: an `Ensemble` of one and rows with reference answers. Out: for each row its greedy answer's scores, higher is less
certain. Semantic entropy and its kin need a model of entailment, which is not here.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from softspec.app.baselines.beside import beside
from softspec.ensemble.ensemble import Ensemble
from softspec.evaluation.rows import Question

ESTIMATORS = {
    "MaximumSequenceProbability": "max_probability",
    "Perplexity": "perplexity",
    "MeanTokenEntropy": "token_entropy",
    "MonteCarloSequenceEntropy": "monte_carlo_sequence_entropy",
    "MonteCarloNormalizedSequenceEntropy": "monte_carlo_normalized_sequence_entropy",
    "LexicalSimilarity": "lexical_similarity",
}
"""Class in lm_polygraph.estimators -> its module; the last three judge drawn answers, the others the greedy one."""
AT_ONCE = 16
"""Rows that are answered together."""
Scores = dict[str, float]


def polygraph_scores(
    ensemble: Ensemble, questions: Iterable[Question], samples: int, max_tokens: int, seed: int
) -> Iterator[Scores]:
    """What each estimator says of each row, in their order.

    Args:
        samples: answers that are drawn to a row beside the greedy one, two or more.
    Raises:
        ConfigError: lm-polygraph is not installed.
    """
    estimators = estimators_by_name()
    rows = iter(questions)
    while chunk := list(islice(rows, AT_ONCE)):
        statistics = _statistics(ensemble, chunk, samples, max_tokens, seed)
        found = {name: estimator(statistics) for name, estimator in estimators.items()}
        for place in range(len(chunk)):
            yield {name: float(values[place]) for name, values in found.items()}


def estimators_by_name() -> dict[str, Any]:
    """The estimators, each a function of the library's `stats`.

    Raises:
        ConfigError: lm-polygraph is not installed.
    """
    return {
        name: getattr(beside(f"lm_polygraph.estimators.{module}"), name)()
        for name, module in ESTIMATORS.items()
    }


def _statistics(
    ensemble: Ensemble, chunk: list[Question], samples: int, max_tokens: int, seed: int
) -> dict[str, Any]:
    """Answers as lm-polygraph describes them: a list for each row, of tokens or of drawn answers."""
    prompts = [question.prompt for question in chunk]
    greedy = ensemble.generate(prompts, max_tokens=max_tokens, temperature=0, detail="tokens", progress=False)
    drawn = ensemble.generate(prompts, max_tokens=max_tokens, seed=seed, n=samples, progress=False)
    of_rows = [drawn[start : start + samples] for start in range(0, len(drawn), samples)]
    return {
        "greedy_log_likelihoods": [[token.log_prob for token in answer.tokens] for answer in greedy],
        "entropy": [[token.total_entropy for token in answer.tokens] for answer in greedy],
        "sample_log_probs": [[answer.uncertainty.log_prob for answer in row] for row in of_rows],
        "sample_tokens": [[answer.token_ids for answer in row] for row in of_rows],
        "sample_texts": [[answer.text for answer in row] for row in of_rows],
    }
