"""A whole response of OpenAI's Responses with its verdict.

In: the JSON of vLLM's response. Out: the same with `uncertainty`, its own, and again on each item that speaks or calls,
without the tokens: one generation wrote all items, so they have one set of numbers. A withheld response is completed
and has one item, in the shape of a refusal by OpenAI's own models.
"""

from uuid import uuid4

from softspec.server.chat.wire import EXTENSION, Json

_ITEMS = ("message", "function_call", "custom_tool_call")


def with_report(response: Json, report: Json) -> Json:
    """The response with its `uncertainty`."""
    of_items = {key: value for key, value in report.items() if key != "tokens"}
    output = [
        {**item, EXTENSION: of_items} if item["type"] in _ITEMS else item for item in response["output"]
    ]
    return {**response, "output": output, EXTENSION: report}


def withheld(response: Json, refusal: Json) -> Json:
    """The response with this item in place of its answer, and nothing raw beside it."""
    return {
        **response,
        "output": [refusal],
        "output_messages": None,
        "status": "completed",
        "incomplete_details": None,
    }


def refusal_item(sentence: str) -> Json:
    """The message that refuses."""
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "refusal", "refusal": sentence}],
    }
