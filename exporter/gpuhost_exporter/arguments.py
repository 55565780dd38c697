"""How this program's commands take their arguments. Imports nothing heavy: `health` has to answer at once."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from gpuhost_exporter.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """No abbreviations, which a later flag would make ambiguous, and one line where argparse prints its usage."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("expected a text, got ''")
    return value


def positive_seconds(value: str, most: float = 86400) -> float:
    """A duration as Prometheus writes it: 90, 90s, 10m, 1h, 7d. Raises ConfigError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    digits, factor = (value[:-1], units[value[-1]]) if value and value[-1] in units else (value, 1.0)
    try:
        seconds = float(digits) * factor
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= most:
        raise ConfigError(f"{value!r}: expected a duration such as 90s, 10m or 1h, at most {most / 3600:g}h")
    return seconds
