"""The body of a request, read before the app reads it.

In: ASGI messages. Out: all bytes, or nothing beyond a limit, and the same messages for whoever comes next. Knows ASGI.
"""

from starlette.types import Message, Receive

from softspec.errors import TooLargeError


async def read_body(receive: Receive, most: int | None = None) -> bytes | None:
    """The whole body; None if the client went away.

    Raises:
        TooLargeError: it has more than `most` bytes; the rest is not read.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if most is not None and size > most:
            raise too_large(most)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, in one piece, and then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def too_large(most: int) -> TooLargeError:
    """What is said of a body above a limit."""
    return TooLargeError(
        f"the body has more than {most} bytes: expected at most that many; send less at once"
    )
