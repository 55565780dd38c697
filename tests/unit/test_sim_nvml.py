"""The simulated NVML, asked as pynvml is: its structures, its exceptions, its traps."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml

UINT_MAX = 0xFFFFFFFF


class FakeClock:
    def __init__(self) -> None:
        self.at = 5000.0

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return 1.76e9 + self.at


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def start(tmp_path: Path, clock: FakeClock) -> Any:
    def make(host: str, scenario: str = "steady", frozen: float | None = None) -> SimNvml:
        path = str(tmp_path / "control.json")
        control.create(path, host, scenario, clock, frozen)
        library = SimNvml(path, clock)
        library.nvmlInit()
        return library

    return make


def code(call: Any, *arguments: Any) -> int:
    with pytest.raises(pynvml.NVMLError) as caught:
        call(*arguments)
    return int(caught.value.value)


def metrics(library: SimNvml, old: Any, new: Any, *ids: int) -> list[tuple[int, float]]:
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(ids)
    request.sample1, request.sample2 = old, new
    for index, metric in enumerate(ids):
        request.metrics[index].metricId = metric
    library.nvmlGpmMetricsGet(request)
    return [(request.metrics[index].nvmlReturn, request.metrics[index].value) for index in range(len(ids))]


def test_without_a_control_file_there_is_no_library(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(ConfigError):
        SimNvml(str(tmp_path / "none.json"), clock)


def test_a_host_without_a_driver_has_no_library(tmp_path: Path, clock: FakeClock) -> None:
    control.create(str(tmp_path / "c.json"), "nogpu", "idle", clock)
    library = SimNvml(str(tmp_path / "c.json"), clock)
    assert code(library.nvmlInit) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert code(library.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_a_call_after_shutdown_is_refused(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    library.nvmlShutdown()
    assert code(library.nvmlDeviceGetPowerUsage, handle) == pynvml.NVML_ERROR_UNINITIALIZED


def test_constants_and_structures_are_pynvmls_own(start: Any) -> None:
    library = start("h100x8")
    assert library.NVMLError is pynvml.NVMLError
    assert library.c_nvmlGpmMetricsGet_t is pynvml.c_nvmlGpmMetricsGet_t
    assert library.nvmlMemory_v2 == pynvml.nvmlMemory_v2


def test_a_function_that_is_not_simulated_is_one_an_old_library_lacks(start: Any) -> None:
    assert code(start("h100x8").nvmlDeviceGetFanSpeed, None) == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND


def test_a_name_that_the_binding_lacks_is_no_attribute(start: Any) -> None:
    with pytest.raises(AttributeError):
        _ = start("h100x8").nvmlDeviceGetColour


@pytest.mark.parametrize("handle", [None, 5, ctypes.c_void_p(), pynvml.c_nvmlDevice_t()])
def test_what_is_no_handle_is_an_invalid_argument(start: Any, handle: Any) -> None:
    assert code(start("h100x8").nvmlDeviceGetName, handle) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_gpu_is_found_by_index_uuid_and_place(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(2)
    uuid = library.nvmlDeviceGetUUID(handle)
    info = library.nvmlDeviceGetPciInfo(handle)
    assert info.busId == "00000000:52:00.0"
    assert (info.bus, info.pciDeviceId) == (0x52, 0x233010DE)
    for again in (
        library.nvmlDeviceGetHandleByUUID(uuid),
        library.nvmlDeviceGetHandleByPciBusId(info.busId),
    ):
        assert library.nvmlDeviceGetIndex(again) == 2
    assert code(library.nvmlDeviceGetHandleByIndex, 8) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code(library.nvmlDeviceGetHandleByUUID, "GPU-x") == pynvml.NVML_ERROR_NOT_FOUND


def test_energy_is_power_over_time(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "idle")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    before = library.nvmlDeviceGetTotalEnergyConsumption(handle)
    clock.at += 100
    watts = library.nvmlDeviceGetPowerUsage(handle) / 1000
    assert (library.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1000 == pytest.approx(100 * watts)


def test_used_memory_counts_the_drivers_share_only_in_the_old_form(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    old, new = library.nvmlDeviceGetMemoryInfo(handle), library.nvmlDeviceGetMemoryInfo(handle, 0x02000028)
    assert old.used == new.used + new.reserved
    assert new.free + new.used + new.reserved == new.total == old.total


def test_a_process_per_gpu_holds_its_memory(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(3)
    (process,) = library.nvmlDeviceGetComputeRunningProcesses(handle)
    assert process.pid == 4714
    assert process.usedGpuMemory == library.nvmlDeviceGetMemoryInfo(handle, 0x02000028).used


def test_an_idle_gpu_has_no_process_and_says_that_it_idles(start: Any) -> None:
    library = start("h100x8", "idle")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    assert library.nvmlDeviceGetComputeRunningProcesses(handle) == []
    assert library.nvmlDeviceGetCurrentClocksEventReasons(handle) & pynvml.nvmlClocksEventReasonGpuIdle
    assert library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 345


def test_throttling_shows_in_reason_clock_and_nanoseconds(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "thermal")
    handle = library.nvmlDeviceGetHandleByIndex(2)
    clock.at += 60
    assert library.nvmlDeviceGetCurrentClocksEventReasons(handle) == (pynvml.nvmlClocksEventReasonSwThermalSlowdown)
    assert library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1410
    (slowed,) = library.nvmlDeviceGetFieldValues(handle, [75])
    assert slowed.value.ullVal == pytest.approx(0.82 * 40 * 1e9)


def test_field_values_come_with_their_own_results_and_types(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    values = library.nvmlDeviceGetFieldValues(handle, [91, (164, 17), (164, 18), 83, 194, 9999])
    assert [(value.fieldId, value.scopeId, value.nvmlReturn) for value in values] == [
        (91, 0, 0), (164, 17, 0), (164, 18, 3), (83, 0, 0), (194, 0, 0), (9999, 0, 3),
    ]  # fmt: skip
    assert (values[0].value.uiVal, values[1].value.uiVal) == (18, 26562)
    assert (values[3].valueType, values[3].value.ullVal) == (3, library.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert (values[4].valueType, values[4].value.siVal) == (5, -2)
    assert isinstance(values[0], pynvml.c_nvmlFieldValue_t)


def test_link_counters_add_up_to_the_gpus(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    fields = [(138, UINT_MAX), *((138, link) for link in range(18))]
    total, *links = (value.value.ullVal for value in library.nvmlDeviceGetFieldValues(handle, fields))
    assert total - 18 <= sum(links) <= total


def test_gpm_averages_between_its_samples(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "nccl-hang")
    handle = library.nvmlDeviceGetHandleByIndex(1)
    assert library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice == 1
    old, new = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
    clock.at += 10
    library.nvmlGpmSampleGet(handle, old)
    clock.at += 20
    library.nvmlGpmSampleGet(handle, new)
    tensor, links, unknown = metrics(library, old, new, 5, 61, 399)
    # Half of the window lies before the hang.
    assert tensor == (0, pytest.approx(22.5, rel=0.05))
    assert links[1] * (1 << 20) == pytest.approx(75e9, rel=0.05)
    assert unknown[0] == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_gpm_needs_two_filled_samples_and_time_between_them(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    old, new = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
    assert code(metrics, library, old, new, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    library.nvmlGpmSampleGet(handle, old)
    library.nvmlGpmSampleGet(handle, new)
    assert code(metrics, library, old, new, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    library.nvmlGpmSampleFree(old)
    assert code(library.nvmlGpmSampleFree, old) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_at_a_frozen_time_gpm_tells_the_moment(start: Any) -> None:
    library = start("h100x8", frozen=30.0)
    handle = library.nvmlDeviceGetHandleByIndex(0)
    samples = [library.nvmlGpmSampleAlloc() for _ in range(2)]
    for sample in samples:
        library.nvmlGpmSampleGet(handle, sample)
    assert metrics(library, *samples, 1)[0] == (0, pytest.approx(96, abs=4))


@pytest.mark.parametrize(
    ("host", "index"), [("l40s", 0), ("mig", 0)], ids=["ada-has-no-gpm", "not-of-a-gpu-in-mig-mode"]
)
def test_gpm_is_refused_where_there_is_none(start: Any, host: str, index: int) -> None:
    library = start(host)
    handle = library.nvmlDeviceGetHandleByIndex(index)
    sample = library.nvmlGpmSampleAlloc()
    assert code(library.nvmlGpmSampleGet, handle, sample) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_mig_instances_have_handles_with_gaps_and_gpm_of_their_own(start: Any, clock: FakeClock) -> None:
    library = start("mig")
    parent = library.nvmlDeviceGetHandleByIndex(1)
    assert library.nvmlDeviceGetMigMode(parent) == [1, 1]
    assert library.nvmlDeviceGetMaxMigDeviceCount(parent) == 7
    assert code(library.nvmlDeviceGetMigDeviceHandleByIndex, parent, 1) == pynvml.NVML_ERROR_NOT_FOUND
    instance = library.nvmlDeviceGetMigDeviceHandleByIndex(parent, 2)
    assert library.nvmlDeviceGetName(instance) == "NVIDIA H100 80GB HBM3 MIG 2g.20gb"
    assert library.nvmlDeviceGetUUID(instance).startswith("MIG-")
    assert library.nvmlDeviceIsMigDeviceHandle(instance).value == 1
    assert library.nvmlDeviceGetMemoryInfo(instance).total == 20 * 10**9
    assert library.nvmlDeviceGetAttributes(instance).gpuInstanceSliceCount == 2
    assert len(library.nvmlDeviceGetComputeRunningProcesses(instance)) == 1
    assert len(library.nvmlDeviceGetComputeRunningProcesses(parent)) == 3
    above = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
    assert library.nvmlDeviceGetIndex(above) == 1
    old, new = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
    number = library.nvmlDeviceGetGpuInstanceId(instance)
    library.nvmlGpmMigSampleGet(parent, number, old)
    clock.at += 1
    library.nvmlGpmMigSampleGet(parent, number, new)
    assert metrics(library, old, new, 2)[0][1] > 50
    assert code(library.nvmlDeviceGetUtilizationRates, parent) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(library.nvmlDeviceGetPowerUsage, instance) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_gpu_outside_mig_mode_has_no_instances(start: Any) -> None:
    library = start("mig")
    handle = library.nvmlDeviceGetHandleByIndex(2)
    assert library.nvmlDeviceGetMaxMigDeviceCount(handle) == 0
    assert library.nvmlDeviceIsMigDeviceHandle(handle).value == 0
    assert library.nvmlDeviceGetUtilizationRates(handle).gpu > 90


def test_a_dead_link_degrades_the_fabric_and_hopper_hides_its_errors(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "nvlink-down")
    handle = library.nvmlDeviceGetHandleByIndex(3)
    clock.at += 30
    assert [library.nvmlDeviceGetNvLinkState(handle, link) for link in (16, 17)] == [1, 0]
    assert code(library.nvmlDeviceGetNvLinkState, handle, 18) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert library.nvmlDeviceGetNvLinkErrorCounter(handle, 17, pynvml.NVML_NVLINK_ERROR_DL_RECOVERY) == 0
    fields = library.nvmlDeviceGetFieldValues(handle, [(162, 17), (162, 16), (165, 17), 147])
    assert [fields[0].value.ullVal, *(value.value.uiVal for value in fields[1:])] == [18, 0, 0, 17]
    info = pynvml.c_nvmlGpuFabricInfo_v3_t()
    library.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    assert (info.state, info.status, info.healthMask & 3, info.healthSummary) == (3, 0, 1, 2)


def test_ampere_tells_link_errors_by_the_old_call_only(start: Any, clock: FakeClock) -> None:
    library = start("oldkernel")
    handle = library.nvmlDeviceGetHandleByIndex(3)
    assert library.nvmlDeviceGetNvLinkErrorCounter(handle, 11, pynvml.NVML_NVLINK_ERROR_DL_RECOVERY) == 0
    assert library.nvmlDeviceGetFieldValues(handle, [(162, 11)])[0].nvmlReturn == 3
    assert library.nvmlDeviceGetNvLinkVersion(handle, 0) == 4


def test_without_a_fabric_manager_links_are_up_and_peers_out_of_reach(start: Any) -> None:
    library = start("h100x8", "fabric-broken")
    one, other = (library.nvmlDeviceGetHandleByIndex(index) for index in (0, 1))
    assert library.nvmlDeviceGetNvLinkState(one, 0) == 1
    assert library.nvmlDeviceGetP2PStatus(one, other, 2) == pynvml.NVML_P2P_STATUS_NOT_SUPPORTED
    info = pynvml.c_nvmlGpuFabricInfoV_t()
    library.nvmlDeviceGetGpuFabricInfoV(one, ctypes.byref(info))
    assert info.state == 1


def test_a_structure_of_another_version_is_refused(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    info, status = pynvml.c_nvmlGpuFabricInfoV_t(), pynvml.c_nvmlEccSramErrorStatus_v1_t()
    info.version = status.version = 1
    refused = pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert code(library.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(info)) == refused
    assert code(library.nvmlDeviceGetSramEccErrorStatus, handle, ctypes.byref(status)) == refused


def test_peers_of_a_working_host_reach_each_other_over_nvlink(start: Any) -> None:
    library = start("h100x8")
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in (0, 1, 7)]
    assert library.nvmlDeviceGetP2PStatus(handles[0], handles[2], 2) == pynvml.NVML_P2P_STATUS_OK
    levels = [library.nvmlDeviceGetTopologyCommonAncestor(handles[0], other) for other in handles]
    assert levels == [
        pynvml.NVML_TOPOLOGY_INTERNAL,
        pynvml.NVML_TOPOLOGY_NODE,
        pynvml.NVML_TOPOLOGY_SYSTEM,
    ]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("nvmlDeviceGetMarginTemperature", ()),
        ("nvmlDeviceGetTemperatureV", (0,)),
        ("nvmlDeviceGetSramEccErrorStatus", (None,)),
        ("nvmlDeviceGetGpuFabricInfoV", (None,)),
        ("nvmlDeviceGetMemoryInfo", (0x02000028,)),
        ("nvmlGpmQueryDeviceSupport", ()),
        ("nvmlDeviceGetCurrentClocksEventReasons", ()),
    ],
)
def test_an_old_driver_lacks_what_came_later(start: Any, function: str, arguments: tuple[Any, ...]) -> None:
    library = start("oldkernel")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    assert code(getattr(library, function), handle, *arguments) == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND


def test_an_old_driver_has_the_older_names(start: Any) -> None:
    library = start("oldkernel")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    assert library.nvmlDeviceGetCurrentClocksThrottleReasons(handle) in (0, 4)
    assert library.nvmlDeviceGetTemperature(handle, 0) > 40
    with pytest.raises(pynvml.NVMLLibraryMismatchError):
        library.nvmlDeviceGetComputeRunningProcesses(handle)
    assert len(library.nvmlDeviceGetComputeRunningProcesses_v2(handle)) == 1


def test_a_virtual_machine_says_so(start: Any) -> None:
    library = start("vm")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    assert library.nvmlDeviceGetVirtualizationMode(handle) == 1
    assert library.nvmlDeviceGetNvLinkRemotePciInfo(handle, 0).busId == "FFFFFFFF:FF:FF.0"


def test_a_lost_gpu_answers_nothing_and_its_siblings_everything(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "gpu-lost")
    lost, sibling = (library.nvmlDeviceGetHandleByIndex(index) for index in (3, 4))
    clock.at += 21
    calls = (library.nvmlDeviceGetPowerUsage, library.nvmlDeviceGetName, library.nvmlDeviceGetUUID)
    assert {code(call, lost) for call in calls} == {pynvml.NVML_ERROR_GPU_IS_LOST}
    assert code(library.nvmlDeviceGetHandleByIndex, 3) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert library.nvmlDeviceGetCount() == 8
    assert library.nvmlDeviceGetPowerUsage(sibling) > 100_000


def test_a_gpu_is_back_after_its_reset_with_counters_from_0(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "gpu-reset")
    handle = library.nvmlDeviceGetHandleByIndex(3)
    before = library.nvmlDeviceGetTotalEnergyConsumption(handle)
    clock.at += 51
    assert library.nvmlDeviceGetTotalEnergyConsumption(handle) < 100_000 < before


def test_an_xid_reaches_the_waiting_event_set_once(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "xid-79")
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
    events = library.nvmlEventSetCreate()
    for handle in handles:
        library.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    assert code(library.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_TIMEOUT
    clock.at += 20.05
    data = library.nvmlEventSetWait_v2(events, 1)
    assert (data.eventType, data.eventData) == (pynvml.nvmlEventTypeXidCriticalError, 79)
    assert library.nvmlDeviceGetIndex(data.device) == 6
    assert code(library.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_TIMEOUT
    clock.at += 2
    for _ in range(2):
        assert code(library.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_RESET_REQUIRED
    assert code(library.nvmlDeviceGetPowerUsage, handles[6]) == pynvml.NVML_ERROR_RESET_REQUIRED


def test_events_before_the_set_was_made_never_come(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "nvlink-down")
    clock.at += 30
    events = library.nvmlEventSetCreate()
    handle = library.nvmlDeviceGetHandleByIndex(3)
    library.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    assert code(library.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_TIMEOUT
    library.nvmlEventSetFree(events)
    assert code(library.nvmlEventSetWait_v2, events, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_one_unsupported_event_type_registers_nothing(start: Any) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    supported = library.nvmlDeviceGetSupportedEventTypes(handle)
    events = library.nvmlEventSetCreate()
    refused = code(library.nvmlDeviceRegisterEvents, handle, supported | 0x8000, events)
    assert refused == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_a_wait_lasts_as_long_as_it_was_told(start: Any) -> None:
    library = start("h100x8")
    events = library.nvmlEventSetCreate()
    began = time.monotonic()
    assert code(library.nvmlEventSetWait_v2, events, 120) == pynvml.NVML_ERROR_TIMEOUT
    assert 0.12 <= time.monotonic() - began < 1


def test_a_hung_call_never_returns_and_other_gpus_answer(start: Any, clock: FakeClock) -> None:
    library = start("h100x8", "driver-hung")
    hung, sibling = (library.nvmlDeviceGetHandleByIndex(index) for index in (3, 4))
    clock.at += 21
    caller = threading.Thread(target=library.nvmlDeviceGetPowerUsage, args=(hung,), daemon=True)
    caller.start()
    caller.join(0.2)
    assert caller.is_alive()
    assert library.nvmlDeviceGetPowerUsage(sibling) > 100_000
    # A reader that is started anew can tell which GPU it must leave alone.
    assert library.nvmlDeviceGetUUID(library.nvmlDeviceGetHandleByIndex(3)).startswith("GPU-")


CRASHING = """
import resource, sys
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml

class Clock:
    at = 5000.0
    def now(self): return self.at
    def wall(self): return self.at

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path, clock = sys.argv[1], Clock()
control.create(path, "h100x8", "driver-crash", clock)
library = SimNvml(path, clock)
library.nvmlInit()
handle = library.nvmlDeviceGetHandleByIndex(0)
clock.at += 21
print("alive", flush=True)
library.nvmlDeviceGetPowerUsage(handle)
print("survived")
"""


def test_a_crash_kills_the_process_that_was_there_and_spares_the_next(tmp_path: Path, clock: FakeClock) -> None:
    path = str(tmp_path / "control.json")
    child = subprocess.run(
        [sys.executable, "-c", CRASHING, path],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert (child.returncode, child.stdout) == (-signal.SIGSEGV, b"alive\n")
    clock.at += 21
    later = SimNvml(path, clock)
    later.nvmlInit()
    assert later.nvmlDeviceGetPowerUsage(later.nvmlDeviceGetHandleByIndex(0)) > 100_000


def test_a_switch_of_the_scenario_reaches_a_running_library(start: Any, clock: FakeClock, tmp_path: Path) -> None:
    library = start("h100x8", "idle")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    energy = library.nvmlDeviceGetTotalEnergyConsumption(handle)
    clock.at += 10
    control.switch(str(tmp_path / "control.json"), "steady", clock)
    clock.at += 1
    assert library.nvmlDeviceGetPowerUsage(handle) > 500_000
    assert library.nvmlDeviceGetTotalEnergyConsumption(handle) > energy


def test_a_library_outlives_its_control_file(start: Any, clock: FakeClock, tmp_path: Path) -> None:
    library = start("h100x8")
    handle = library.nvmlDeviceGetHandleByIndex(0)
    (tmp_path / "control.json").unlink()
    clock.at += 10
    assert library.nvmlDeviceGetPowerUsage(handle) > 500_000


def test_a_second_of_calls_to_eight_gpus_costs_little_time(start: Any, clock: FakeClock) -> None:
    library = start("h100x8")
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
    best = 1.0
    for _ in range(5):
        clock.at += 1
        began = time.process_time()
        for handle in handles:
            for _ in range(60):
                library.nvmlDeviceGetPowerUsage(handle)
        best = min(best, time.process_time() - began)
    assert best < 0.006
