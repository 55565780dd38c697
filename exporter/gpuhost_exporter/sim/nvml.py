"""A simulated NVIDIA library with pynvml's functions: answers with pynvml's structures, raises its exceptions.

library = SimNvml("/run/gpuhost/simulation.json", SystemClock())
library.nvmlInit()
library.nvmlDeviceGetPowerUsage(library.nvmlDeviceGetHandleByIndex(0))    # 621034
"""

from __future__ import annotations

from typing import Any

import pynvml

from gpuhost_exporter.sim.hosts import Gpu, PciDevice
from gpuhost_exporter.sim.nvml_events import EventCalls
from gpuhost_exporter.sim.nvml_fields import FieldCalls, remapped_rows
from gpuhost_exporter.sim.nvml_library import referred
from gpuhost_exporter.sim.nvml_links import LinkCalls
from gpuhost_exporter.sim.nvml_profiling import ProfilingCalls

_IDLE_MHZ = 345
_CONTEXT_BYTES = 4 << 20  # what a driver without a client still holds of each GPU
_BANKS = 640
_WHOLE_GPU = 0xFFFFFFFF
_SRAM_STATUS_VERSION = 0x1000068


class SimNvml(EventCalls, FieldCalls, LinkCalls, ProfilingCalls):
    # The library and its devices

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._driver.version

    def nvmlSystemGetNVMLVersion(self) -> str:
        driver = self._driver
        return f"{driver.cuda // 1000}.{driver.version}"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self._driver.cuda

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self._driver.cuda

    def nvmlDeviceGetCount(self) -> int:
        self._initialised()
        return 0 if self._driver_fails() == 0 else len(self._host.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._initialised()
        if not 0 <= index < len(self._host.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._taken(self._host.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> Any:
        self._initialised()
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        for gpu in self._host.gpus:
            if gpu.uuid == text:
                return self._taken(gpu)
            for instance in gpu.mig:
                if instance.uuid == text:
                    return self._instance_handle(gpu, instance)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str | bytes) -> Any:
        self._initialised()
        text = (pciBusId.decode() if isinstance(pciBusId, bytes) else pciBusId).lower()
        for gpu in self._host.gpus:
            if text.removeprefix("0000") in (gpu.pci.bdf, gpu.pci.bdf.removeprefix("0000")):
                return self._taken(gpu)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _taken(self, gpu: Gpu) -> Any:
        self._refuse_lost(gpu)
        return self._handle(gpu)

    # What a device is

    def nvmlDeviceGetIndex(self, handle: Any) -> int:
        return self._gpu(handle).index

    def nvmlDeviceGetMinorNumber(self, handle: Any) -> int:
        return self._gpu(handle).index

    def nvmlDeviceGetName(self, handle: Any) -> str:
        found = self._instance(handle)
        if found is not None:
            return f"{self._model.name} MIG {found[1].profile}"
        self._gpu(handle)
        return self._model.name

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        found = self._instance(handle)
        return found[1].uuid if found is not None else self._gpu(handle).uuid

    def nvmlDeviceGetSerial(self, handle: Any) -> str:
        return self._gpu(handle).serial

    def nvmlDeviceGetVbiosVersion(self, handle: Any) -> str:
        self._gpu(handle)
        return self._model.vbios

    def nvmlDeviceGetArchitecture(self, device: Any) -> int:
        self._gpu(device)
        return self._model.architecture

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        self._gpu(handle)
        return self._model.compute_capability

    def nvmlDeviceGetMemoryBusWidth(self, device: Any) -> int:
        self._gpu(device)
        return self._model.memory_bus_bits

    def nvmlDeviceGetVirtualizationMode(self, handle: Any) -> int:
        self._gpu(handle)
        return self._host.virtualization

    def nvmlDeviceGetPciInfo_v3(self, handle: Any) -> Any:
        return _pci_info(self._gpu(handle).pci)

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return self.nvmlDeviceGetPciInfo_v3(handle)

    # Activity

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        state = self._ask(handle)
        if state.gpu.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        rates = pynvml.c_nvmlUtilization_t()
        rates.gpu = round(100 * state.moment.levels.graphics)
        rates.memory = round(90 * state.moment.levels.dram)
        return rates

    def nvmlDeviceGetEncoderUtilization(self, handle: Any) -> list[int]:
        """Percent, and the sampling period in microseconds: no scenario works on video."""
        if self._ask(handle).gpu.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [0, 167_000]

    def nvmlDeviceGetDecoderUtilization(self, handle: Any) -> list[int]:
        return self.nvmlDeviceGetEncoderUtilization(handle)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        if version and "nvmlDeviceGetMemoryInfo_v2" in self._driver.missing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        found = self._instance(handle)
        state = self._ask(handle) if found is None else self._answer(found[0])
        total, reserved = self._model.memory_bytes, self._model.reserved_bytes
        used = max(state.moment.memory_used_bytes, _CONTEXT_BYTES)
        if found is not None:
            share = found[1].memory_bytes / total
            total, reserved, used = found[1].memory_bytes, int(reserved * share), int(used * share)
        info = pynvml.c_nvmlMemory_v2_t() if version else pynvml.c_nvmlMemory_t()
        if version:
            info.version = version
            info.reserved = reserved
        info.total = total
        info.used = used if version else used + reserved
        info.free = total - reserved - used
        return info

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return int(1000 * self._ask(handle).moment.watts)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return int(1000 * self._ask(handle).moment.joules)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        state = self._ask(handle)
        if sensor != pynvml.NVML_TEMPERATURE_GPU:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return round(state.moment.celsius)

    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int, version: int = 0x100000C) -> int:
        if version != 0x100000C:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        return self.nvmlDeviceGetTemperature(handle, sensor)

    def nvmlDeviceGetMarginTemperature(self, handle: Any) -> int:
        return self._model.slowdown_celsius - round(self._ask(handle).moment.celsius)

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:  # noqa: A002 (pynvml's name)
        moment = self._ask(handle).moment
        if type == pynvml.NVML_CLOCK_MEM:
            return self._model.memory_clock_mhz
        return max(_IDLE_MHZ, moment.sm_clock_mhz)

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:  # noqa: A002
        self._gpu(handle)
        return self._model.memory_clock_mhz if type == pynvml.NVML_CLOCK_MEM else self._model.sm_clock_mhz

    def nvmlDeviceGetMaxCustomerBoostClock(self, handle: Any, type: int) -> int:  # noqa: A002
        return self.nvmlDeviceGetMaxClockInfo(handle, type)

    def nvmlDeviceGetApplicationsClock(self, handle: Any, type: int) -> int:  # noqa: A002
        limit = self._ask(handle).clock_limit_mhz
        return self._model.memory_clock_mhz if type == pynvml.NVML_CLOCK_MEM else limit

    def nvmlDeviceGetDefaultApplicationsClock(self, handle: Any, type: int) -> int:  # noqa: A002
        return self.nvmlDeviceGetMaxClockInfo(handle, type)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        """A reason that holds for a share of the time holds for that share of every second."""
        moment = self._ask(handle).moment
        within = moment.at % 1.0
        levels = moment.levels
        reasons = 0
        if levels.graphics == 0:
            reasons |= pynvml.nvmlClocksEventReasonGpuIdle
        if within < levels.power_capped:
            reasons |= pynvml.nvmlClocksEventReasonSwPowerCap
        if within < levels.thermal_slowdown:
            reasons |= pynvml.nvmlClocksEventReasonSwThermalSlowdown
        return reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        # On the class: an old library has this name only.
        return SimNvml.nvmlDeviceGetCurrentClocksEventReasons(self, handle)

    def nvmlDeviceGetPerformanceState(self, handle: Any) -> int:
        self._ask(handle)
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any) -> list[Any]:
        found = self._instance(handle)
        state = self._ask(handle) if found is None else self._answer(found[0])
        gpu, used = state.gpu, state.moment.memory_used_bytes
        pids = self._timeline.pids(gpu.index, state.moment.at)
        if not gpu.mig:
            return [_process(pid, used // len(pids), _WHOLE_GPU, _WHOLE_GPU) for pid in pids]
        return [
            _process(pid, used * instance.memory_bytes // self._model.memory_bytes, instance.gpu_instance, 0)
            for pid, instance in zip(pids, gpu.mig, strict=False)
            if found is None or found[1] == instance
        ]

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:
        return self.nvmlDeviceGetComputeRunningProcesses_v2(handle)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        if "nvmlDeviceGetComputeRunningProcesses_v3" in self._driver.missing:
            raise pynvml.NVMLLibraryMismatchError("nvmlDeviceGetComputeRunningProcesses")
        return self.nvmlDeviceGetComputeRunningProcesses_v2(handle)

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any) -> list[Any]:
        self._ask(handle)
        return []

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> list[Any]:
        if "nvmlDeviceGetGraphicsRunningProcesses_v3" in self._driver.missing:
            raise pynvml.NVMLLibraryMismatchError("nvmlDeviceGetGraphicsRunningProcesses")
        return self.nvmlDeviceGetGraphicsRunningProcesses_v3(handle)

    # Health

    def nvmlDeviceGetPersistenceMode(self, handle: Any) -> int:
        self._ask(handle)
        return 1

    def nvmlDeviceGetEccMode(self, handle: Any) -> list[int]:
        self._ask(handle)
        return [1, 1]

    def nvmlDeviceGetCurrentEccMode(self, handle: Any) -> int:
        return self.nvmlDeviceGetEccMode(handle)[0]

    def nvmlDeviceGetPendingEccMode(self, handle: Any) -> int:
        return self.nvmlDeviceGetEccMode(handle)[1]

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int:
        state = self._ask(handle)
        if state.gpu.mig and counterType == pynvml.NVML_VOLATILE_ECC:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        uncorrected = errorType == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return remapped_rows(state) if uncorrected and counterType == pynvml.NVML_AGGREGATE_ECC else 0

    def nvmlDeviceGetSramEccErrorStatus(self, device: Any, status: Any) -> int:
        self._ask(device)
        if referred(status).version != _SRAM_STATUS_VERSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        referred(status).bThresholdExceeded = 0
        return int(pynvml.NVML_SUCCESS)

    def nvmlDeviceGetRemappedRows(self, device: Any) -> tuple[int, int, int, int]:
        state = self._ask(device)
        if state.gpu.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return (0, remapped_rows(state), 0, 0)

    def nvmlDeviceGetRowRemapperHistogram(self, device: Any) -> Any:
        state = self._ask(device)
        if state.gpu.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        histogram = pynvml.c_nvmlRowRemapperHistogramValues()
        histogram.high = remapped_rows(state)
        histogram.max = _BANKS - histogram.high
        return histogram

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return 1000 * self._ask(handle).power_limit_watts

    def nvmlDeviceGetPowerManagementLimit(self, handle: Any) -> int:
        return self.nvmlDeviceGetEnforcedPowerLimit(handle)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Any) -> int:
        self._ask(handle)
        return 1000 * self._model.limit_watts

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: Any) -> list[int]:
        return [1000 * self._model.min_limit_watts, self.nvmlDeviceGetPowerManagementDefaultLimit(handle)]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> int:
        return self._ask(handle).gpu.pci.generation

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int:
        return self._ask(handle).gpu.pci.width

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int:
        pci = self._ask(handle).gpu.pci
        return min(pci.generation_device, pci.generation_slot)

    def nvmlDeviceGetGpuMaxPcieLinkGeneration(self, handle: Any) -> int:
        return self._ask(handle).gpu.pci.generation_device

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int:
        return self._ask(handle).gpu.pci.width

    def nvmlDeviceGetPcieReplayCounter(self, handle: Any) -> int:
        self._ask(handle)
        return 0


def _pci_info(pci: PciDevice) -> Any:
    info = pynvml.nvmlPciInfo_t()
    domain, bus, slot = pci.bdf.split(":")
    info.domain = int(domain, 16)
    info.bus = int(bus, 16)
    info.device = int(slot.partition(".")[0], 16)
    info.pciDeviceId = pci.device << 16 | pci.vendor
    info.pciSubSystemId = pci.subsystem[1] << 16 | pci.subsystem[0]
    info.busIdLegacy = pci.bdf.upper().encode()
    info.busId = f"0000{pci.bdf}".upper().encode()
    return info


def _process(pid: int, memory: int, gpu_instance: int, compute_instance: int) -> Any:
    return pynvml.nvmlFriendlyObject(
        {
            "pid": pid,
            "usedGpuMemory": memory,
            "gpuInstanceId": gpu_instance,
            "computeInstanceId": compute_instance,
        }
    )
