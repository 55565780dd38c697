"""What GPUs deliver: copies by nvbandwidth, all-reduce by nccl-tests.

    $ nvbandwidth -j -t host_to_device_memcpy_ce
    {"nvbandwidth": {"testcases": [{"name": "host_to_device_memcpy_ce", "status": "Passed",
        "bandwidth_matrix": [["55.1", "55.2"]], "sum": 110.3}]}}          cells are texts, "N/A" where there is none

    $ all_reduce_perf -b 1G -e 4G -f 2 -g 8
    #       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
      4294967296    1073741824     float     sum      -1    15873  270.58  473.52      0    15861  270.79  473.88      0

Rates are in 1e9 bytes a second. nccl-tests' average over all sizes counts small ones: the largest is what counts here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuhost_exporter.collectors import driver, gpu_health, pcie, targets
from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.findings import ranges
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources import tools
from gpuhost_exporter.targets import Targets
from gpuhost_exporter.verify import thresholds
from gpuhost_exporter.verify.measurement import ROOM_TO_HANG, Measurement, Planned, Waiting, attempt, succeeded
from gpuhost_exporter.verify.result import Mode, Result
from gpuhost_exporter.verify.thresholds import Threshold, judge

# Check and threshold by nvbandwidth's name of the test.
COPIES = {
    "host_to_device_memcpy_ce": ("host to GPU", "host_to_device"),
    "device_to_host_memcpy_ce": ("GPU to host", "device_to_host"),
    "device_to_device_memcpy_read_ce": ("GPU to GPU", "peer"),
    "device_local_copy": ("GPU memory copy", "memory"),
}
ALL_REDUCE = "NCCL all-reduce"
CHECKS = (*(check for check, _ in COPIES.values()), ALL_REDUCE)
# As NVML counts, and all of them: what the caller's shell or scheduler leaves visible is not the host.
_IN_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": None}
_COPY_SECONDS = {"quick": 30.0, "full": 90.0}
_REDUCE_SECONDS = {"quick": 15.0, "full": 90.0}
_REDUCE = {"quick": ("-b", "1G", "-e", "4G", "-n", "20"), "full": ("-b", "8", "-e", "8G", "-n", "50")}
_REDUCE_GPUS = 8  # that the thresholds are for
_COUNTED_TWICE = 1.05  # of the memory's bandwidth: no copy can move more


@dataclass(frozen=True, slots=True)
class Reduced:
    """Bytes a second on each GPU's links, and whether every sum was right."""

    rate: float
    right: bool


def plan(latest: Latest, known: Targets, mode: Mode) -> list[Planned]:
    count = len(latest.rows(driver.GPU_UP))
    planned: list[Planned] = []
    if not count:
        return [Result(check, "", "skipped", why="no GPU") for check in CHECKS]
    if tools.find("nvbandwidth"):
        planned.append(Measurement("nvbandwidth", _COPY_SECONDS[mode], lambda waiting: _copies(latest, mode, waiting)))
    else:
        planned += [Result(check, "", "skipped", why="nvbandwidth is not installed") for check, _ in COPIES.values()]
    if count < 2:
        planned.append(Result(ALL_REDUCE, "", "skipped", why="one GPU only"))
    elif tools.find("all_reduce_perf"):
        planned.append(
            Measurement("nccl-tests", _REDUCE_SECONDS[mode], lambda waiting: _all_reduce(latest, known, mode, waiting))
        )
    else:
        planned.append(Result(ALL_REDUCE, "", "skipped", why="nccl-tests (all_reduce_perf) is not installed"))
    return planned


def parse_copies(text: str) -> dict[str, tuple[str, tuple[tuple[float | None, ...], ...]]]:
    """Status and matrix in bytes a second by name of the test. Raises Malformed."""
    try:
        document = json.loads(text[text.index("{") :])["nvbandwidth"]
        return {
            str(case["name"]): (
                str(case["status"]),
                tuple(tuple(_cell(cell) for cell in row) for row in case.get("bandwidth_matrix", ())),
            )
            for case in document["testcases"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Malformed(f"nvbandwidth: expected its JSON, got {text[:40]!r}") from error


def parse_all_reduce(text: str) -> Reduced:
    """The largest size's line. Raises Malformed."""
    found: tuple[float, Reduced] | None = None
    for line in text.splitlines():
        words = line.split()
        if len(words) < 12 or not words[0].isdecimal():
            continue
        try:
            size, rates = float(words[0]), (float(words[-6]), float(words[-2]))
        except (ValueError, OverflowError):
            continue
        wrong = {words[-5], words[-1]} - {"0", "N/A", "0e+00"}
        if all(math.isfinite(rate) and rate > 0 for rate in rates) and (found is None or size >= found[0]):
            found = size, Reduced(max(rates) * 1e9, not wrong)
    if found is None:
        raise Malformed(f"nccl-tests: expected a line a size, got {text[:40]!r}")
    return found[1]


def memory_traffic(copied: float, peak: float | None) -> float:
    """A copy reads and writes each byte. A build that counts both already would exceed what the memory can do."""
    return copied if peak and 2 * copied > peak * _COUNTED_TWICE else 2 * copied


def _copies(latest: Latest, mode: Mode, waiting: Waiting) -> Sequence[Result]:
    results: list[Result] = []
    done: Mapping[str, tuple[str, tuple[tuple[float | None, ...], ...]]] = {}
    shares = thresholds.load()
    first = next(iter(COPIES.values()))[0]
    with attempt(first, "", results):
        command = ("nvbandwidth", "-j", "-t", *COPIES)
        answer = tools.run(command, _COPY_SECONDS[mode] * ROOM_TO_HANG, waiting, _IN_ORDER)
        done = parse_copies(succeeded("nvbandwidth", answer))
    for name, (check, threshold) in COPIES.items():
        status, matrix = done.get(name, ("not run", ()))
        figures = _per_gpu(matrix, between=threshold == "peer")
        if status == "Error":
            results.append(Result(check, "", "fail", why="nvbandwidth reports an error"))
        if figures:
            seen = len(matrix) if len(matrix) > 1 else len(matrix[0])
            results += _of_each(latest, check, threshold, shares[threshold], figures, seen)
        elif status != "Error" and (results == [] or results[0].check != check):
            results.append(_without_figures(latest, check, threshold, status if done else ""))
    return results


@dataclass(frozen=True, slots=True)
class _Copied:
    """Of one GPU: its slowest copy, None without any, and the GPUs with which there was none."""

    rate: float | None
    without: tuple[str, ...] = ()


def _per_gpu(matrix: Sequence[Sequence[float | None]], *, between: bool) -> dict[int, _Copied]:
    """A row a GPU where it is between GPUs; else one row for all, a column a GPU. Empty without any figure."""
    if not any(cell is not None for row in matrix for cell in row):
        return {}
    if not between:
        return {place: _Copied(cell) for place, cell in enumerate(matrix[0])}
    found = {}
    for place, row in enumerate(matrix):
        cells = [cell for cell in row if cell is not None]
        without = tuple(str(other) for other, cell in enumerate(row) if cell is None and other != place)
        found[place] = _Copied(min(cells, default=None), without)
    return found


def _without_figures(latest: Latest, check: str, name: str, status: str) -> Result:
    """Left out for the host's own reasons, unless GPUs with NVLink cannot reach each other."""
    linked = name == "peer" and any(latest.rows(targets.NVLINK_BANDWIDTH).values())
    several = len(latest.rows(driver.GPU_UP)) > 1 and not any(latest.rows(gpu_health.MIG_ENABLED).values())
    if status not in ("", "not run") and linked and several:
        return Result(check, "", "fail", why=f"nvbandwidth: {status.lower()}, though the GPUs have NVLink")
    return Result(
        check, "", "skipped", why=f"nvbandwidth: {status.lower()}" if status else "nvbandwidth gave no result"
    )


def _of_each(
    latest: Latest, check: str, name: str, threshold: Threshold, found: Mapping[int, _Copied], seen: int
) -> Iterator[Result]:
    """A result for every GPU that the host has. A figure that is not there is not one that is good."""
    rows = latest.rows(driver.GPU_UP)
    for labels, up in rows.items():
        device = f"GPU {labels[0]}"
        copied = found.get(int(labels[0]), _Copied(None)) if labels[0].isdecimal() else _Copied(None)
        linked = name == "peer" and latest.value(targets.NVLINK_BANDWIDTH, *labels)
        if copied.rate is not None:
            result = _copied(latest, check, name, threshold, labels, copied.rate)
            if copied.without:
                why = "; ".join(filter(None, (result.why, f"no copy to GPUs {ranges(copied.without)}")))
                result = replace(result, verdict="fail" if linked else result.verdict, why=why)
            yield result
        elif not up:
            yield Result(check, device, "skipped", why="the GPU does not answer")
        elif latest.value(gpu_health.MIG_ENABLED, *labels):
            yield Result(check, device, "skipped", why="partitioned (MIG)")
        elif copied.without and not linked:
            yield Result(check, device, "skipped", why="no GPU can be reached from it directly")
        else:
            told = f"it sees {seen} of {len(rows)} GPUs" if seen < len(rows) else "no figure of this GPU"
            yield Result(check, device, "fail", why=f"nvbandwidth: {told}")


def _copied(
    latest: Latest, check: str, name: str, threshold: Threshold, labels: tuple[str, ...], rate: float
) -> Result:
    reference: float | None
    if name == "memory":
        reference = latest.value(targets.MEMORY_BANDWIDTH, *labels)
        rate = memory_traffic(rate, reference)
    elif name == "peer":
        both_ways = latest.value(targets.NVLINK_BANDWIDTH, *labels)
        reference = both_ways / 2 if both_ways else None
    else:
        reference = thresholds.pcie_rate(
            latest.value(pcie.GENERATION_MAX, *labels, "link"), latest.value(pcie.WIDTH_MAX, *labels, "link")
        )
    return judge(check, f"GPU {labels[0]}", rate, "bytes_per_second", reference, threshold)


def _all_reduce(latest: Latest, known: Targets, mode: Mode, waiting: Waiting) -> Sequence[Result]:
    results: list[Result] = []
    with attempt(ALL_REDUCE, "", results):
        gpus = tuple(latest.rows(driver.GPU_UP))
        command = ("all_reduce_perf", *_REDUCE[mode], "-f", "2", "-g", str(len(gpus)))
        answer = tools.run(command, _REDUCE_SECONDS[mode] * ROOM_TO_HANG, waiting, _IN_ORDER)
        reduced = parse_all_reduce(succeeded("all_reduce_perf", answer))
        product = known.product(latest.facts(driver.GPU_INFO, *gpus[0]).get("name", ""))
        generation = product.nvlink_generation if product else None
        both_ways = latest.value(targets.NVLINK_BANDWIDTH, *gpus[0])
        threshold = thresholds.load().get(f"all_reduce_nvlink{generation}") if len(gpus) == _REDUCE_GPUS else None
        reference = both_ways / 2 if both_ways else None
        result = judge(ALL_REDUCE, "", reduced.rate, "bytes_per_second", reference, threshold)
        if not reduced.right:
            result = Result(
                ALL_REDUCE, "", "fail", why="sums came out wrong", value=reduced.rate, unit="bytes_per_second"
            )
        results.append(result)
    return results


def _cell(cell: object) -> float | None:
    if not isinstance(cell, (str, int, float)) or cell == "N/A":
        return None
    rate = float(cell) * 1e9
    return rate if math.isfinite(rate) and rate > 0 else None
