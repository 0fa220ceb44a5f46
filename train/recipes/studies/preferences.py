"""Pairwise preferences of three annotators (PandaLM's test set), by DPO: routed by annotator, and one by one.

Contested pairs are those on which the three do not agree. Held out: a fifth of the prompts, as choices between the two
answers, with the annotators' votes as ratings.
"""

import hashlib
from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "objective": "dpo",
    "granularity": "group",
    "group_rows": 16,
    "learning_rate": 0.0005,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 16,
    "max_steps": 30,
    "max_length": 256,
    "long_rows": "drop",
}
LONGEST = 600
"""Characters of a prompt and its longer answer: longer pairs are left out of both sides."""


def is_held_out(row: Row) -> bool:
    """Whether the prompt is on the held-out side, by a hash."""
    return int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 5 == 0


def is_usable(row: Row) -> bool:
    """Whether a pair is two different texts (a few are no text), and short enough."""
    answers = row["a"], row["b"]
    if not all(isinstance(answer, str) and answer for answer in answers) or answers[0] == answers[1]:
        return False
    return len(row["prompt"]) + max(map(len, answers)) <= LONGEST


def training(rows: list[Row]) -> Iterator[Row]:
    """A pair for each annotator who preferred one of the answers."""
    for row in rows:
        for annotator, vote in enumerate(row["votes"]):
            if vote:
                chosen, rejected = (row["a"], row["b"]) if vote == 1 else (row["b"], row["a"])
                yield {
                    "prompt": user(row["prompt"]),
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "group": f"annotator {annotator}",
                }


def held_out(rows: list[Row]) -> Iterator[Row]:
    """The two answers as choices; contested where the annotators differ."""
    for row in rows:
        ratings = {f"annotator {who}": row["ab"[vote - 1]] for who, vote in enumerate(row["votes"]) if vote}
        kind = "agreed" if len(set(row["votes"])) == 1 else "conflict"
        if ratings:
            yield {
                "messages": user(row["prompt"]),
                "choices": [row["a"], row["b"]],
                "ratings": ratings,
                "kind": kind,
            }


def main() -> None:
    """Read, split by prompt, train and compare."""
    given = arguments(__doc__ or "", "~/.cache/softspec/models/smollm2-135m-instruct")
    rows = list(filter(is_usable, read(given.data / "pref.jsonl")))
    train, test = ([row for row in rows if is_held_out(row) is side] for side in (False, True))
    compare(given, CONFIG, training(train), {"pairs": held_out(test)})


if __name__ == "__main__":
    main()
