"""The committed dashboards: their panels, queries and variables, for tests that never load grafana-foundation-sdk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from typing import Any

from support.promql import SCRAPED, Vector
from support.rules import metric

FOLDER = os.path.normpath(os.path.join(os.path.dirname(__file__), "..", "..", "dashboards"))
FILES = tuple(sorted(glob(f"{FOLDER}/*.json")))
# Grafana puts these in; a parser wants durations and texts.
_INTERVALS = {"$__rate_interval": "1m", "$__range": "1h", "$__interval": "15s"}
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
# Prometheus' own, of the alerts that fire.
_ALERT = Vector(
    SCRAPED | {"alertname", "severity", "component", "gpu", "uuid", "device", "alertstate"},
    SCRAPED | {"alertname", "severity", "component", "gpu", "uuid", "device"},
)


@dataclass(frozen=True, slots=True)
class Query:
    board: str
    panel: str
    letter: str
    expression: str
    instant: bool
    legend: str
    kind: str  # of the panel

    def __str__(self) -> str:
        return f"{self.board}: {self.panel} ({self.letter})"


def load(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
        return found


def boards() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in FILES:
        yield os.path.basename(path).removesuffix(".json"), load(path)


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    for name, board in boards():
        for panel in panels(board):
            for target in panel.get("targets", ()):
                yield Query(
                    name,
                    panel["title"],
                    target["refId"],
                    target["expr"],
                    bool(target.get("instant")),
                    target.get("legendFormat", ""),
                    panel["type"],
                )
        for annotation in board["annotations"]["list"]:
            yield Query(name, f"annotation {annotation['name']}", "-", annotation["target"]["expr"], False, "", "")


def filled_in(expression: str, **variables: str) -> str:
    """The expression as Grafana would send it."""
    for macro, duration in _INTERVALS.items():
        expression = expression.replace(macro, duration)
    return _VARIABLE.sub(lambda found: variables.get(found.group(1), "x"), expression)


def known(name: str) -> Vector:
    """As rules.metric, and Prometheus' series about alerts."""
    if name == "ALERTS":
        return _ALERT
    if name == "ALERTS_FOR_STATE":
        return Vector(_ALERT.labels - {"alertstate"}, _ALERT.varying)
    return metric(name)
