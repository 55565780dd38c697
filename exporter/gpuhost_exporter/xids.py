"""NVIDIA's XID errors as data: meaning, what NVIDIA says to do, severity, from data/xids.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpuhost_exporter.targets import read_data

Severity = Literal["critical", "warning", "info", "application"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
UNLISTED: Severity = "warning"


@dataclass(frozen=True, slots=True)
class Entry:
    """One code. `when` holds severities by what the kernel log says beside it; NVML tells the code only."""

    code: int
    meaning: str
    action: str  # NVIDIA's word for the immediate resolution, "" where its catalogue has none
    severity: Severity
    watched: bool
    when: tuple[tuple[re.Pattern[str], Severity], ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    entries: Mapping[int, Entry]

    @classmethod
    def load(cls) -> Catalogue:
        return cls({raw["code"]: _entry(raw) for raw in read_data("xids.toml")["xid"]})

    @property
    def watched(self) -> tuple[int, ...]:
        """Codes whose series exist from the start."""
        return tuple(code for code, entry in self.entries.items() if entry.watched)

    def severity(self, code: int, text: str) -> Severity:
        """Of one event; `text` is what the kernel log said after the code, "" from NVML."""
        entry = self.entries.get(code)
        if entry is None:
            return UNLISTED
        return next((severity for pattern, severity in entry.when if pattern.search(text)), entry.severity)


def _entry(raw: Mapping[str, Any]) -> Entry:
    return Entry(
        raw["code"],
        raw["meaning"],
        raw["action"],
        _severity(raw["severity"]),
        raw.get("watched", False),
        tuple((re.compile(rule["pattern"]), _severity(rule["severity"])) for rule in raw.get("when", ())),
    )


def _severity(word: str) -> Severity:
    if word not in SEVERITIES:
        raise ValueError(f"xids.toml: {word!r} is none of {', '.join(SEVERITIES)}")
    return word
