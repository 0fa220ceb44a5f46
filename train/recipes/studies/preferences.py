"""Pairwise preferences of three annotators (PandaLM's test set), by DPO: routed by annotator, or one by one.

Contested pairs are those on which the three do not agree. Held out: two fifths of the prompts, as choices between the
two answers, with the annotators' votes as ratings. Do members differ where annotators do?
"""

import hashlib
from argparse import Namespace
from collections.abc import Iterator

from study import Row, arguments, compare, read, scores, user
from study_table import over_seeds

CONFIG = {
    "objective": "dpo",
    "num_members": 3,
    "activation": {"kind": "block", "block_size": 16},
    "learning_rate": 0.002,
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 3,
    "max_steps": 16,
}
GROUPED = {"granularity": "group", "group_rows": 8}
LONGEST_PROMPT, LONGEST_ANSWER, LONGEST_HELD_OUT = 300, 90, 240
"""Characters: longer prompts and answers are left out; a held-out answer costs no training and may be longer."""
SHOWN = ("nll", "accuracy", "epistemic", "diversity", "auroc_conflict_epistemic", "next_gain_16")


def is_held_out(row: Row) -> bool:
    """Whether the prompt is on the held-out side, by a hash."""
    return int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 5 < 2


def is_usable(row: Row) -> bool:
    """Whether a pair is two different texts (a few are no text), and short enough for its side."""
    answers = row["a"], row["b"]
    if not all(isinstance(answer, str) and answer for answer in answers) or answers[0] == answers[1]:
        return False
    longest = LONGEST_HELD_OUT if is_held_out(row) else LONGEST_ANSWER
    return len(row["prompt"]) <= LONGEST_PROMPT and max(map(len, answers)) <= longest


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
        if ratings:
            yield {
                "messages": user(row["prompt"]),
                "choices": [row["a"], row["b"]],
                "ratings": ratings,
                "kind": "agreed" if len(set(row["votes"])) == 1 else "conflict",
            }


def sides(given: Namespace) -> None:
    """Print how often members side with the annotators, by the reward of DPO: how much likelier than under the base."""
    print(
        "| members of | pairs | with the annotators | spread of the members | members differ |\n|---|---|---|---|---|"
    )
    trained = [name for name in ("single", "independent") if name in given.only or not given.only]
    for model in (*trained, "ensemble"):
        for kind in ("agreed", "conflict"):
            found = [_rates(given, seed, model, kind) for seed in given.seeds]
            cells = [over_seeds(column) for column in zip(*found, strict=True)]
            print(f"| {model} | {kind} | {' | '.join(cells)} |")


def _rates(given: Namespace, seed: int, model: str, kind: str) -> tuple[float, float, float]:
    """The members' rates of siding with annotators on pairs of a kind: their mean, and the largest minus the smallest.

    Last, the share of the pairs on which not all members choose alike.
    """
    rates, differing = [], []
    base_rows, rows = (scores(given, seed, "pairs", name) for name in ("base", model))
    for base, row in zip(base_rows, rows, strict=True):
        if row["kind"] != kind:
            continue
        (before,) = base["member_log_probs"]
        rewards = [
            [now - then for now, then in zip(each, before, strict=True)] for each in row["member_log_probs"]
        ]
        picked = [int(second > first) for first, second in rewards]
        votes = [choice for ratings in row["ratings"].values() for choice in ratings]
        rates.append([votes.count(choice) / len(votes) for choice in picked])
        differing.append(float(len(set(picked)) > 1))
    of_members = [sum(column) / len(column) for column in zip(*rates, strict=True)]
    mean = sum(of_members) / len(of_members)
    return mean, max(of_members) - min(of_members), sum(differing) / len(differing)


def main() -> None:
    """Read, split by prompt, train and compare."""
    given = arguments(
        __doc__ or "", "~/.cache/softspec/models/smollm2-135m-instruct", {"--ungrouped": "route pair by pair"}
    )
    rows = list(filter(is_usable, read(given.data / "pref.jsonl")))
    train, test = ([row for row in rows if is_held_out(row) is side] for side in (False, True))
    config = CONFIG if given.ungrouped else CONFIG | GROUPED
    compare(given, config, training(train), {"pairs": held_out(test)}, SHOWN)
    sides(given)


if __name__ == "__main__":
    main()
