"""What is told of rows once all have been read: kinds of repairs, each with a count and the first place.

In: a remark and a place, row by row. Out: one line for each remark.
"""

from collections.abc import Iterator


class Notes:
    """Remarks about rows, told together instead of one for each row."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, remark: str, place: str) -> None:
        """Note that `remark` is true of the row at `place`."""
        count, first = self._found.get(remark, (0, place))
        self._found[remark] = count + 1, first

    def lines(self) -> Iterator[str]:
        """Each remark with how many rows it is about."""
        for remark, (count, first) in self._found.items():
            yield f"{remark} ({count} time{'s' if count > 1 else ''}, first at {first})"
