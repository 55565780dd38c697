"""GPM and MIG of the simulated library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from gpuhost_exporter.sim.hosts import Gpu, MigInstance
from gpuhost_exporter.sim.nvml_library import GpuState, Library
from gpuhost_exporter.sim.scenario import GpuLevels

_SAMPLE_ADDRESS = 0x7F30_0000_0000
_MEBIBYTE = 1 << 20
_FIRST_LINK = 62  # RX of link 0; TX follows, then link 1
_SLICES = 7
_INSTANCES = 7

_METRICS: dict[int, Callable[[GpuLevels], float]] = {
    1: lambda mean: 100 * mean.graphics,
    2: lambda mean: 100 * mean.sm,
    3: lambda mean: 100 * mean.occupancy,
    4: lambda mean: 20 * mean.sm,
    5: lambda mean: 100 * mean.tensor,
    7: lambda mean: 100 * mean.tensor,
    10: lambda mean: 100 * mean.dram,
    11: lambda mean: 100 * mean.fp64,
    12: lambda mean: 100 * mean.fp32,
    13: lambda mean: 100 * mean.fp16,
    20: lambda mean: mean.pcie_tx / _MEBIBYTE,
    21: lambda mean: mean.pcie_rx / _MEBIBYTE,
    60: lambda mean: mean.nvlink * 0.998 / _MEBIBYTE,
    61: lambda mean: mean.nvlink / _MEBIBYTE,
}


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    levels: GpuLevels
    totals: GpuLevels


class ProfilingCalls(Library):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._samples: dict[int, _Sample | None] = {}
        self._next_sample = _SAMPLE_ADDRESS

    def nvmlGpmQueryDeviceSupport(self, device: Any) -> Any:
        self._ask(device)
        support = pynvml.c_nvmlGpmSupport_t()
        support.version = pynvml.NVML_GPM_SUPPORT_VERSION
        support.isSupportedDevice = int(self._model.gpm)
        return support

    def nvmlGpmSampleAlloc(self) -> Any:
        self._initialised()
        self._next_sample += 0x100
        self._samples[self._next_sample] = None
        return ctypes.cast(self._next_sample, pynvml.c_nvmlGpmSample_t)

    def nvmlGpmSampleFree(self, gpmSample: Any) -> None:
        del self._samples[self._sample_address(gpmSample)]

    def nvmlGpmSampleGet(self, device: Any, gpmSample: Any) -> Any:
        state = self._ask(device)
        if not self._model.gpm or state.gpu.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self._take(state, gpmSample)

    def nvmlGpmMigSampleGet(self, device: Any, gpuInstanceId: int, gpmSample: Any) -> Any:
        state = self._ask(device)
        if gpuInstanceId not in {instance.gpu_instance for instance in state.gpu.mig}:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._take(state, gpmSample)

    def _take(self, state: GpuState, gpmSample: Any) -> Any:
        at = self._elapsed()
        levels, totals = self._timeline.gpu_levels(state.gpu.index, at)
        self._samples[self._sample_address(gpmSample)] = _Sample(at, levels, totals)
        return gpmSample

    def nvmlGpmMetricsGet(self, metricsGet: Any) -> Any:
        """Averages between the two samples; at a frozen time, the levels of the moment."""
        self._initialised()
        if metricsGet.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        old, new = self._sample(metricsGet.sample1), self._sample(metricsGet.sample2)
        seconds = new.at - old.at
        if seconds > 0:
            # Never below 0, as between samples of which the first is a moment ahead of a change of the control file.
            mean = GpuLevels._make(
                [max(0.0, end - begin) / seconds for begin, end in zip(old.totals, new.totals, strict=True)]
            )
        elif self._timeline.control.frozen is not None:
            mean = new.levels
        else:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        metrics = metricsGet.metrics
        for index in range(metricsGet.numMetrics):
            metric = metrics[index]
            value = self._metric(metric.metricId, mean)
            if value is None:
                metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            else:
                metric.nvmlReturn = pynvml.NVML_SUCCESS
                metric.value = value
        return metricsGet

    def _metric(self, metric: int, mean: GpuLevels) -> float | None:
        read = _METRICS.get(metric)
        if read is not None:
            return read(mean)
        links = self._model.links
        if _FIRST_LINK <= metric < _FIRST_LINK + 2 * links:
            return mean.nvlink / links / _MEBIBYTE
        return None

    def _sample(self, gpmSample: Any) -> _Sample:
        sample = self._samples[self._sample_address(gpmSample)]
        if sample is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return sample

    def _sample_address(self, gpmSample: Any) -> int:
        address = ctypes.cast(gpmSample, ctypes.c_void_p).value or 0
        if address not in self._samples:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return address

    def nvmlDeviceGetMigMode(self, device: Any) -> list[int]:
        state = self._ask(device)
        if self._model.compute_capability not in {(8, 0), (9, 0)}:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        mode = int(bool(state.gpu.mig))
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        return _INSTANCES if self._ask(device).gpu.mig else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        gpu = self._ask(device).gpu
        for instance in gpu.mig:
            if instance.position == index:
                return self._instance_handle(gpu, instance)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceIsMigDeviceHandle(self, device: Any) -> Any:
        return ctypes.c_uint(self._instance(device) is not None)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: Any) -> Any:
        return self._handle(self._mig(migDevice)[0])

    def nvmlDeviceGetGpuInstanceId(self, device: Any) -> int:
        return self._mig(device)[1].gpu_instance

    def nvmlDeviceGetComputeInstanceId(self, device: Any) -> int:
        self._mig(device)
        return 0

    def nvmlDeviceGetAttributes_v2(self, device: Any) -> Any:
        instance = self._mig(device)[1]
        attributes = pynvml.c_nvmlDeviceAttributes()
        attributes.multiprocessorCount = self._model.sm_count * instance.slices // _SLICES
        attributes.gpuInstanceSliceCount = instance.slices
        attributes.computeInstanceSliceCount = instance.slices
        attributes.memorySizeMB = instance.memory_bytes // _MEBIBYTE
        return attributes

    def nvmlDeviceGetAttributes(self, device: Any) -> Any:
        return self.nvmlDeviceGetAttributes_v2(device)

    def _mig(self, handle: Any) -> tuple[Gpu, MigInstance]:
        found = self._instance(handle)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return found
