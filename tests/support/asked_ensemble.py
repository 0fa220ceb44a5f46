"""What tests ask an `Ensemble`, whatever its backend: prompts on both sides of a block's edge, and all it answers.

In: an `Ensemble`. Out: its answers as JSON.
"""

from dataclasses import asdict
from typing import Any

from softspec.ensemble.ensemble import Ensemble
from softspec.ensemble.texts import Prompt


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


ROWS: list[tuple[Prompt, list[str]]] = [
    ("Colour? ", ["yes", "no", "it depends on whom you ask", "yes"]),
    (user("word " * 12), ["a"]),
    (user("word " * 12), ["a", "longer"]),
    ([{"role": "system", "content": "Be brief."}, *user("Why?")], ["b", "c"]),
    ("x", ["ü🦊"]),
    ("x" * 33, ["y", "z" * 40]),
]
PROMPTS = [prompt for prompt, _ in ROWS]
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "It is so.", "name": "so"},
    {
        "type": "choice",
        "instructions": "Which?",
        "choices": [{"value": text} for text in ("no", "no idea", "n", "yes", "ü🦊")],
    },
    {
        "type": "choice",
        "instructions": "True?",
        "choices": [{"value": True}, {"value": False}],
        "input": "It rains.",
    },
    {
        "type": "score",
        "instructions": "How much?",
        "levels": [{"label": "0"}, {"label": "1", "description": "a little"}, {"label": "10"}],
    },
]
INPUT = "A text that is longer than a block."
NORMALISED: dict[str, Any] = {"list_options": False, "length_normalise": True}
DRAWS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 8},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.001, "seed": 5, "n": 2, "max_tokens": 8},
    {"seed": 11, "stop": ["e", "ab", "t"], "max_tokens": 24},
]


def everything(ensemble: Ensemble) -> dict[str, Any]:
    """All that an ensemble can be asked."""
    decisions: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        (QUESTIONS, {}),
        (QUESTIONS[:3], NORMALISED),
    ]
    return {
        "draws": [
            [asdict(answer) for answer in ensemble.generate(PROMPTS, detail="tokens", progress=False, **how)]
            for how in DRAWS
        ],
        "scores": [
            [asdict(answer) for answer in row]
            for row in ensemble.score(PROMPTS, [own for _, own in ROWS], detail="tokens", progress=False)
        ],
        "choices": [asdict(row) for row in ensemble.scored_choices(iter(ROWS), progress=False)],
        "decisions": [
            [asdict(answer) for answer in ensemble.decide(questions, input=INPUT, progress=False, **how)]
            for questions, how in decisions
        ],
    }
