"""What moves every second: what each failure costs, when a GPU is left in peace, and GPM's pairs of samples."""

from __future__ import annotations

import math
from dataclasses import fields as fields_of
from types import SimpleNamespace

import pynvml
import pytest

GIB = 1 << 30
ALL_LINKS = 0xFFFFFFFF
NOT_TOLD = (None, ())


def read(reader, clock, seconds=1.0):
    clock.seconds += seconds
    return reader.read("activity", frozenset())


def first(batch):
    return next(reading for reading in batch.readings if reading.uuid == "GPU-0")


def age(reader, clock):
    reading = first(read(reader, clock))
    return clock.seconds - reading.at


def absent(before, after):
    return {part.name for part in fields_of(before) if getattr(after, part.name) in NOT_TOLD} - {
        part.name for part in fields_of(before) if getattr(before, part.name) in NOT_TOLD
    }


@pytest.fixture
def warm(reader, clock):
    """A reader with one GPM sample behind it."""
    read(reader, clock)
    return reader


def test_everything_is_told_in_si_units(warm, clock):
    reading = first(read(warm, clock))
    assert reading.gpm == "ok"
    assert (reading.since, reading.at) == (1001.0, 1002.0)
    assert (reading.graphics_ratio, reading.sm_active_ratio, reading.tensor_ratio) == (0.9, 0.8, pytest.approx(0.35))
    assert (reading.pcie_tx_bytes_per_second, reading.pcie_rx_bytes_per_second) == (2 * 1048576, 3 * 1048576)
    assert (reading.utilization_ratio, reading.memory_busy_ratio) == (0.97, pytest.approx(0.4))
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (80 * GIB, 60 * GIB)
    assert reading.memory_reserved_bytes == GIB
    assert (reading.sm_clock_hertz, reading.memory_clock_hertz) == (1.755e9, 2.619e9)
    assert (reading.power_watts, reading.energy_joules) == (pytest.approx(412.345), 9000.5)
    assert (reading.core_celsius, reading.memory_celsius, reading.margin_celsius) == (61, 55, 26)
    assert dict(reading.throttled_seconds)["thermal"] == 1.0
    assert (reading.nvlink_tx_bytes, reading.nvlink_rx_bytes) == (1024_000, 2048_000)
    assert (reading.pcie_tx_bytes, reading.pcie_rx_bytes) == (5000, 6000)
    assert [(process.pid, process.memory_bytes) for process in reading.processes] == [(4242, 50 * GIB)]


MEMORY = {"memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "memory_reserved_bytes"}
COSTS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_ratio", "memory_busy_ratio"},
    "nvmlDeviceGetMemoryInfo": MEMORY,
    "nvmlDeviceGetClockInfo": {"sm_clock_hertz", "memory_clock_hertz"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_joules"},
    "nvmlDeviceGetTemperatureV": {"core_celsius"},
    "nvmlDeviceGetMarginTemperature": {"margin_celsius"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"clock_event_reasons"},
    "nvmlDeviceGetComputeRunningProcesses": {"processes"},
    "nvmlDeviceGetFieldValues": {
        "memory_celsius", "throttled_seconds", "nvlink_tx_bytes", "nvlink_rx_bytes", "pcie_tx_bytes", "pcie_rx_bytes",
    },
}  # fmt: skip


@pytest.mark.parametrize("code", [3, 4, 6, 7, 10, 13, 14, 17, 20, 21, 25, 27, 29, 999])
@pytest.mark.parametrize(("call", "cost"), COSTS.items(), ids=list(COSTS))
def test_a_failing_call_costs_its_own_values_only(nv, warm, clock, call, cost, code):
    before = first(read(warm, clock))
    nv.gpus[0].answers[call] = pynvml.NVMLError(code)
    batch = read(warm, clock)
    assert absent(before, first(batch)) == cost
    assert absent(before, batch.readings[1]) == set()
    quiet = code in (3, 6, 13, 21, 25)
    assert [fault.code for fault in batch.faults] == ([] if quiet else [code])


@pytest.mark.parametrize("code", [15, 16, 28])
@pytest.mark.parametrize("call", [*COSTS, "nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_a_lost_gpu_costs_its_reading_and_no_sibling(nv, warm, clock, call, code):
    if call == "nvmlGpmMetricsGet":
        nv._nvmlGpmMetricsGet = lambda block: (_ for _ in ()).throw(pynvml.NVMLError(code))
    else:
        nv.gpus[0].answers[call] = pynvml.NVMLError(code)
    batch = read(warm, clock)
    lost = {"GPU-0", "GPU-1"} if call == "nvmlGpmMetricsGet" else {"GPU-0"}
    assert {reading.uuid for reading in batch.readings} == {"GPU-0", "GPU-1"} - lost
    assert {(fault.uuid, fault.code, fault.call) for fault in batch.faults} == {(uuid, code, call) for uuid in lost}


GARBAGE = [
    ("nvmlDeviceGetPowerUsage", 4_000_000_000_000, {"power_watts"}),
    ("nvmlDeviceGetTemperatureV", 2**32 - 1, {"core_celsius"}),
    ("nvmlDeviceGetTotalEnergyConsumption", 2**64 - 1, {"energy_joules"}),
    ("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=101010, memory=40), {"utilization_ratio"}),
    ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=GIB, used=2 * GIB, free=0, reserved=0), MEMORY),
    ("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=2**64 - 1, used=0, free=0, reserved=0), MEMORY),
    ("nvmlDeviceGetComputeRunningProcesses", TypeError("N/A"), {"processes"}),
]


@pytest.mark.parametrize(("call", "answer", "cost"), GARBAGE)
def test_garbage_is_left_out_and_reported(nv, warm, clock, call, answer, cost):
    before = first(read(warm, clock))
    nv.gpus[0].answers[call] = answer
    batch = read(warm, clock)
    assert absent(before, first(batch)) == cost
    assert {fault.kind for fault in batch.faults} == {"malformed"}


FIELD_FAULTS = [
    (82, 0, 2**32 - 1, {"memory_celsius"}, ["malformed"]),
    (82, 0, math.nan, {"memory_celsius"}, ["malformed"]),
    (138, ALL_LINKS, 2**64 - 1, {"nvlink_tx_bytes"}, ["malformed"]),
    (138, ALL_LINKS, pynvml.NVMLError(3), {"nvlink_tx_bytes"}, []),
    (197, 0, pynvml.NVMLError(4), {"pcie_tx_bytes"}, ["denied"]),
    (197, 0, pynvml.NVMLError(999), {"pcie_tx_bytes"}, ["transient"]),
]


@pytest.mark.parametrize(("field", "scope", "answer", "cost", "kinds"), FIELD_FAULTS)
def test_one_bad_field_costs_itself(nv, warm, clock, field, scope, answer, cost, kinds):
    before = first(read(warm, clock))
    nv.gpus[0].fields[field, scope] = answer
    batch = read(warm, clock)
    assert absent(before, first(batch)) == cost
    assert [fault.kind for fault in batch.faults] == kinds


def test_a_lost_gpu_shows_in_a_field_too(nv, warm, clock):
    nv.gpus[0].fields[82, 0] = pynvml.NVMLError(15)
    batch = read(warm, clock)
    assert [reading.uuid for reading in batch.readings] == ["GPU-1"]
    assert [fault.kind for fault in batch.faults] == ["lost"]


def test_what_is_refused_is_not_asked_each_second(nv, reader, clock):
    for call in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlGpmSampleGet"):
        nv.gpus[0].answers[call] = pynvml.NVMLError(3)
        nv.gpus[1].answers[call] = pynvml.NVMLError(4)
    nv.gpus[0].fields.pop((197, 0))
    told = [[(fault.uuid, fault.kind, fault.code) for fault in read(reader, clock).faults] for _ in range(20)]
    assert nv.called["nvmlDeviceGetPowerUsage"] == nv.called["nvmlGpmSampleGet"] == 2
    assert told == [[("GPU-1", "denied", 4)] * 3] * 20, "a privilege that is missing is missing until it is there"
    asked = [arguments[1] for name, arguments in nv.log if name == "nvmlDeviceGetFieldValues"]
    assert [(197, 0) in wanted for wanted in asked[:2]] == [True, True]
    assert [(197, 0) in wanted for wanted in asked[2::2]] == [False] * 19


def test_the_fields_of_a_gpu_are_one_call(nv, reader, clock):
    read(reader, clock)
    assert nv.called["nvmlDeviceGetFieldValues"] == 2


def test_a_driver_that_stumbles_over_one_field_still_tells_the_others(nv, warm, clock):
    honest = nv._nvmlDeviceGetFieldValues

    def stumble(gpu, wanted):
        if (82, 0) in wanted:
            raise pynvml.NVMLError(2)
        return honest(gpu, wanted)

    before = first(read(warm, clock))
    nv._nvmlDeviceGetFieldValues = stumble
    assert absent(before, first(read(warm, clock))) == {"memory_celsius"}
    nv.called.clear()
    assert absent(before, first(read(warm, clock))) == {"memory_celsius"}
    assert nv.called["nvmlDeviceGetFieldValues"] == 2


OLDER = [
    ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", 58, "core_celsius", 58),
    (
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        8,
        "clock_event_reasons",
        8,
    ),
]


@pytest.mark.parametrize(("new", "old", "answer", "part", "value"), OLDER)
def test_an_older_driver_is_asked_by_the_older_name(nv, warm, clock, new, old, answer, part, value):
    nv.gpus[0].answers[new] = pynvml.NVMLError(13)
    nv.gpus[0].answers[old] = answer
    assert getattr(first(read(warm, clock)), part) == value


def test_memory_version_1_does_not_tell_the_reserve(nv, warm, clock):
    version_2 = nv.nvmlMemory_v2
    nv.gpus[0].answers["nvmlDeviceGetMemoryInfo"] = lambda version: (
        pynvml.NVMLError(13) if version == version_2 else SimpleNamespace(total=80 * GIB, used=61 * GIB, free=19 * GIB)
    )
    reading = first(read(warm, clock))
    assert (reading.memory_used_bytes, reading.memory_reserved_bytes) == (61 * GIB, None)


@pytest.mark.parametrize(
    ("architecture", "expected"), [(9, (1024_000, 2048_000)), (10, (77, 88))], ids=["hopper", "blackwell"]
)
def test_nvlink_5_counts_elsewhere(nv, clock, architecture, expected):
    from gpuhost_exporter.sources.nvml.reader import Reader

    nv.gpus[0].answers["nvmlDeviceGetArchitecture"] = architecture
    nv.gpus[0].fields |= {(202, ALL_LINKS): 77, (204, ALL_LINKS): 88}
    reader = Reader(nv, clock, lambda uuid, call: None)
    reader.open()
    reading = first(read(reader, clock))
    assert (reading.nvlink_tx_bytes, reading.nvlink_rx_bytes) == expected


def test_a_process_in_several_instances_is_one_process(nv, warm, clock):
    rows = [SimpleNamespace(pid=7, usedGpuMemory=GIB), SimpleNamespace(pid=7, usedGpuMemory=GIB)]
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses"] = [*rows, SimpleNamespace(pid=5, usedGpuMemory=None)]
    assert [(process.pid, process.memory_bytes) for process in first(read(warm, clock)).processes] == [
        (5, None),
        (7, 2 * GIB),
    ]


# When an idle GPU is left in peace


@pytest.fixture
def idle(nv, reader, clock):
    for gpu in nv.gpus:
        gpu.answers["nvmlDeviceGetComputeRunningProcesses"] = []
        gpu.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=0, memory=0)
        gpu.gpm[1] = 0.0
    read(reader, clock)
    read(reader, clock)
    nv.called.clear()
    return reader


def test_an_idle_gpu_is_read_every_15_seconds_its_processes_every_5(nv, idle, clock):
    assert [age(idle, clock) for _ in range(30)] == [*range(1, 15), *range(15), 0]
    assert nv.called["nvmlDeviceGetPowerUsage"] == 2 * 2
    assert nv.called["nvmlGpmSampleGet"] == 2 * 2
    assert nv.called["nvmlDeviceGetComputeRunningProcesses"] == 2 * 6


def test_a_gpu_in_use_is_read_every_time(nv, warm, clock):
    assert [age(warm, clock) for _ in range(5)] == [0] * 5


def test_a_process_that_starts_or_ends_is_seen_within_5_seconds_and_read_at_once(nv, idle, clock):
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(pid=9, usedGpuMemory=None)]
    readings = [first(read(idle, clock)) for _ in range(5)]
    assert [len(reading.processes) for reading in readings] == [0, 0, 0, 0, 1]
    assert readings[-1].at == clock.seconds
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses"] = []
    assert first(read(idle, clock)).processes == ()


@pytest.mark.parametrize(
    "answer", [pynvml.NVMLError(4), pynvml.NVMLError(3), []], ids=["denied", "not supported", "none that it may see"]
)
@pytest.mark.parametrize(
    ("utilization", "graphics"), [(97, 0.0), (0, 90.0)], ids=["by the driver's sampling", "by GPM"]
)
def test_a_gpu_that_works_is_read_every_time_though_no_process_shows(nv, idle, clock, answer, utilization, graphics):
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses"] = answer
    nv.gpus[0].answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=utilization, memory=0)
    nv.gpus[0].gpm[1] = graphics
    read(idle, clock, 15)
    assert [age(idle, clock) for _ in range(3)] == [0] * 3
    nv.gpus[0].answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=0, memory=0)
    nv.gpus[0].gpm[1] = 0.0
    read(idle, clock)
    assert [age(idle, clock) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("code", [3, 4, 999])
def test_processes_that_are_not_told_are_not_told_to_be_none(nv, warm, clock, code):
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses"] = pynvml.NVMLError(code)
    nv.gpus[0].answers["nvmlDeviceGetComputeRunningProcesses_v2"] = pynvml.NVMLError(code)
    clock.seconds += 5
    assert first(read(warm, clock)).processes is None


@pytest.mark.parametrize("field", [None, (82, 0)], ids=["a call", "a field"])
def test_what_an_idle_gpu_was_denied_when_it_was_read_is_denied_as_long_as_that_reading_is_told(nv, idle, clock, field):
    if field:
        nv.gpus[0].fields[field] = pynvml.NVMLError(4)
    else:
        nv.gpus[0].answers["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(4)
    read(idle, clock, 15)
    call = "nvmlDeviceGetFieldValues" if field else "nvmlDeviceGetPowerUsage"
    told = [[(fault.uuid, fault.call, fault.kind) for fault in read(idle, clock).faults] for _ in range(20)]
    assert told == [[("GPU-0", call, "denied")]] * 20


# GPM


def test_the_first_sample_only_warms_up(reader, clock):
    reading = first(read(reader, clock))
    assert (reading.gpm, reading.sm_active_ratio, reading.since) == ("warming_up", None, reading.at)


def test_samples_less_than_100_ms_apart_are_not_taken(nv, warm, clock):
    before = first(read(warm, clock))
    nv.called.clear()
    assert first(read(warm, clock, 0.05)) == before
    assert not nv.called


def test_a_sample_older_than_a_minute_is_discarded(warm, clock):
    reading = first(read(warm, clock, 61))
    assert (reading.gpm, reading.graphics_ratio, reading.since) == ("warming_up", None, reading.at)
    assert first(read(warm, clock)).gpm == "ok"


STATES = [
    ("nvmlGpmQueryDeviceSupport", SimpleNamespace(isSupportedDevice=0), [0, 0], "unsupported"),
    ("nvmlGpmQueryDeviceSupport", pynvml.NVMLError(13), [0, 0], "unsupported"),
    ("nvmlGpmSampleGet", pynvml.NVMLError(3), [0, 0], "unsupported"),
    ("nvmlGpmSampleGet", pynvml.NVMLError(3), [1, 1], "mig"),
    ("nvmlGpmSampleGet", pynvml.NVMLError(4), [0, 0], "permission"),
    ("nvmlGpmSampleGet", pynvml.NVMLError(999), [0, 0], "error"),
]


@pytest.mark.parametrize(("call", "answer", "mig", "state"), STATES)
def test_the_state_says_why_there_are_no_profiling_ratios(nv, reader, clock, call, answer, mig, state):
    nv.gpus[0].answers |= {call: answer, "nvmlDeviceGetMigMode": mig}
    for _ in range(3):
        reading = first(read(reader, clock))
    assert (reading.gpm, reading.sm_active_ratio, reading.pcie_tx_bytes_per_second) == (state, None, None)
    assert reading.utilization_ratio == 0.97


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [(math.nan, ["malformed"]), (math.inf, ["malformed"]), (1e9, ["malformed"]), (pynvml.NVMLError(3), [])],
    ids=["nan", "inf", "absurd", "unsupported"],
)
def test_one_metric_without_a_value_costs_itself(nv, warm, clock, answer, kinds):
    nv.gpus[0].gpm[5] = answer
    batch = read(warm, clock)
    assert (first(batch).gpm, first(batch).tensor_ratio, first(batch).graphics_ratio) == ("ok", None, 0.9)
    assert [fault.kind for fault in batch.faults] == kinds


def test_rounding_above_100_percent_is_cut(nv, warm, clock):
    nv.gpus[0].gpm[1] = 100.4
    assert first(read(warm, clock)).graphics_ratio == 1.0


def test_every_sample_is_freed_exactly_once(nv, warm, clock):
    read(warm, clock)
    warm.close()
    assert [freed for freed, _ in nv.samples.values()] == [1, 1, 1, 1]
    assert nv.log[-1][0] == "nvmlShutdown"


def test_closing_again_after_a_failure_frees_nothing_twice(nv, warm):
    honest = nv._nvmlGpmSampleFree

    def free_and_fail(sample):
        honest(sample)
        raise pynvml.NVMLError(18)

    nv._nvmlGpmSampleFree = free_and_fail
    for _ in range(3):
        warm.close()
    assert max(freed for freed, _ in nv.samples.values()) == 1
