"""Rules and routing with every duration divided by one constant, so that a test sees hours pass in minutes.

Durations are `for`, `interval`, range selectors, subqueries and offsets, in annotations' queries too, and
Alertmanager's waits; and seconds of something within a range that a rule asks for at least, and those since a boot or
a checkpoint. Other numbers, also in seconds, are thresholds of what hosts tell, and hosts live in real time.
"""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = r"(?:\d+(?:ms|[smhdw]))+"
_PART = re.compile(r"(\d+)(ms|[smhdw])")
_RANGE = re.compile(rf"\[({_DURATION})(?::({_DURATION})?)?\]")
_OFFSET = re.compile(rf"\boffset ({_DURATION})\b")
_WITHIN = re.compile(
    r"((?:_seconds_total(?:\{[^}]*\})?\[\w+\]|:sum_increase\w+\{[^}]*\})\)+ (?:>=|>) "
    r"|boot_time_seconds < bool |checkpoint_last_timestamp_seconds < )(\d+)\b"
)
_KEYS = ("for", "keep_firing_for", "interval", "group_wait", "group_interval", "repeat_interval")


def milliseconds(text: str) -> int:
    if not re.fullmatch(_DURATION, text):
        raise ValueError(f"no duration: {text!r}")
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def duration(text: str, by: int) -> str:
    whole, rest = divmod(milliseconds(text), by)
    if rest or not whole:
        raise ValueError(f"{text} is not so many milliseconds times {by}")
    return f"{whole}ms"


def expression(text: str, by: int) -> str:
    """PromQL, or a template that queries it."""

    def ranged(found: re.Match[str]) -> str:
        step = found[2] and duration(found[2], by)
        colon = ":" if ":" in found[0] else ""
        return f"[{duration(found[1], by)}{colon}{step or ''}]"

    text = _WITHIN.sub(lambda found: f"{found[1]}{int(found[2]) / by:g}", text)
    text = _RANGE.sub(ranged, text)
    return _OFFSET.sub(lambda found: f"offset {duration(found[1], by)}", text)


def scaled(document: Any, by: int) -> Any:
    """A rule file's, or Alertmanager's configuration's, content."""
    if isinstance(document, list):
        return [scaled(each, by) for each in document]
    if not isinstance(document, dict):
        return document
    found = {}
    for key, value in document.items():
        if key in _KEYS:
            found[key] = duration(value, by)
        elif key == "expr":
            found[key] = expression(value, by)
        elif key == "annotations":
            found[key] = {name: expression(text, by) for name, text in value.items()}
        else:
            found[key] = scaled(value, by)
    return found
