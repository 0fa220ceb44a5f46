"""Whether a request asks for JSON, so that its answer is judged part by part.

In: a request, as it came and before vLLM works on it. Out: yes or no. Knows the fields of OpenAI's requests and vLLM's.
"""

from softspec.server.chat.unsupported import OpenAIRequest
from softspec.server.chat.wire import Detail


def wants_fields(request: OpenAIRequest, detail: Detail) -> bool:
    """Whether the answer's `uncertainty` has `fields`: when asked for, and by itself where the answer may be JSON."""
    return detail == "fields" or (detail != "none" and _asks_for_json(request))


def _asks_for_json(request: OpenAIRequest) -> bool:
    response_format = getattr(request, "response_format", None)
    structure = getattr(request, "structured_outputs", None)
    return (
        getattr(response_format, "type", None) in ("json_object", "json_schema")
        or getattr(structure, "json", None) is not None
        or bool(getattr(structure, "json_object", None))
        or bool(getattr(request, "tools", None) and getattr(request, "tool_choice", None) != "none")
    )
