"""Multiple choice: trained on OpenBookQA, judged on it and, as a shift, on ARC.

Answers are scored by their text. Do gains concentrate on questions that the base got wrong, as the paper says?
"""

from collections.abc import Iterator

from study import Row, arguments, compare, read, user

CONFIG = {
    "learning_rate": 0.0005,
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": 120,
}
HELD_OUT = {"openbookqa": 200, "arc_easy": 100, "arc_challenge": 100}
"""Test questions of each set."""


def training(rows: list[Row]) -> Iterator[Row]:
    """The question and the text of its right answer."""
    for row in rows:
        answer = {"role": "assistant", "content": row["choices"][row["answer"]]}
        yield {"messages": [*user(row["question"]), answer]}


def held_out(name: str, rows: list[Row]) -> Iterator[Row]:
    """Questions with their choices."""
    for row in rows[: HELD_OUT[name]]:
        shifted = {} if name == "openbookqa" else {"kind": "ood"}
        yield {
            "messages": user(row["question"]),
            "choices": row["choices"],
            "answer": row["answer"],
            "source": name,
            **shifted,
        }


def main() -> None:
    """Read, train and compare."""
    given = arguments(__doc__ or "", "~/.cache/softspec/models/qwen2.5-coder-0.5b-instruct")
    train = read(given.data / "openbookqa_train.jsonl")
    tests = [row for name in HELD_OUT for row in held_out(name, read(given.data / f"{name}_test.jsonl"))]
    compare(given, CONFIG, training(train), {"questions": tests})


if __name__ == "__main__":
    main()
