"""The control file that every process of a simulation reads: which host, what happened since when.

    {"host": "h100x8", "segments": [{"scenario": "steady", "started_at": 5021.25}], "frozen": null,
     "boot_id": "1e9d...", "started_wall": 1760000000.0, "real_roots": false}

A switch appends a segment, so that counters go on from where they stood. A segment may say otherwise of single GPUs:
    {"scenario": "steady", "started_at": 5080.5, "gpus": [{"gpu": 0, "pids": [4242], "levels": {"graphics": 0.01}}]}
and have faults beside the scenario's, each as in a scenario's file:
    {"scenario": "steady", "started_at": 5080.5, "faults": [{"kind": "driver_fails", "at": 0, "code": 18}]}
With real roots only the GPUs are simulated: /proc and /sys are the machine's own, and so are the processes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import catalogue, scenario
from gpuhost_exporter.sim.parts import identifier
from gpuhost_exporter.sim.scenario import Fault, GpuLevels

DEFAULT_SCENARIO = "steady"


@dataclass(frozen=True, slots=True)
class GpuChange:
    """What a GPU does in place of what the scenario says."""

    gpu: int
    pids: tuple[int, ...] | None = None  # who holds it; None: the scenario's processes
    levels: Mapping[str, float] = field(default_factory=dict)  # by name, as in scenario.GpuLevels


@dataclass(frozen=True, slots=True)
class Segment:
    scenario: str
    started_at: float  # Clock.now()
    gpus: tuple[GpuChange, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    host: str
    segments: tuple[Segment, ...]
    frozen: float | None  # seconds since the start at which the simulated time stands still
    boot_id: str
    started_wall: float
    real_roots: bool = False

    @property
    def started_at(self) -> float:
        return self.segments[0].started_at

    @property
    def booted_wall(self) -> float:
        """When the simulated host booted, seconds since the epoch: it has the uptime of the real one."""
        return self.started_wall - self.started_at

    def elapsed(self, now: float) -> float:
        """Simulated seconds since the start; 0 for a time before it."""
        return self.frozen if self.frozen is not None else max(0.0, now - self.started_at)


def parse_target(target: str) -> tuple[str, str]:
    """Split HOST[:SCENARIO] and check both; ConfigError lists what there is."""
    host, _, name = target.partition(":")
    name = name or DEFAULT_SCENARIO
    catalogue.host(host)
    scenario.load(name)
    return host, name


def create(
    path: str,
    host: str,
    scenario: str,
    clock: Clock,
    frozen: float | None = None,
    *,
    elapsed: float = 0.0,
    real_roots: bool = False,
) -> Control:
    """Start a simulation, `elapsed` seconds ago: write its control file, replacing any that is there."""
    parse_target(f"{host}:{scenario}")
    wall = clock.wall() - elapsed
    control = Control(
        host=host,
        segments=(Segment(scenario, clock.now() - elapsed),),
        frozen=frozen,
        boot_id=identifier(host, wall),
        started_wall=wall,
        real_roots=real_roots,
    )
    _write(path, control)
    return control


def switch(path: str, scenario: str, clock: Clock) -> Control:
    """Change a running simulation to another scenario from now on."""
    control = load(path)
    parse_target(f"{control.host}:{scenario}")
    at = control.started_at + control.elapsed(clock.now())
    control = replace(control, segments=(*control.segments, Segment(scenario, at)))
    _write(path, control)
    return control


def change(path: str, gpus: Sequence[GpuChange], clock: Clock, faults: Sequence[Fault] = ()) -> Control:
    """Set what single GPUs do and who holds them from now on, and what is wrong beside what the scenario says, in
    place of what was set before."""
    control = load(path)
    at = control.started_at + control.elapsed(clock.now())
    changed = Segment(control.segments[-1].scenario, at, tuple(gpus), tuple(faults))
    control = replace(control, segments=(*control.segments, changed))
    _write(path, control)
    return control


def load(path: str) -> Control:
    """Read a control file; ConfigError says what is wrong with which."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise ConfigError(f"simulation control file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"simulation control file {path}: not JSON: {error}") from error
    try:
        control = _control(document)
        for segment in control.segments:
            parse_target(f"{control.host}:{segment.scenario}")
    except ConfigError as error:
        raise ConfigError(f"simulation control file {path}: {error}") from error
    return control


def _control(document: object) -> Control:
    if not isinstance(document, dict):
        raise ConfigError("expected an object")
    try:
        segments = tuple(
            Segment(
                _text(segment["scenario"]),
                _number(segment["started_at"]),
                tuple(_change(each) for each in segment.get("gpus", ())),
                tuple(_fault(each) for each in segment.get("faults", ())),
            )
            for segment in document["segments"]
        )
        frozen = document["frozen"]
        control = Control(
            host=_text(document["host"]),
            segments=segments,
            frozen=None if frozen is None else _number(frozen),
            boot_id=_text(document["boot_id"]),
            started_wall=_number(document["started_wall"]),
            real_roots=document.get("real_roots") is True,
        )
    except KeyError as error:
        raise ConfigError(f"{error.args[0]} is missing") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"segments: {error}") from error
    starts = [segment.started_at for segment in segments]
    if not starts or starts != sorted(starts):
        raise ConfigError("segments must be a list in the order of started_at, with at least one")
    return control


def _change(document: Mapping[str, Any]) -> GpuChange:
    pids, levels = document.get("pids"), document.get("levels", {})
    unknown = set(levels) - set(GpuLevels._fields)
    if unknown:
        raise ConfigError(f"unknown level {min(unknown)!r} of a GPU")
    return GpuChange(
        int(_number(document["gpu"])),
        None if pids is None else tuple(int(_number(pid)) for pid in pids),
        {name: _number(level) for name, level in levels.items()},
    )


def _fault(document: Mapping[str, Any]) -> Fault:
    # No end is written as Infinity.
    return scenario.fault("of the segment", {key: value for key, value in document.items() if value != math.inf})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"expected a number, got {value!r}")
    return float(value)


def _write(path: str, control: Control) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(control), file)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"simulation control file {path}: {error.strerror}") from error
