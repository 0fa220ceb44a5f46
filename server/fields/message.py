"""What a client reads of one answer, whole or put together from the chunks of a stream.

In: choices as OpenAI's completions have them. Out: the parts of the message in which JSON may stand. Knows no tokens.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Message:
    """The text of one choice so far; `arguments` are those of its tool calls, by their number.

    `stop` is the stop string that ended it, which is in the tokens and not in the text.
    """

    reasoning: str = ""
    content: str = ""
    arguments: dict[int, str] = field(default_factory=dict)
    stop: str = ""

    def add(self, choice: dict[str, Any]) -> "Message":
        """Take in a whole choice, or one chunk of it."""
        said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        self.reasoning += said.get("reasoning") or ""
        self.content += said.get("content") or ""
        for number, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index", number)
            new = (call.get("function") or {}).get("arguments") or ""
            self.arguments[index] = self.arguments.get(index, "") + new
        stop = choice.get("stop_reason")
        self.stop = stop if isinstance(stop, str) else self.stop
        return self
