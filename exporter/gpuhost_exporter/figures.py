"""Figures for people: short, with a unit, and a dash where nothing is told."""

from __future__ import annotations

NOTHING = "\u2013"


def percent(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio * 100:.0f} %"


def watts(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} W"


def celsius(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} °C"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def size(value: float | None) -> str:
    """Decimal bytes, as drives and memories are sold: 85.5 GB."""
    return NOTHING if value is None else _scaled(value, "B")


def rate(value: float | None) -> str:
    """Bytes a second: 3.35 TB/s."""
    return NOTHING if value is None else _scaled(value, "B/s")


def bits(bytes_per_second: float | None) -> str:
    """What network people call a port: 400 Gb/s."""
    return NOTHING if bytes_per_second is None else _scaled(bytes_per_second * 8, "b/s")


def seconds(value: float | None) -> str:
    """0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if value is None:
        return NOTHING
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def microseconds(value: float) -> str:
    """Of a message: 4.2 us."""
    return f"{value * 1e6:.1f} us"


def ago(age: float | None) -> str:
    """How long ago something was last read; None is never."""
    return "never" if age is None else f"{seconds(age)} ago"


def of(value: str, whole: str) -> str:
    """850 GB/s of 900 GB/s, with the unit said once."""
    number, _, unit = value.partition(" ")
    if whole == NOTHING:
        return value
    return f"{number} / {whole}" if number == "0" or whole.endswith(f" {unit}") or not unit else f"{value} / {whole}"


def _scaled(value: float, unit: str) -> str:
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{value / power:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.0f} {unit}"
