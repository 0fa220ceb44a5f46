"""Natural language inference judged by a hundred people: does uncertainty follow their disagreement?

ChaosNLI, SNLI part (Nie, Zhou and Bansal 2020). Trained on the five labels that the items came with, as soft labels;
judged against the votes of a hundred others. Items of one picture stay on one side.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "num_members": 2,
    "layers_to_transform": [20, 21, 22, 23],
    "activation": {"kind": "block", "block_size": 16},
    "learning_rate": 0.001,
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 40,
}
SHOWN = (
    "nll",
    "accuracy",
    "ece",
    "kl_to_votes",
    "spearman_total",
    "spearman_aleatoric",
    "spearman_epistemic",
)
WORDS = {"e": "yes", "n": "maybe", "c": "no"}
HELD_OUT_SHARE = 0.27
"""Of the pictures."""
TRAINED, HELD_OUT = 480, 200
"""Items of each side."""


def asked(row: Row) -> list[Row]:
    """The question: does the hypothesis follow?"""
    return user(f"{row['premise']}\nDoes it follow that: {row['hypothesis']}\nAnswer yes, maybe or no.")


def is_held_out(row: Row) -> bool:
    """Whether the picture of an item is on the held-out side, by a hash."""
    picture = row["id"].partition("#")[0]
    return int(hashlib.sha256(picture.encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT_SHARE


def training(rows: list[Row]) -> Iterator[Row]:
    """The five old labels of each item, as votes."""
    for row in rows:
        votes = Counter(WORDS[label] for label in row["old_labels"] if label in WORDS)
        yield {"prompt": asked(row), "votes": dict(votes)}


def held_out(rows: list[Row]) -> Iterator[Row]:
    """The votes of a hundred people; an item is contested where fewer than 60 agree."""
    for row in rows:
        votes = [row["votes"][label] for label in WORDS]
        kind = "conflict" if max(votes) < 60 else "agreed" if max(votes) >= 80 else "between"
        yield {"messages": asked(row), "choices": list(WORDS.values()), "votes": votes, "kind": kind}


def main() -> None:
    """Read, split by picture, train and compare."""
    given = arguments(__doc__ or "", "~/.cache/softspec/models/qwen2.5-coder-0.5b-instruct")
    rows = read(given.data / "snli.jsonl")
    train, test = ([row for row in rows if is_held_out(row) is side] for side in (False, True))
    compare(given, CONFIG, training(train[:TRAINED]), {"items": held_out(test[:HELD_OUT])}, SHOWN)


if __name__ == "__main__":
    main()
