"""Sequential writing and reading in a folder that the user names, by fio, past the page cache.

    $ fio --output-format=json ...                  notes may come before the document
    {"jobs": [{"error": 0, "write": {"io_bytes": 536870912, "bw_bytes": 2191309844, ...}, "read": {...}}]}

Files are made in a folder of their own, which is removed; a raw device is never opened. Reading goes over what was
written just now, several times what drives keep in their own memory.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from gpuhost_exporter.collectors import filesystem, storage
from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources import tools
from gpuhost_exporter.verify.live import Live
from gpuhost_exporter.verify.measurement import ROOM_TO_HANG, Asked, Failed, Measurement, Planned, Waiting, attempt
from gpuhost_exporter.verify.result import Mode, Result, Verdict
from gpuhost_exporter.verify.thresholds import Threshold, judge

CHECKS = {"write": "storage write", "read": "storage read"}
_NAME = "gpuhost"
_JOBS = 8
_MIB = 1 << 20
_LEAST = 1 << 30  # bytes in all: less would measure a cache
_MOST = {"quick": 64 << 30, "full": 512 << 30}
_SECONDS = {"quick": 15.0, "full": 120.0}
_DOCUMENT = re.compile(r"^\{$", re.MULTILINE)


def plan(asked: Asked, live: Live, mode: Mode) -> list[Planned]:
    why = _obstacle(asked.folder)
    if why or asked.folder is None:
        return [Result(check, "", "skipped", why=why) for check in CHECKS.values()]
    folder = tools.real_path(asked.folder)
    return [Measurement("fio", 2 * _SECONDS[mode], lambda waiting: _measure(folder, live, mode, waiting))]


def parse(text: str, direction: str) -> float:
    """Bytes a second of all jobs together, from fio's JSON. Raises Malformed, Failed where a job could not work."""
    try:
        begin = _DOCUMENT.search(text)
        document = json.loads(text[begin.start() :] if begin else text)
        job = document["jobs"][0]
        code, rate = job["error"], float(job[direction]["bw_bytes"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, OverflowError) as error:
        raise Malformed(f"fio: expected its JSON, got {text[:40]!r}") from error
    if code == errno.ENOSPC:
        raise tools.Full("fio: no space left on the file system")
    if code:
        raise Failed(f"fio: {os.strerror(code) if isinstance(code, int) else code}")
    if not (math.isfinite(rate) and rate > 0):
        raise Malformed(f"fio: expected a rate, got {rate}")
    return rate


def device_of(latest: Latest, folder: str) -> str:
    """The array or drive below the folder, "" where the host does not tell."""
    mounts = {labels[0]: labels for labels in latest.rows(filesystem.INFO)}
    inside = [point for point in mounts if folder == point or folder.startswith(point.rstrip("/") + "/")]
    if not inside:
        return ""
    _, device, _, array = mounts[max(inside, key=len)]
    return array or device


def _obstacle(folder: str | None) -> str:
    if folder is None:
        return "name a folder on the array: --directory DIR"
    if not tools.find("fio"):
        return "fio is not installed"
    if not tools.is_folder(folder):
        return f"{folder}: not a folder"
    return ""


def _measure(folder: str, live: Live, mode: Mode, waiting: Waiting) -> Sequence[Result]:
    device = device_of(live.latest, folder)
    results: list[Result] = []
    with attempt(CHECKS["write"], device, results), tools.folder_below(folder) as made:
        size = min(tools.free_bytes(folder) // 2, _MOST[mode])
        if size < _LEAST:
            raise tools.Full(f"{folder}: {size * 2 / 1e9:.1f} GB free, 2.1 needed")
        each = size // _JOBS // _MIB * _MIB
        written = _fio(made, "write", each, mode, waiting)
        results.append(_result(live, device, "write", written))
        with attempt(CHECKS["read"], device, results):
            # What lies beyond the least written file would be laid out first, or be a hole, which reads fast.
            there = min(tools.allocated_bytes(made, _NAME), default=0) // _MIB * _MIB
            if not there:
                raise Absent("fio left nothing to read")
            results.append(_result(live, device, "read", _fio(made, "read", there, mode, waiting)))
    if len(results) == 1:
        results.append(Result(CHECKS["read"], device, "skipped", why="there was nothing written to read"))
    return results


def _fio(folder: str, direction: str, size: int, mode: Mode, waiting: Waiting) -> float:
    command = (
        "fio",
        f"--name={_NAME}",
        f"--directory={folder}",
        f"--rw={direction}",
        "--ioengine=libaio",
        "--direct=1",
        "--bs=1M",
        "--iodepth=32",
        f"--numjobs={_JOBS}",
        "--thread",  # processes would leave the session in which they can be ended together
        f"--size={size}",
        "--fallocate=none",
        "--time_based",
        f"--runtime={_SECONDS[mode]:.0f}",
        "--group_reporting",
        "--output-format=json",
    )
    answer = tools.run(command, _SECONDS[mode] * ROOM_TO_HANG, waiting)
    if answer.status != 0 and not _DOCUMENT.search(answer.output):
        raise Failed(f"fio ended with {answer.status}: {answer.complaint()}")
    return parse(answer.output, direction)


def _result(live: Live, device: str, direction: str, rate: float) -> Result:
    good, poor = (live.latest.value(storage.TARGET, device, direction, band) for band in ("good", "poor"))
    threshold = Threshold(1.0, poor / good) if good and poor else None
    result = judge(CHECKS[direction], device, rate, "bytes_per_second", good, threshold)
    member = live.limiting(device)
    if member:
        # Told without a target too: the array's other drives could do more.
        verdict: Verdict = "warn" if result.verdict == "pass" else result.verdict
        short = f": {result.why}" if result.verdict == "fail" else ""
        return replace(result, verdict=verdict, why=f"waits for {member}{short}")
    return result
