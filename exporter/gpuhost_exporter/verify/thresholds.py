"""The shares of data/verify.toml, and a measurement judged by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.targets import read_data
from gpuhost_exporter.verify.result import Result, Unit, Verdict

# Bytes a second of one lane in one direction, with the line code taken off: 8b/10b, then 128b/130b, then flits.
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 8e9 / 8 * 128 / 130, 4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130, 6: 7.56e9}


@dataclass(frozen=True, slots=True)
class Threshold:
    warn: float
    fail: float


def load() -> dict[str, Threshold]:
    table: Mapping[str, Mapping[str, Any]] = read_data("verify.toml")
    return {name: Threshold(entry["warn"], entry["fail"]) for name, entry in table.items()}


def pcie_rate(generation: float | None, width: float | None) -> float | None:
    """Bytes a second of the link in one direction."""
    lane = _LANE.get(int(generation)) if generation else None
    return lane * width if lane and width else None


def judge(
    check: str,
    device: str,
    value: float,
    unit: Unit,
    reference: float | None,
    threshold: Threshold | None,
) -> Result:
    """The target that is shown is the one below which it warns; what has none passes and becomes the baseline."""
    if reference is None or threshold is None:
        return Result(check, device, "pass", why="no target: held against the baseline", value=value, unit=unit)
    share = reference / value if unit == "seconds" else value / reference
    verdict: Verdict = "fail" if share < threshold.fail else "warn" if share < threshold.warn else "pass"
    target = reference / threshold.warn if unit == "seconds" else reference * threshold.warn
    said = "" if verdict == "pass" else f"{share * 100:.0f} % of what the hardware can do"
    return Result(check, device, verdict, why=said, value=value, unit=unit, target=target)
