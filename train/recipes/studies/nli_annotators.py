"""Natural language inference by four annotators with conventions of their own, routed by annotator.

VariErr NLI as released for Learning With Disagreements 2025: 388 training items, each judged by the same four people,
who may give several labels. A unit of routing is 32 ratings of one annotator. Held out: the 100 items of dev and
test, with the ratings of each; what do some ratings of an annotator tell of the next?
"""

from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "num_members": 2,
    "activation": {"kind": "block", "block_size": 16},
    "granularity": "group",
    "group_rows": 32,
    "learning_rate": 0.002,
    "micro_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "max_steps": 24,
}
SHOWN = (
    "nll",
    "accuracy",
    "kl_to_votes",
    "spearman_total",
    "spearman_epistemic",
    "next_nll_0",
    "next_gain_4",
    "next_gain_16",
)
WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


def asked(row: Row) -> list[Row]:
    """The question: does the statement follow?"""
    text = row["text"]
    return user(f"{text['context']}\nDoes it follow that: {text['statement']}\nAnswer yes, maybe or no.")


def ratings(row: Row) -> dict[str, list[str]]:
    """Annotator -> the labels that they gave."""
    given = {name: labels.split(",") for name, labels in row["annotations"].items()}
    return {
        name: [WORDS[label.strip()] for label in labels if label.strip()] for name, labels in given.items()
    }


def training(rows: list[Row]) -> Iterator[Row]:
    """A row for each item and annotator; several labels are votes."""
    for row in rows:
        for annotator, labels in ratings(row).items():
            if labels:
                votes = dict.fromkeys(labels, 1)
                yield {"prompt": asked(row), "votes": votes, "group": annotator, "source": annotator}


def held_out(rows: list[Row]) -> Iterator[Row]:
    """A row for each item, with the ratings of all annotators."""
    for row in rows:
        yield {"messages": asked(row), "choices": list(WORDS.values()), "ratings": ratings(row)}


def main() -> None:
    """Read, train and compare."""
    given = arguments(__doc__ or "", "~/.cache/softspec/models/smollm2-135m-instruct")
    train, dev, test = (read(given.data / f"{split}.jsonl") for split in ("train", "dev", "test"))
    compare(given, CONFIG, training(train), {"items": held_out(dev + test)}, SHOWN)


if __name__ == "__main__":
    main()
