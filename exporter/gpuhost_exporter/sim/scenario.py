"""Scenarios: what a simulated host's job and devices do over time, read from scenarios/*.toml.

    description = "GPU 3 falls off the bus after 20 s; its siblings hang in the collective"
    [[phase]]
    seconds = 20
    activity = "training"            # a set of levels in activities.toml
    [[phase]]                        # the last phase goes on for ever, unless loop = true
    activity = "collective-hang"
    host = { nic = 0.0 }             # levels that differ from the activity's
    all = { nvlink = 0.0 }           # on every GPU
    gpu.3 = { graphics = 0.0 }       # on one GPU
    [[fault]]
    kind = "gpu_lost"
    at = 20                          # seconds since the scenario began
    gpu = 3

A scenario may instead be a round trip through others: [[stop]] scenario = "...", seconds = ...
Numbers of GPUs and drives are taken modulo the host's count, so that every scenario fits every host.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sources.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class GpuLevels(NamedTuple):
    """What a GPU does at a moment, or the integral of it over time. Ratios 0-1 unless said otherwise."""

    graphics: float = 0.0  # share of time with any work
    sm: float = 0.0
    occupancy: float = 0.0
    tensor: float = 0.0
    fp64: float = 0.0
    fp32: float = 0.0
    fp16: float = 0.0
    dram: float = 0.0
    power: float = 0.0  # from idle to the limit
    nvlink: float = 0.0  # bytes/s, each direction
    pcie_tx: float = 0.0  # bytes/s leaving the GPU
    pcie_rx: float = 0.0  # bytes/s
    power_capped: float = 0.0  # share of time
    thermal_slowdown: float = 0.0  # share of time
    heat: float = 0.0  # degrees above what the power alone makes
    clock: float = 0.2  # of the boost clock
    memory: float = 0.0  # of the framebuffer
    processes: float = 0.0
    blocked: float = 0.0  # its process sits in uninterruptible sleep


class HostLevels(NamedTuple):
    """What the rest of the host does at a moment, or the integral of it over time."""

    nic: float = 0.0  # bytes/s, each direction, of each GPU's port
    frontend: float = 0.0  # bytes/s of the front end's port
    disk_read: float = 0.0  # bytes/s of the data array
    disk_write: float = 0.0  # bytes/s
    read_queue: float = 0.0  # requests in flight at each member
    write_queue: float = 0.0
    disk_busy: float = 0.0  # share of time with any request
    slow_queue: float = 0.0  # more requests in flight at the third member
    slow_busy: float = 0.0  # more busy time there
    job_read: float = 0.0  # bytes/s through the job's system calls
    job_write: float = 0.0
    background_write: float = 0.0  # of these, by a process that writes while the ranks go on
    dirtied: float = 0.0  # bytes/s of page cache
    dirty: float = 0.0  # bytes
    cpu: float = 0.0  # share of all threads
    loader_cpu: float = 0.0  # of this, by the processes that load data
    iowait: float = 0.0
    blocked: float = 0.0  # tasks in uninterruptible sleep
    io_some: float = 0.0  # pressure: share of time
    io_full: float = 0.0
    cpu_some: float = 0.0
    memory_some: float = 0.0
    memory_full: float = 0.0
    congestion_packets: float = 0.0  # CNPs a second handled by each GPU's port
    ecn_packets: float = 0.0  # marked packets a second
    retransmits: float = 0.0  # a second
    out_of_sequence: float = 0.0  # packets a second
    ack_timeouts: float = 0.0  # a second
    paused: float = 0.0  # share of time that each GPU's port may not send


# These do not wobble.
_STEADY = frozenset({"power_capped", "thermal_slowdown", "heat", "clock", "memory", "processes", "blocked", "dirty"})
_RATIOS = frozenset(
    {"graphics", "sm", "occupancy", "tensor", "fp64", "fp32", "fp16", "dram", "power", "disk_busy", "cpu", "loader_cpu"}
    | {"power_capped", "thermal_slowdown", "memory", "clock", "iowait"}
    | {"io_some", "io_full", "cpu_some", "memory_some", "memory_full", "paused"}
)

FaultKind = Literal[
    "gpu_lost",
    "gpu_reset",  # the GPU's counters start again
    "reset_required",
    "call_hangs",
    "call_crashes",
    "link_down",
    "link_errors",
    "fabric",
    "xid",
    "sxid",
    "drive_failed",
    "array_recovering",
    "drive_pulled",  # out of its slot
    "drive_hangs",  # its controller answers no admin command
    "clocks_locked",
    "power_limit_lowered",
    "driver_fails",  # who opens the library gets NVML's error, with code 0 no GPUs; with 18 every call fails, too
]
_FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong from `at` until `until`, seconds since the scenario began."""

    kind: FaultKind
    at: float
    until: float = math.inf
    gpu: int = 0
    drive: int = 0  # drive_pulled, drive_hangs: its place among the host's
    links: tuple[int, ...] = ()
    per_second: float = 0.0  # link_errors
    code: int = 0  # xid, sxid; fabric: NVML's state; clocks_locked: MHz; power_limit_lowered: watts; driver_fails
    event: bool = False  # xid: NVML delivers it too
    text: str = ""  # xid, sxid: the kernel log's words after the number


@dataclass(frozen=True, slots=True)
class Phase:
    seconds: float
    host: HostLevels
    gpu: GpuLevels
    others: tuple[tuple[int, GpuLevels], ...]
    wobble: float
    period: float


@dataclass(frozen=True, slots=True)
class Stop:
    scenario: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    description: str
    phases: tuple[Phase, ...]  # the last is endless, unless they repeat
    faults: tuple[Fault, ...]
    stops: tuple[Stop, ...]


def moves(name: str) -> bool:
    """Whether a level of that name wobbles."""
    return name not in _STEADY


def is_ratio(name: str) -> bool:
    return name in _RATIOS


@cache
def names() -> tuple[str, ...]:
    stems = (name.removesuffix(".toml") for name in os.listdir(_folder()) if name.endswith(".toml"))
    return tuple(sorted(stem for stem in stems if stem != "activities"))


@cache
def load(name: str) -> Scenario:
    """The scenario of that name; ConfigError lists those there are."""
    if name not in names():
        raise ConfigError(f"unknown scenario {name!r}; known: {', '.join(names())}")
    return parse(name, _text(name), activities(_text("activities")))


def _text(name: str) -> str:
    return read_text(f"{_folder()}/{name}.toml")


def _folder() -> str:
    return os.path.join(os.path.dirname(__file__), "scenarios")


def activities(text: str) -> dict[str, dict[str, dict[str, float]]]:
    """Parse activities.toml: for each activity, levels of the host and of each GPU."""
    return {name: _activity(name, table) for name, table in _document("activities", text).items()}


def _activity(name: str, table: object) -> dict[str, dict[str, float]]:
    if not isinstance(table, dict) or set(table) != {"host", "gpu"}:
        raise ConfigError(f"activity {name}: expected the tables host and gpu")
    return {kind: _levels(f"activity {name}", kind, table[kind]) for kind in ("host", "gpu")}


def parse(name: str, text: str, known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Scenario:
    """Parse a scenario file; ConfigError names the scenario and what is wrong."""
    document = _document(name, text)
    _keys(name, document, {"description", "loop", "phase", "fault", "stop"})
    phases = [_phase(name, table, known) for table in _tables(name, document, "phase")]
    loop = bool(document.get("loop", False))
    if phases and not loop:
        phases[-1] = _forever(phases[-1])
    if any(math.isinf(phase.seconds) for phase in phases[:-1]):
        raise ConfigError(f"scenario {name}: a phase before the last needs seconds")
    if loop and phases and math.isinf(phases[-1].seconds):
        raise ConfigError(f"scenario {name}: every phase of a loop needs seconds")
    stops = tuple(_stop(name, table) for table in _tables(name, document, "stop"))
    if bool(stops) == bool(phases):
        raise ConfigError(f"scenario {name}: expected phases or stops")
    return Scenario(
        name=name,
        description=str(document.get("description", "")),
        phases=tuple(phases),
        faults=tuple(fault(name, table) for table in _tables(name, document, "fault")),
        stops=stops,
    )


def _document(name: str, text: str) -> dict[str, object]:
    try:
        document: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario {name}: {error}") from error
    return document


def _tables(name: str, document: Mapping[str, object], key: str) -> list[dict[str, object]]:
    tables = document.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"scenario {name}: {key} must be an array of tables")
    return tables


def _keys(name: str, table: Mapping[str, object], known: set[str]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"scenario {name}: unknown key {key!r}")


def _number(name: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e15:
        raise ConfigError(f"scenario {name}: {key} must be a number from 0, got {value!r}")
    return float(value)


def _levels(name: str, kind: str, table: object) -> dict[str, float]:
    if not isinstance(table, dict):
        raise ConfigError(f"scenario {name}: {kind} must be a table")
    _keys(name, table, set(GpuLevels._fields if kind == "gpu" else HostLevels._fields))
    levels = {key: _number(name, key, value) for key, value in table.items()}
    for key, level in levels.items():
        if is_ratio(key) and level > 1:
            raise ConfigError(f"scenario {name}: {key} is a ratio, got {level}")
    return levels


def _phase(name: str, table: dict[str, object], known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Phase:
    _keys(name, table, {"seconds", "activity", "host", "gpu", "all", "wobble", "period"})
    activity = str(table.get("activity"))
    if activity not in known:
        raise ConfigError(f"scenario {name}: unknown activity {activity!r}; known: {', '.join(sorted(known))}")
    host = {**known[activity]["host"], **_levels(name, "host", table.get("host", {}))}
    gpu = {**known[activity]["gpu"], **_levels(name, "gpu", table.get("all", {}))}
    singles = table.get("gpu", {})
    if not isinstance(singles, dict) or not all(key.isdecimal() for key in singles):
        raise ConfigError(f"scenario {name}: gpu must be a table keyed by the GPU's number")
    seconds = _number(name, "seconds", table["seconds"]) if "seconds" in table else math.inf
    if seconds == 0:
        raise ConfigError(f"scenario {name}: a phase of no seconds")
    return Phase(
        seconds=seconds,
        host=HostLevels(**host),
        gpu=GpuLevels(**gpu),
        others=tuple(
            (int(key), GpuLevels(**{**gpu, **_levels(name, "gpu", single)})) for key, single in singles.items()
        ),
        wobble=_number(name, "wobble", table.get("wobble", 0.03)),
        period=_number(name, "period", table.get("period", 7.0)) or 7.0,
    )


def _forever(phase: Phase) -> Phase:
    return Phase(math.inf, phase.host, phase.gpu, phase.others, phase.wobble, phase.period)


def fault(name: str, table: dict[str, object]) -> Fault:
    """A fault's table of a scenario file, or of a control file's segment."""
    _keys(name, table, {"kind", "at", "until", "gpu", "drive", "links", "per_second", "code", "event", "text"})
    kind = next((known for known in _FAULT_KINDS if known == table.get("kind")), None)
    if kind is None:
        raise ConfigError(f"scenario {name}: unknown fault {table.get('kind')!r}; known: {', '.join(_FAULT_KINDS)}")
    links = table.get("links", [])
    if not isinstance(links, list):
        raise ConfigError(f"scenario {name}: links must be a list")
    return Fault(
        kind=kind,
        at=_number(name, "at", table.get("at")),
        until=_number(name, "until", table["until"]) if "until" in table else math.inf,
        gpu=int(_number(name, "gpu", table.get("gpu", 0))),
        drive=int(_number(name, "drive", table.get("drive", 0))),
        links=tuple(int(_number(name, "links", link)) for link in links),
        per_second=_number(name, "per_second", table.get("per_second", 0)),
        code=int(_number(name, "code", table.get("code", 0))),
        event=bool(table.get("event", False)),
        text=str(table.get("text", "")),
    )


def _stop(name: str, table: dict[str, object]) -> Stop:
    _keys(name, table, {"scenario", "seconds"})
    return Stop(str(table.get("scenario")), _number(name, "seconds", table.get("seconds")) or 60.0)
