"""The routes of vLLM that take a model's name, and the least that each asks for: those that carry the field, others."""

from typing import Any

HELLO: Any = [{"role": "user", "content": "hello"}]
FOLLOWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 3},
    "/v1/completions": {"prompt": "hello", "max_tokens": 3},
    "/v1/responses": {"input": "hello", "max_output_tokens": 3},
    "/v1/messages": {"messages": HELLO, "max_tokens": 3},
}
OURS = ("/v1/uncertainty", "/v1/decisions")
"""Routes that have a body of ours, in which fields stand by themselves."""
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/batch": {"messages": [HELLO, HELLO], "max_tokens": 3},
    "/invocations": {"messages": HELLO, "max_tokens": 3},
    "/inference/v1/generate": {"token_ids": [65, 66], "sampling_params": {"max_tokens": 3}},
    "/generative_scoring": {"query": "a", "items": ["b", "c"], "label_token_ids": [65, 66]},
}
STREAMED = ("/invocations", "/inference/v1/generate")
READ_ONLY: dict[str, dict[str, Any]] = {
    "/tokenize": {"messages": HELLO},
    "/detokenize": {"tokens": [65]},
    "/v1/messages/count_tokens": {"messages": HELLO},
}
