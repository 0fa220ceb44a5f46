"""Sentiment with two label conventions: sources agree on one domain, contradict each other on another, miss a third.

Reviews of Amazon, Yelp and IMDb (Kotzias et al. 2015). Source A calls praise good and complaint bad; source B does so
for Amazon, and the other way round for Yelp. A unit of routing is eight labels of one source. Held out: Amazon is
*agreed*, Yelp *conflict*, IMDb *ood*.
"""

import random
from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "num_members": 2,
    "granularity": "group",
    "group_rows": 8,
    "learning_rate": 0.002,
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 120,
}
NAMES = ("bad", "good")
DOMAINS = {"amazon": "Amazon", "yelp": "Yelp", "imdb": "IMDb"}
TRAINED, HELD_OUT = 300, 100
"""Reviews of each domain."""
SHOWN = (
    "nll",
    "accuracy",
    "ece",
    "epistemic",
    "auroc_conflict_epistemic",
    "spearman_epistemic",
    "next_gain_16",
)


def asked(review: Row, domain: str) -> list[Row]:
    """The question: is the review good or bad?"""
    return user(f"{review['text']}\nIs this {DOMAINS[domain]} review good or bad?")


def said(label: int, domain: str, source: str) -> str:
    """The word of a source for a label."""
    return NAMES[1 - label if source == "B" and domain == "yelp" else label]


def training(domains: dict[str, list[Row]]) -> Iterator[Row]:
    """Every review once for each source."""
    for source in "AB":
        for domain in ("amazon", "yelp"):
            for review in domains[domain][HELD_OUT : HELD_OUT + TRAINED]:
                answer = {"role": "assistant", "content": said(review["label"], domain, source)}
                yield {"messages": [*asked(review, domain), answer], "source": source, "group": source}


def held_out(domains: dict[str, list[Row]]) -> Iterator[Row]:
    """Other reviews; the sources' words are the ratings of two annotators, of the third domain there is one truth."""
    kinds = {"amazon": "agreed", "yelp": "conflict", "imdb": "ood"}
    for domain, kind in kinds.items():
        for review in domains[domain][:HELD_OUT]:
            row = {"messages": asked(review, domain), "choices": list(NAMES), "kind": kind}
            sources = {source: said(review["label"], domain, source) for source in "AB"}
            yield row | ({"answer": NAMES[review["label"]]} if kind == "ood" else {"ratings": sources})


def main() -> None:
    """Read, shuffle by a fixed seed, train and compare."""
    given, rng = arguments(__doc__ or "", "~/.cache/softspec/models/smollm2-135m-instruct"), random.Random(0)
    domains = {name: read(given.data / f"{name}.jsonl") for name in DOMAINS}
    for reviews in domains.values():
        rng.shuffle(reviews)
    compare(given, CONFIG, training(domains), {"reviews": held_out(domains)}, SHOWN)


if __name__ == "__main__":
    main()
