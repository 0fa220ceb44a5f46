"""Sentiment with two label conventions: sources agree on one domain, contradict each other on another, miss a third.

Reviews of Amazon, Yelp and IMDb (Kotzias et al. 2015). Source A calls praise good and complaint bad; source B does so
for Amazon, and the other way round for Yelp. An example is four reviews of one domain, labelled by one source, which is
never named. Held out: single reviews; Amazon is *agreed*, Yelp *conflict*, IMDb *ood*.
"""

import random
from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "learning_rate": 0.001,
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": 100,
}
NAMES = ("bad", "good")
REVIEWS = 4
"""Reviews of an example: what shares a source."""
HELD_OUT = 100
"""Reviews of each domain that are held out."""


def asked(texts: list[str]) -> list[Row]:
    """The question: is each review good or bad?"""
    return user("Good or bad?\n" + "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1)))


def said(label: int, domain: str, source: str) -> str:
    """The word of a source for a label."""
    return NAMES[1 - label if source == "B" and domain == "yelp" else label]


def training(domains: dict[str, list[Row]], rng: random.Random) -> Iterator[Row]:
    """Every review once for each source, four at a time."""
    for source in "AB":
        for domain in ("amazon", "yelp"):
            reviews = rng.sample(domains[domain][HELD_OUT:], len(domains[domain]) - HELD_OUT)
            for start in range(0, len(reviews) - REVIEWS + 1, REVIEWS):
                part = reviews[start : start + REVIEWS]
                answer = ", ".join(said(review["label"], domain, source) for review in part)
                turns = [
                    *asked([review["text"] for review in part]),
                    {"role": "assistant", "content": answer},
                ]
                yield {"messages": turns, "source": source}


def held_out(domains: dict[str, list[Row]]) -> Iterator[Row]:
    """Single reviews; the sources' words are the ratings of two annotators, of the third domain there is one truth."""
    kinds = {"amazon": "agreed", "yelp": "conflict", "imdb": "ood"}
    for domain, kind in kinds.items():
        for review in domains[domain][:HELD_OUT]:
            row = {"messages": asked([review["text"]]), "choices": list(NAMES), "kind": kind}
            sources = {source: said(review["label"], domain, source) for source in "AB"}
            yield row | ({"answer": NAMES[review["label"]]} if kind == "ood" else {"ratings": sources})


def main() -> None:
    """Read, shuffle by a fixed seed, train and compare."""
    given, rng = arguments(__doc__ or "", "~/.cache/softspec/models/smollm2-135m-instruct"), random.Random(0)
    domains = {name: read(given.data / f"{name}.jsonl") for name in ("amazon", "yelp", "imdb")}
    for reviews in domains.values():
        rng.shuffle(reviews)
    rows = sorted(training(domains, rng), key=lambda row: rng.random())
    compare(given, CONFIG, rows, {"reviews": held_out(domains)})


if __name__ == "__main__":
    main()
