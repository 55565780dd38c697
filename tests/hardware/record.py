"""Records what NVML answers on this host and how long each call takes.

    python tests/hardware/record.py OUT.json [--seconds N] [--simulate HOST:SCENARIO]

First the exporter's own reader runs for N seconds, every GPU read in full each second as if it were busy; then
come questions that the reader does not ask. Needs nothing installed but nvidia-ml-py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "exporter")]  # as a program it finds only its own folder

from hardware.tape import Pseudonyms, Tape, latencies, layout  # noqa: E402

from gpuhost_exporter.clock import SystemClock  # noqa: E402
from gpuhost_exporter.sources import linux  # noqa: E402
from gpuhost_exporter.sources.nvml.activity import IDLE_SECONDS  # noqa: E402
from gpuhost_exporter.sources.nvml.calls import DriverDown, load  # noqa: E402
from gpuhost_exporter.sources.nvml.reader import Reader  # noqa: E402
from gpuhost_exporter.sources.nvml.readings import Activity, Batch, Inventory  # noqa: E402

FORMAT = 1
RARE_SUBJECTS = ("links", "health", "fabric", "mig")
RARE_READS = 6
ROUNDS = 5  # of the questions that the reader does not ask
ALL_LINKS = 0xFFFFFFFF
LINK_FIELDS = (*range(138, 142), *range(146, 149), *range(161, 168), *range(213, 223))
FIELDS = (
    *((field, 0) for field in (*range(74, 84), *range(142, 146), *range(173, 184), *range(185, 201), 230)),
    *((field, 0) for field in range(251, 274)),  # renumbered between drivers: which are these?
    *((field, 1) for field in range(185, 193)),  # power of the module
    *((field, scope) for field in LINK_FIELDS for scope in (0, ALL_LINKS)),
)
GPM_METRICS = (*range(1, 22), 60, 61)
CLOCK_DOMAINS = range(4)  # graphics, SM, memory, video
CLOCK_IDS = range(4)  # current, application target, application default, boost of the customer
PARAMETERS = Path("/proc/driver/nvidia/params")
FAILED = object()


class HurriedClock(SystemClock):
    """The system's clock, set forward by so much that an idle GPU is due for a full reading again."""

    __slots__ = ("_ahead",)

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return super().now() + self._ahead

    def hurry(self) -> None:
        self._ahead += IDLE_SECONDS


class Session:
    """The reader over a tape: how long each subject takes, and what came of it."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._clock = HurriedClock()
        self._reader = Reader(tape, self._clock, lambda _gpu, _call: None)
        self._took: dict[str, list[int]] = {}
        self._calls: dict[str, list[int]] = {}
        self._faults: Counter[str] = Counter()
        self._gpm: dict[str, str] = {}
        self._inventory: Inventory | None = None

    def run(self, seconds: int, period: float) -> None:
        """Raises DriverDown. An event thread waits on the library meanwhile, as in the exporter."""
        self._inventory = self._timed("open", self._reader.open)
        self._count(self._inventory)
        ending = threading.Event()
        events = threading.Thread(target=self._wait_events, args=(ending, period))
        events.start()
        try:
            for second in range(seconds):
                begin = time.monotonic()
                self._clock.hurry()
                self._read("activity")
                if second % max(1, seconds // RARE_READS) == 0:
                    for subject in RARE_SUBJECTS:
                        self._read(subject)
                time.sleep(max(0.0, begin + period - time.monotonic()))
        finally:
            ending.set()
            events.join()
            self._reader.close()

    def gpus(self, names: Pseudonyms) -> list[Any]:
        gpus = self._inventory.gpus if self._inventory else ()
        return [names.plain(asdict(gpu), "gpu") | {"gpm": self._gpm.get(gpu.uuid)} for gpu in gpus]

    def faults(self) -> dict[str, int]:
        return {key: self._faults[key] for key in sorted(self._faults)}

    def reads(self) -> dict[str, Any]:
        """By subject: whole readings of all GPUs, without what the tape itself takes."""
        return {
            subject: {"reads": len(took), "calls": [min(self._calls[subject]), max(self._calls[subject])]}
            | latencies(took)
            for subject, took in self._took.items()
        }

    def _read(self, subject: str) -> None:
        batch: Batch = self._timed(subject, lambda: self._reader.read(subject, frozenset()))
        self._count(batch)
        self._gpm |= {reading.uuid: reading.gpm for reading in batch.readings if isinstance(reading, Activity)}

    def _timed(self, subject: str, read: Any) -> Any:
        asked, noting, begin = self._tape.asked, self._tape.noting, time.perf_counter_ns()
        answer = read()
        took = time.perf_counter_ns() - begin - (self._tape.noting - noting)
        self._took.setdefault(subject, []).append(took)
        self._calls.setdefault(subject, []).append(self._tape.asked - asked)
        return answer

    def _count(self, answer: Batch | Inventory) -> None:
        self._faults.update(f"{fault.call}: {fault.kind} {fault.code}" for fault in answer.faults)

    def _wait_events(self, ending: threading.Event, period: float) -> None:
        while not ending.is_set():
            self._reader.wait_events(period)


class Questions:
    """What the reader does not ask and hardware should tell. One that fails costs only its own answer."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def ask(self) -> None:
        if self._one("nvmlInit") is FAILED:
            return
        count = self._one("nvmlDeviceGetCount")
        found = [self._one("nvmlDeviceGetHandleByIndex", index) for index in range(0 if count is FAILED else count)]
        handles = [handle for handle in found if handle is not FAILED]
        for handle in handles:
            for _ in range(ROUNDS):
                for name, *arguments in self._about():
                    self._one(name, handle, *arguments)
        self._gpm(handles)
        self._one("nvmlShutdown")

    def _about(self) -> Iterator[tuple[Any, ...]]:
        tape = self._tape
        yield from (("nvmlDeviceGetFieldValues", [field]) for field in FIELDS)
        yield "nvmlDeviceGetFieldValues", list(FIELDS)
        yield from (("nvmlDeviceGetNvLinkState", link) for link in range(tape.NVML_NVLINK_MAX_LINKS))
        for structure in ("c_nvmlGpuFabricInfo_v2_t", "c_nvmlGpuFabricInfo_v3_t"):
            if hasattr(tape, structure):
                yield "nvmlDeviceGetGpuFabricInfoV", byref(getattr(tape, structure)())
        if hasattr(tape, "nvmlProcessDetailList_v1"):
            yield "nvmlDeviceGetRunningProcessDetailList", tape.nvmlProcessDetailList_v1, 0
        yield from (("nvmlDeviceGetMigMode",), ("nvmlDeviceGetMaxMigDeviceCount",))
        yield from _about_clocks()

    def _gpm(self, handles: Sequence[Any]) -> None:
        first = [self._sample(handle) for handle in handles]
        if all(sample is FAILED for sample in first):
            return
        time.sleep(0.2)  # the library refreshes no faster than each 0.1 s
        for handle, old in zip(handles, first, strict=True):
            new = FAILED if old is FAILED else self._sample(handle)
            if new is not FAILED:
                for metrics in (GPM_METRICS, *((metric,) for metric in GPM_METRICS)):
                    self._one("nvmlGpmMetricsGet", self._comparison(old, new, metrics))
            for sample in (old, new):
                if sample is not FAILED:
                    self._one("nvmlGpmSampleFree", sample)

    def _sample(self, handle: Any) -> Any:
        self._one("nvmlGpmQueryDeviceSupport", handle)
        sample = self._one("nvmlGpmSampleAlloc")
        if sample is not FAILED and self._one("nvmlGpmSampleGet", handle, sample) is FAILED:
            self._one("nvmlGpmSampleFree", sample)
            return FAILED
        return sample

    def _comparison(self, old: Any, new: Any, metrics: Sequence[int]) -> Any:
        block = self._tape.c_nvmlGpmMetricsGet_t()
        block.version = self._tape.NVML_GPM_METRICS_GET_VERSION
        block.numMetrics = len(metrics)
        block.sample1, block.sample2 = old, new
        for row, metric in enumerate(metrics):
            block.metrics[row].metricId = metric
        return block

    def _one(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._tape, name)(*arguments)
        except (self._tape.NVMLError, self._tape.NVMLLibraryMismatchError, AttributeError, TypeError, ValueError):
            return FAILED  # the tape has it, unless this binding has no such function


def _about_clocks() -> Iterator[tuple[Any, ...]]:
    """Locked clocks have no getter: which of these shows them?"""
    for domain in CLOCK_DOMAINS:
        for name in ("ClockInfo", "MaxClockInfo", "ApplicationsClock", "DefaultApplicationsClock"):
            yield f"nvmlDeviceGet{name}", domain
        yield "nvmlDeviceGetMaxCustomerBoostClock", domain
        yield "nvmlDeviceGetMinMaxClockOfPState", domain, 0
        yield from (("nvmlDeviceGetClock", domain, number) for number in CLOCK_IDS)
    yield from (
        ("nvmlDeviceGetCurrentClocksEventReasons",),
        ("nvmlDeviceGetSupportedClocksEventReasons",),
        ("nvmlDeviceGetCurrentClockFreqs",),
        ("nvmlDeviceGetPerformanceModes",),
        ("nvmlDeviceGetPerformanceState",),
    )


def record(nv: Any, seconds: int, *, period: float = 1.0, simulated: str = "", parameters: Path = PARAMETERS) -> str:
    """The recording as text. Raises DriverDown where there is nothing to record."""
    names = Pseudonyms()
    reader, questions = Tape(nv, names), Tape(nv, names)
    session = Session(reader)
    session.run(seconds, period)
    Questions(questions).ask()
    answers = reader.document()
    calls = answers["calls"]
    document = {
        "format": FORMAT,
        "host": {
            "simulated": simulated,
            "driver": calls["nvmlSystemGetDriverVersion()"]["last"],
            "nvml": calls["nvmlSystemGetNVMLVersion()"]["last"],
            "binding": binding_version(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "uid": os.geteuid(),
            "capabilities": sorted(linux.effective_capabilities()),
            "profiling_admin_only": profiling_admin_only(parameters),
            "seconds": seconds,
        },
        "gpus": session.gpus(names),
        "reads": session.reads(),
        "faults": session.faults(),
        "reader": answers,
        "questions": questions.document(),
    }
    return layout(document) + "\n"


def binding_version() -> str | None:
    """nvidia-ml-py's; None for a pynvml.py that was merely copied."""
    try:
        return importlib.metadata.version("nvidia-ml-py")
    except importlib.metadata.PackageNotFoundError:
        return None


def profiling_admin_only(parameters: Path) -> int | None:
    """The driver's setting, from a line `RmProfilingAdminOnly: 1`; None where the driver does not tell."""
    try:
        text = parameters.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^RmProfilingAdminOnly: ([01])$", text, re.MULTILINE)
    return int(found[1]) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record what NVML answers on this host and how long it takes.")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long the reader runs (default 60)")
    parser.add_argument("--simulate", default="", metavar="HOST:SCENARIO", help="a simulated host in place of this one")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            nv = _simulated(options.simulate, folder) if options.simulate else load()
            text = record(nv, options.seconds, simulated=options.simulate)
    except DriverDown as down:
        print(f"nothing to record: {down.state}: {down}", file=sys.stderr)
        return 1
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out}: {len(text)} bytes")
    return 0


def _simulated(target: str, folder: str) -> Any:
    from gpuhost_exporter.sim import control
    from gpuhost_exporter.sim.nvml import SimNvml

    host, scenario = control.parse_target(target)
    clock = SystemClock()
    control.create(f"{folder}/control.json", host, scenario, clock)
    return SimNvml(f"{folder}/control.json", clock)


if __name__ == "__main__":
    sys.exit(main())
