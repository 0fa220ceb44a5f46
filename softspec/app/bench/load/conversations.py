"""What a load asks: made-up words, or rows of a file.

In: settings. Out: lists of messages, one for each request.
"""

import json
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from softspec.app.bench.load.settings import LoadSettings
from softspec.errors import DataError

Messages = Sequence[dict[str, Any]]
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def conversations(settings: LoadSettings) -> list[Messages]:
    """As many as are asked for: no two alike if they are made up; a file's rows in their order, again and again.

    Raises:
        DataError: the file has no rows, or one that is no question.
    """
    if settings.prompts is not None:
        return list(islice(cycle(_rows(settings.prompts)), settings.count))
    drawn = random.Random(settings.seed)
    return [
        _asked(" ".join(_word(drawn) for _ in range(settings.prompt_words))) for _ in range(settings.count)
    ]


def _asked(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _word(drawn: random.Random) -> str:
    return "".join(drawn.choice(_CONSONANTS) + drawn.choice(_VOWELS) for _ in range(2))


def _rows(path: Path) -> list[Messages]:
    with path.open(encoding="utf-8") as lines:
        rows = [_row(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"'{path}' has no rows: expected 'prompt' or 'messages' in each line")
    return rows


def _row(place: str, line: str) -> Messages:
    """A row's question; answers at its end, as rows for training have, are left out."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: no JSON ({error})") from error
    found = row.get("prompt", row.get("messages")) if isinstance(row, dict) else None
    if isinstance(found, str) and found:
        return _asked(found)
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        asked = list(found)
        while asked and asked[-1].get("role") == "assistant":
            asked.pop()
        if asked:
            return asked
    raise DataError(f"{place}: expected 'prompt', a text or messages, or 'messages' with a question")
