"""Grafana's dashboard as data: its panels, and what they ask Prometheus.

In: the file that Grafana is given. Out: panels, and expressions as Grafana would send them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "softspec.json"


def document() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def panels() -> list[dict[str, Any]]:
    """Those that show something; rows are headings."""
    return [panel for panel in document()["panels"] if panel["type"] != "row"]


def expressions(interval: str) -> Iterator[tuple[str, str]]:
    """Title and expression of everything that is asked, for all models, over windows of this length."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$model", ".*")
            yield panel["title"], re.sub(r"\$__(rate_interval|range)", interval, text)
