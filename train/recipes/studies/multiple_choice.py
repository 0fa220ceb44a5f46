"""Multiple choice: trained on OpenBookQA, judged on it and, as a shift, on ARC.

The options stand in the prompt and the answer is a letter; questions with four options alone. Do gains concentrate on
questions that the base got wrong, as the paper says?
"""

from argparse import Namespace
from collections.abc import Iterator

from study import Row, arguments, compare, read, scores, user
from study_table import over_seeds

CONFIG = {
    "num_members": 2,
    "layers_to_transform": [20, 21, 22, 23],
    "activation": {"kind": "block", "block_size": 16},
    "learning_rate": 0.0005,
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 40,
}
LETTERS = "ABCD"
TRAINED = 480
"""Training questions."""
HELD_OUT = {"openbookqa": 120, "arc_easy": 60, "arc_challenge": 60}
"""Test questions of each set."""
SHOWN = (
    "nll",
    "accuracy",
    "ece",
    "aurc_total",
    "prr_total",
    "epistemic",
    "auroc_ood_epistemic",
    "auroc_ood_total",
)


def asked(row: Row) -> list[Row]:
    """The question with its options."""
    options = (f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=True))
    return user("\n".join([row["question"], *options, "Answer with the letter."]))


def usable(rows: list[Row], most: int) -> list[Row]:
    """The first questions that have as many options as there are letters."""
    return [row for row in rows if len(row["choices"]) == len(LETTERS)][:most]


def training(rows: list[Row]) -> Iterator[Row]:
    """The question and the letter of its right answer."""
    for row in rows:
        answer = {"role": "assistant", "content": LETTERS[row["answer"]]}
        yield {"messages": [*asked(row), answer]}


def held_out(name: str, rows: list[Row]) -> Iterator[Row]:
    """Questions with their choices."""
    for row in usable(rows, HELD_OUT[name]):
        shifted = {} if name == "openbookqa" else {"kind": "ood"}
        yield {
            "messages": asked(row),
            "choices": list(LETTERS),
            "answer": row["answer"],
            "source": name,
            **shifted,
        }


def gains(given: Namespace) -> None:
    """Print how many members, on average, are right where the base is wrong, and still right where it is right."""
    print("| members of | right where the base is wrong | right where the base is right |\n|---|---|---|")
    for model in ("single", "independent", "ensemble"):
        cells = [
            over_seeds([_share_right(given, seed, model, was_right) for seed in given.seeds])
            for was_right in (False, True)
        ]
        print(f"| {model} | {' | '.join(cells)} |")


def _share_right(given: Namespace, seed: int, model: str, was_right: bool) -> float:
    """The mean over members and over the rows that the base gets wrong, or right."""
    found = []
    for base, row in zip(
        scores(given, seed, "questions", "base"), scores(given, seed, "questions", model), strict=True
    ):
        if (_picked(base)[0] == base["answer"]) is was_right:
            picked = _picked(row)
            found.append(sum(choice == row["answer"] for choice in picked) / len(picked))
    return sum(found) / len(found)


def _picked(record: Row) -> list[int]:
    """Each member's likeliest choice."""
    return [values.index(max(values)) for values in record["member_log_probs"]]


def main() -> None:
    """Read, train and compare."""
    given = arguments(__doc__ or "", "~/.cache/softspec/models/qwen2.5-coder-0.5b-instruct")
    train = read(given.data / "openbookqa_train.jsonl")
    tests = [row for name in HELD_OUT for row in held_out(name, read(given.data / f"{name}_test.jsonl"))]
    compare(given, CONFIG, training(usable(train, TRAINED)), {"questions": tests}, SHOWN)
    gains(given)


if __name__ == "__main__":
    main()
