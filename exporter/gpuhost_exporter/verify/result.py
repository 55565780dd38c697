"""What a check found, what a run of them found, and the state file that keeps a run and the host's baseline.

verify.json, data: {"format": 1, "last": RUN, "baseline": {"quick": {"fio write": {"md0": 21.4e9}}, "full": {}}}
RUN: {"at": 1795361000.0, "mode": "quick", "results": [{"check": "fio write", "device": "md0", "verdict": "pass", …}]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from gpuhost_exporter.sources.state import Data

STATE_NAME = "verify"
FORMAT = 1
BASELINE_SHARE = 0.9  # of the baseline: less is told. Runs on one host differ by a few per cent

Verdict = Literal["pass", "warn", "fail", "skipped"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Unit = Literal["", "bytes_per_second", "seconds"]
Mode = Literal["passive", "quick", "full"]
Baseline = Mapping[str, Mapping[str, float]]  # check -> device -> figure


@dataclass(frozen=True, slots=True)
class Result:
    """One line. `device` is "" for the host; `value` is what a measurement gave, in `unit`; others only say `measured`.

    `target` and `baseline` are in the same unit, None where there is none. `why` explains what is no pass.
    """

    check: str
    device: str
    verdict: Verdict
    measured: str = ""
    wanted: str = ""
    why: str = ""
    value: float | None = None
    unit: Unit = ""
    target: float | None = None
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """`at`: when it ended, in seconds since the epoch."""

    at: float
    mode: Mode
    results: tuple[Result, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def accepted(self) -> bool:
        return not self.count("fail") and self.count("skipped") < len(self.results)


def against(baseline: Baseline, results: Iterable[Result]) -> Iterator[Result]:
    """The results beside what the host did before: a pass that has fallen behind becomes a warning."""
    for result in results:
        before = baseline.get(result.check, {}).get(result.device)
        if result.value is None or before is None:
            yield result
            continue
        share = before / result.value if result.unit == "seconds" else result.value / before
        behind = result.verdict == "pass" and share < BASELINE_SHARE
        why = f"{share * 100:.0f} % of what this host did before" if behind else result.why
        yield replace(result, verdict="warn" if behind else result.verdict, why=why, baseline=before)


def keep(data: Data, run: Run, *, anew: bool = False) -> Data:
    """The state with this run as the last one. The best that ever passed is the baseline, for a baseline that went down
    with each run would never show a slow decay; with `anew`, this run is.
    """
    stored = data.get("baseline")
    modes = dict(stored) if isinstance(stored, dict) else {}
    figures = {} if anew else {check: dict(devices) for check, devices in baseline(data, run.mode).items()}
    for result in run.results:
        if result.value is None or not (anew or result.verdict == "pass"):
            continue
        devices = figures.setdefault(result.check, {})
        best = min if result.unit == "seconds" else max
        devices[result.device] = best(result.value, devices.get(result.device, result.value))
    return {"format": FORMAT, "last": document(run), "baseline": modes | {run.mode: figures}}


def document(run: Run) -> dict[str, Any]:
    """The run as JSON has it, without what is not told."""
    results = [
        {key: value for key, value in asdict(result).items() if value is not None and value != ""}
        for result in run.results
    ]
    return {"at": run.at, "mode": run.mode, "results": results}


def baseline(data: Data, mode: str) -> dict[str, dict[str, float]]:
    """What the host did before in that mode; what the state says in any other form counts as not measured."""
    modes = data.get("baseline")
    found = modes.get(mode) if isinstance(modes, dict) else None
    return {
        str(check): {str(device): float(value) for device, value in devices.items() if _is_figure(value)}
        for check, devices in (found.items() if isinstance(found, dict) else ())
        if isinstance(devices, dict)
    }


def last(data: Data) -> Run | None:
    """The last run, None where none is kept. Results in a form of another version are left out."""
    stored = data.get("last")
    if not isinstance(stored, dict) or not _is_figure(stored.get("at")) or not isinstance(stored.get("results"), list):
        return None
    mode: Mode = stored["mode"] if stored.get("mode") in get_args(Mode) else "quick"
    found = tuple(result for entry in stored["results"] if (result := _result(entry)))
    return Run(float(stored["at"]), mode, found)


def _result(entry: object) -> Result | None:
    if not isinstance(entry, dict):
        return None
    check, device, verdict = entry.get("check"), entry.get("device", ""), entry.get("verdict")
    if not isinstance(check, str) or not isinstance(device, str) or verdict not in VERDICTS:
        return None
    unit: Unit = entry["unit"] if entry.get("unit") in get_args(Unit) else ""
    measured, wanted, why = (
        text if isinstance(text := entry.get(key), str) else "" for key in ("measured", "wanted", "why")
    )
    figures = [float(entry[key]) if _is_figure(entry.get(key)) else None for key in ("value", "target", "baseline")]
    result = Result(check, device, verdict, measured, wanted, why)
    if not unit:
        return result
    return replace(result, unit=unit, value=figures[0], target=figures[1], baseline=figures[2])


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
