"""What a prober is to do, as the exporter hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WARM_UP = 5  # messages at the start of a round that are not measured
PERFTEST_SECONDS = 20.0  # after which a test counts as ended, whatever it does


@dataclass(frozen=True, slots=True)
class Plan:
    """In seconds: `gap` from one message to the next, `patience` until one counts as lost."""

    name: str
    targets: tuple[str, ...]
    neighbours: tuple[str, ...]
    interval: float
    messages: int
    rdma: bool = False
    gap: float = 0.01
    patience: float = 1.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Plan:
        """From JSON, where a tuple has become a list."""
        return cls(**{**given, "targets": tuple(given["targets"]), "neighbours": tuple(given["neighbours"])})
