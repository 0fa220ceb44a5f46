"""Asks a server with LangChain's clients and prints as JSON what they show of answers that are given, withheld, routed.

Run as a program: `python ask_with_langchain.py URL`. Imports nothing of softspec.
"""

import json
import sys
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

QUESTION = "May I record a call?"


class Verdict(BaseModel):
    """Whether something is allowed."""

    allowed: bool


def shown(message: AIMessage) -> dict[str, Any]:
    return {
        "text": message.text,
        "refusal": message.additional_kwargs.get("refusal"),
        "model": message.response_metadata.get("model_name"),
        "headers": message.response_metadata.get("headers") or {},
        "usage": message.usage_metadata,
    }


def openai(url: str, action: str, **settings: Any) -> ChatOpenAI:
    policy = {"action": action} if action == "answer" else {"action": action, "threshold": 0.0}
    return ChatOpenAI(
        model="law",
        base_url=f"{url}/v1",
        api_key="-",
        max_retries=0,
        max_completion_tokens=6,
        extra_body={"uncertainty": {"policy": policy}},
        include_response_headers=True,
        **settings,
    )


def main(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for action in ("answer", "abstain", "route"):
        found[action] = shown(openai(url, action).invoke(QUESTION))
        chunks = list(openai(url, action).stream(QUESTION))
        found[f"{action} streamed"] = "".join(chunk.text for chunk in chunks)
    parsed = openai(url, "abstain").with_structured_output(Verdict, include_raw=True).invoke(QUESTION)
    found["parsing error"] = type(parsed["parsing_error"]).__name__
    responses = openai(url, "answer", use_responses_api=True).invoke(QUESTION)
    found["responses"] = shown(responses)
    anthropic = ChatAnthropic(
        model_name="law", base_url=url, api_key="-", max_tokens_to_sample=6, max_retries=0
    )
    found["anthropic"] = shown(anthropic.invoke(QUESTION))
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
