"""Asks a server with LiteLLM and prints as JSON what it shows of answers that are given, withheld, routed.

Run as a program: `python ask_with_litellm.py URL`. Imports nothing of softspec.
"""

import json
import sys
from typing import Any

import litellm

QUESTION = [{"role": "user", "content": "May I record a call?"}]


def asked(url: str, action: str, **fields: Any) -> Any:
    policy = {"action": action} if action == "answer" else {"action": action, "threshold": 0.0}
    return litellm.completion(
        model="openai/law",
        api_base=f"{url}/v1",
        api_key="-",
        messages=QUESTION,
        max_tokens=6,
        num_retries=0,
        extra_body={"uncertainty": {"policy": policy}},
        **fields,
    )


def shown(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    numbers = (getattr(choice, "provider_specific_fields", None) or {}).get("uncertainty") or {}
    return {
        "text": choice.message.content,
        "refusal": getattr(choice.message, "refusal", None),
        "decision": numbers.get("decision"),
        "model": answer.model,
        "finish_reason": choice.finish_reason,
        "usage": answer.usage.model_dump(),
    }


def main(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for action in ("answer", "abstain", "route"):
        found[action] = shown(asked(url, action))
        chunks = list(asked(url, action, stream=True))
        found[f"{action} streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    message = litellm.completion(
        model="anthropic/law", api_base=url, api_key="-", messages=QUESTION, max_tokens=6, num_retries=0
    )
    found["anthropic"] = shown(message)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
