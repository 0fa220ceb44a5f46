"""What a request for decisions may say: everything of OpenAI's shape is honoured, harmless or refused by name."""

import typing
from typing import Any

import pytest
from openai.types import decision_create_params
from starlette.testclient import TestClient

from tests.server.decisions.test_decisions import CHOICE, PREDICATE, SCORE, TABLE, ask, refused, scorer
from tests.support.fake_decisions import FakeScorer, decisions_app
from tests.support.fake_engine import ENSEMBLE

IMAGE = {"type": "input_image", "image_url": "https://example.org/a.png"}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def test_every_field_of_the_official_client_is_taken() -> None:
    """A new version of it that has more must be looked at."""
    fields = typing.get_type_hints(decision_create_params.DecisionCreateParams)
    harmless: Any = {
        "prompt_cache_key": "a",
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "safety_identifier": "b",
    }

    assert set(fields) == {"input", "model", "questions", *harmless}
    assert ask(scorer(), PREDICATE, **harmless).answers[0].type == "predicate"


@pytest.mark.parametrize("field", ["user", "metadata", "store", "service_tier", "prompt_cache_retention"])
def test_labels_that_change_nothing_may_pass(field: str) -> None:
    assert ask(scorer(), PREDICATE, extra_body={field: "x"}).answers


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_fields_that_ask_for_nothing_may_pass(value: Any) -> None:
    assert ask(scorer(), PREDICATE, extra_body={"tools": value, "stream": value}).answers


@pytest.mark.parametrize(
    ("body", "field", "hint"),
    [
        ({"uncertainity": {}}, "uncertainity", "'uncertainty'"),
        ({"list_option": False}, "list_option", "'list_options'"),
        ({"temperature": 0.5}, "temperature", "leave it out"),
        ({"tools": [{"type": "function"}]}, "tools", "leave it out"),
        ({"stream": True}, "stream", "leave it out"),
        ({"cache_salt": "x"}, "cache_salt", "leave it out"),
        ({"questions": [{**PREDICATE, "criteria": None}]}, "questions.0.criteria", "instructions"),
        ({"questions": [{**PREDICATE, "nmae": "x"}]}, "questions.0.nmae", "'name'"),
        (
            {
                "questions": [
                    PREDICATE,
                    {**CHOICE, "choices": [{"value": "a", "descripton": "b"}, {"value": "c"}]},
                ]
            },
            "questions.1.choices.0.descripton",
            "'description'",
        ),
        (
            {"questions": [{**SCORE, "levels": [{"label": "a"}, {"label": "b", "value": 3}]}]},
            "questions.0.levels.1.value",
            "label",
        ),
        ({"input": [{"role": "user", "content": "a", "nmae": "b"}]}, "input.0.nmae", "expected"),
        (
            {"input": user({"type": "input_text", "text": "a", "txet": "b"})},
            "input.0.content.0.txet",
            "'text'",
        ),
    ],
)
def test_unknown_field_is_refused_at_every_level_with_what_might_be_meant(
    body: Any, field: str, hint: str
) -> None:
    found, message = refused(scorer(), **body)

    assert found == field
    assert hint in message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": user(IMAGE)}, "input.0.content.0"),
        ({"questions": [{**PREDICATE, "instructions": [IMAGE]}]}, "questions.0.instructions.0"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input.0"),
        ({"input": [{"type": "custom_tool_call", "call_id": "1", "name": "f", "input": "x"}]}, "input.0"),
        ({"input": [{"type": "custom_tool_call_output", "call_id": "1", "output": "x"}]}, "input.0"),
        ({"input": [{"role": "assistant", "content": "a", "phase": "commentary"}]}, "input.0.phase"),
    ],
)
def test_input_that_the_members_would_not_see_is_refused_by_name(body: Any, field: str) -> None:
    assert refused(scorer(), **body)[0] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}, "questions.0.choices"),
        (
            {"questions": [{**CHOICE, "choices": [{"value": str(number)} for number in range(256)]}]},
            "questions.0.choices",
        ),
        ({"questions": [{**SCORE, "levels": [{"label": "a"}]}]}, "questions.0.levels"),
        ({"questions": [{**CHOICE, "choices": [{"value": 1}, {"value": 2}]}]}, "questions.0.choices.0.value"),
        ({"questions": [{"type": "noul", "instructions": "a"}]}, "questions.0"),
        ({"questions": [{"type": "predicate"}]}, "questions.0.instructions"),
        ({"questions": "x"}, "questions"),
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
        ({"priority": 2**63}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"list_options": "no"}, "list_options"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_what_has_the_wrong_shape_is_refused_in_one_line(body: Any, field: str) -> None:
    assert refused(scorer(), **body)[0] == field


@pytest.mark.parametrize(
    "body",
    [
        '{"input": "\\ud800", "questions": [{"type": "predicate", "instructions": "a"}]}',
        '{"input": [{"role": "user", "content": [{"type": "input_json", "data": {"a": NaN}}]}],'
        ' "questions": [{"type": "predicate", "instructions": "a"}]}',
        '{"input": "a", "\\ud800": 1, "questions": [{"type": "predicate", "instructions": "a"}]}',
        '{"input": "a", "questions": [{"type": "predicate", "instructions": "a", "\\ud800": 1}]}',
        '{"input": "a", "questions": [{"type": "\\ud800", "instructions": "a"}]}',
        '"\\ud800"',
        "[]",
        "3",
    ],
)
def test_what_is_no_text_is_no_fault_of_the_server(body: str) -> None:
    app = decisions_app(scorer())

    answer = TestClient(app, raise_server_exceptions=False).post(
        "/v1/decisions", content=body, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


# Options


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "?", "choices": [{"value": value} for value in values]}


def options_for(*values: Any) -> list[str]:
    """What the engine is asked to score; the end of a turn is shown as a bar."""
    engine = FakeScorer(dict.fromkeys(map(str, values), (0.1, 0.1)))
    ask(engine, choice(*values))
    return [
        "".join(chr(number) if number else "|" for number in ids) for ids in engine.asked[0]["options"][0]
    ]


def test_options_are_their_own_text() -> None:
    assert options_for("red", "green", "  blue") == ["red", "green", "  blue"]


def test_option_that_begins_another_counts_with_the_end_of_the_turn() -> None:
    assert options_for("a", "abc", "ab", "b") == ["a|", "abc", "ab|", "b"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        (("a", "b", "a"), "questions.0.choices"),
        (("true", True), "questions.0.choices"),
        (("a", ""), "questions.0.choices.1"),
        (("a", " \n"), "questions.0.choices.1"),
    ],
)
def test_options_that_are_not_to_be_told_apart_are_refused(values: Any, place: str) -> None:
    assert refused(scorer(), choice(*values))[0].startswith(place)


def test_levels_are_told_apart_too() -> None:
    levels = {**SCORE, "levels": [{"label": "a"}, {"label": "a"}]}

    assert refused(scorer(), levels)[0].startswith("questions.0.levels.")


def test_question_that_is_too_long_is_refused_before_any_is_asked() -> None:
    engine = scorer()
    long = {**PREDICATE, "instructions": "a" * 200}

    field, message = refused(engine, PREDICATE, long, app=decisions_app(engine, max_model_len=150))

    assert field == "questions.1"
    assert "at most 150" in message


# Prompts


def chat_for(question: Any, content: Any = "The input.", **extra: Any) -> list[tuple[str, str]]:
    """The conversation in which a question is asked."""
    engine = FakeScorer(dict(TABLE))
    ask(engine, question, input=content, extra_body=extra)
    return [(message["role"], message["content"]) for message in engine.chats[0]]


def test_predicate_is_asked_after_its_input() -> None:
    assert chat_for(PREDICATE) == [("user", "The input.\n\nIt is allowed.\n\nAnswer with yes or no only.")]


def test_choice_lists_its_options_with_what_they_mean() -> None:
    question = {
        **CHOICE,
        "choices": [{"value": "red", "description": "stop"}, {"value": "green"}, {"value": True}],
    }

    assert chat_for(question) == [
        (
            "user",
            "The input.\n\nWhich colour?\n\nOptions:\n- red: stop\n- green\n- true\n\nAnswer with one option only.",
        )
    ]


def test_score_lists_its_levels_from_the_lowest() -> None:
    assert chat_for(SCORE) == [
        (
            "user",
            "The input.\n\nHow urgent?\n\nLevels, from the lowest to the highest:\n- low\n- medium\n- high\n\n"
            "Answer with one level only.",
        )
    ]


@pytest.mark.parametrize("question", [PREDICATE, CHOICE, SCORE], ids=lambda each: each["type"])
def test_without_a_list_the_prompt_is_input_and_instructions_alone(question: Any) -> None:
    text = question["instructions"]

    assert chat_for(question, list_options=False) == [("user", f"The input.\n\n{text}")]
    assert chat_for(question, "", list_options=False) == [("user", text)]
    assert chat_for({**question, "instructions": ""}, list_options=False) == [("user", "The input.")]


def test_conversation_ends_with_the_question() -> None:
    spoken = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "One."}, {"type": "input_json", "data": {"é": 1}}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two."}]},
    ]
    began = [("system", "Be brief."), ("user", 'One.\n{"é": 1}'), ("assistant", "Two.")]

    assert chat_for(PREDICATE, spoken, list_options=False) == [*began, ("user", "It is allowed.")]
    assert chat_for({**PREDICATE, "instructions": ""}, spoken[:2], list_options=False) == began[:2]


def test_all_questions_begin_with_the_input() -> None:
    engine = scorer()

    ask(engine, PREDICATE, CHOICE, SCORE, input="A long input.")

    start = [ord(letter) for letter in "user: A long input.\n\n"]
    assert all(prompt[: len(start)] == start for prompt in engine.asked[0]["prompts"])


def test_description_that_would_not_be_shown_is_refused() -> None:
    question = {**CHOICE, "choices": [{"value": "red", "description": "stop"}, {"value": "green"}]}

    field, _ = refused(scorer(), question, list_options=False)

    assert field == "questions.0.choices.0.description"


def test_nothing_to_ask_is_refused() -> None:
    field, _ = refused(scorer(), {**PREDICATE, "instructions": ""}, input="", list_options=False)

    assert field == "input"


def test_settings_of_the_chat_template_reach_it() -> None:
    engine = scorer()

    ask(engine, PREDICATE, extra_body={"chat_template_kwargs": {"enable_thinking": False}})

    assert engine.kwargs == [{"enable_thinking": False}]


def test_name_of_the_model_is_the_ensembles() -> None:
    assert ask(scorer(), PREDICATE).model == ENSEMBLE
