"""A scripted NVML binding: pynvml's functions and structures over plain dictionaries, raising pynvml's errors."""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, field
from itertools import count as count_up
from types import FunctionType, SimpleNamespace
from typing import Any

import pynvml
import pytest

from gpuhost_exporter.sources.nvml.reader import Reader

ALL_LINKS = 0xFFFFFFFF
GIB = 1 << 30


def error(code):
    return pynvml.NVMLError(code)


def default_answers():
    """An idle H100 SXM, by function name; a callable gets the arguments after the handle."""
    return {
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:1A:00.0"),
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetSerial": "1650522000001",
        "nvmlDeviceGetVbiosVersion": "96.00.5E.00.01",
        "nvmlDeviceGetArchitecture": 9,
        "nvmlDeviceGetCudaComputeCapability": (9, 0),
        "nvmlDeviceGetMemoryBusWidth": 5120,
        "nvmlDeviceGetMaxClockInfo": lambda clock: {1: 1980, 2: 2619}[clock],
        "nvmlDeviceGetVirtualizationMode": 0,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
        "nvmlDeviceGetMemoryInfo": lambda version: SimpleNamespace(
            total=80 * GIB, used=60 * GIB, free=19 * GIB, **({"reserved": GIB} if version else {})
        ),
        "nvmlDeviceGetClockInfo": lambda clock: {1: 1755, 2: 2619}[clock],
        "nvmlDeviceGetPowerUsage": 412_345,
        "nvmlDeviceGetTotalEnergyConsumption": 9_000_500,
        "nvmlDeviceGetTemperatureV": 61,
        "nvmlDeviceGetMarginTemperature": 26,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=4242, usedGpuMemory=50 * GIB)],
        "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=1),
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetTotalEccErrors": lambda kind, counter: 10 * kind + counter,
        "nvmlDeviceGetRemappedRows": (1, 2, 0, 0),
        "nvmlDeviceGetRowRemapperHistogram": SimpleNamespace(max=637, high=2, partial=1, low=0, none=0),
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetEnforcedPowerLimit": 650_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
        "nvmlDeviceGetPowerManagementLimitConstraints": [200_000, 700_000],
        "nvmlDeviceGetApplicationsClock": 1980,
        "nvmlDeviceGetDefaultApplicationsClock": 1980,
        "nvmlDeviceGetCurrPcieLinkGeneration": 4,
        "nvmlDeviceGetCurrPcieLinkWidth": 16,
        "nvmlDeviceGetMaxPcieLinkGeneration": 5,
        "nvmlDeviceGetGpuMaxPcieLinkGeneration": 5,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
        "nvmlDeviceGetPcieReplayCounter": 7,
        "nvmlDeviceGetEncoderUtilization": [25, 167_000],
        "nvmlDeviceGetDecoderUtilization": [50, 167_000],
        "nvmlDeviceGetNvLinkState": lambda link: 1 if link < 18 else error(2),
        "nvmlDeviceGetNvLinkVersion": 6,
        "nvmlDeviceGetNvLinkRemoteDeviceType": 2,
        "nvmlDeviceGetNvLinkRemotePciInfo": SimpleNamespace(busId="00000000:07:00.0"),
        "nvmlDeviceGetNvLinkErrorCounter": lambda link, counter: 100 * counter + link,
        "nvmlDeviceGetSupportedEventTypes": 0x1F8F,
        "nvmlDeviceGetP2PStatus": 0,
        "nvmlDeviceGetMaxMigDeviceCount": 7,
    }


def default_fields():
    fields = {(91, 0): 18, (82, 0): 55, (90, 0): 26562, (230, 0): 0, (197, 0): 5_000, (198, 0): 6_000}
    fields |= {(74 + step, 0): step * 10**9 for step in range(8)}
    fields |= {(138, ALL_LINKS): 1000, (139, ALL_LINKS): 2000}
    for link in range(18):
        fields |= {(138, link): 10 + link, (139, link): 20 + link, (164, link): 26562}
        fields |= {(161, link): link, (162, link): 0, (163, link): 1}
        # Success and zero, though nothing is counted: must never be read.
        fields |= {(202, link): 0, (204, link): 0}
    return fields


@dataclass(eq=False)
class FakeGpu:
    uuid: str
    answers: dict[str, Any] = field(default_factory=default_answers)
    fields: dict[tuple[int, int], Any] = field(default_factory=default_fields)
    gpm: dict[int, Any] = field(
        default_factory=lambda: {
            1: 90.0,
            2: 80.0,
            3: 40.0,
            5: 35.0,
            10: 60.0,
            11: 1.0,
            12: 5.0,
            13: 30.0,
            20: 2.0,
            21: 3.0,
        }
    )
    fabric: dict[str, int] = field(default_factory=lambda: {"state": 3, "cliqueId": 0, "healthMask": 0})
    sram_exceeded: int = 0


class Binding:
    """Stands where the pynvml module stands."""

    def __init__(self, count=2):
        self.gpus = [FakeGpu(f"GPU-{index}") for index in range(count)]
        self.system = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "570.86.15",
            "nvmlSystemGetNVMLVersion": "12.570.86.15",
            "nvmlSystemGetCudaDriverVersion": 12080,
        }
        self.called = Counter()
        self.log = []
        self.samples = {}  # sample -> times freed
        self.events = []
        self.absent = set()  # functions that an old binding lacks
        self._sampled = {}
        self._order = count_up()

    def __getattr__(self, name):
        if name in self.absent or not hasattr(pynvml, name):
            raise AttributeError(name)
        if not isinstance(getattr(pynvml, name), FunctionType):
            return getattr(pynvml, name)
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name, arguments):
        self.called[name] += 1
        self.log.append((name, arguments))
        special = getattr(self, f"_{name}", None)
        if special and not (arguments and isinstance(arguments[0], FakeGpu) and name in arguments[0].answers):
            return special(*arguments)
        if name in self.system:
            return _told(self.system[name], arguments)
        if arguments and isinstance(arguments[0], FakeGpu):
            return _told(arguments[0].answers.get(name, error(3)), arguments[1:])
        raise error(3)

    def _nvmlDeviceGetCount(self):
        return len(self.gpus)

    def _nvmlDeviceGetHandleByIndex(self, index):
        return _told(self.gpus[index].answers.get("handle", self.gpus[index]), ())

    def _nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def _nvmlDeviceGetFieldValues(self, gpu, wanted):
        values = (pynvml.c_nvmlFieldValue_t * len(wanted))()
        for value, key in zip(values, wanted, strict=True):
            told = gpu.fields.get(key, error(3))
            if isinstance(told, pynvml.NVMLError):
                value.nvmlReturn = told.value
            elif isinstance(told, float):
                value.valueType, value.value.dVal = 0, told
            else:
                value.valueType, value.value.ullVal = 3, told
        return values

    def _nvmlGpmSampleAlloc(self):
        sample = pynvml.c_nvmlGpmSample_t(pynvml.struct_c_nvmlGpmSample_t())
        self.samples[_address(sample)] = [0, sample]
        return sample

    def _nvmlGpmSampleFree(self, sample):
        self.samples[_address(sample)][0] += 1

    def _nvmlGpmSampleGet(self, gpu, sample):
        self._sampled[_address(sample)] = (next(self._order), gpu)
        return sample

    def _nvmlGpmMigSampleGet(self, gpu, instance, sample):
        return self._nvmlGpmSampleGet(gpu, sample)

    def _nvmlGpmMetricsGet(self, block):
        (before, gpu), (after, same) = (self._sampled[_address(sample)] for sample in (block.sample1, block.sample2))
        if before >= after or gpu is not same:
            raise error(2)
        for row in range(block.numMetrics):
            metric = block.metrics[row]
            told = gpu.gpm.get(metric.metricId, error(3))
            metric.nvmlReturn = told.value if isinstance(told, pynvml.NVMLError) else 0
            metric.value = 0.0 if metric.nvmlReturn else told

    def _nvmlDeviceGetGpuFabricInfoV(self, gpu, reference):
        block = reference._obj
        for name, value in gpu.fabric.items():
            setattr(block, name, value)

    def _nvmlDeviceGetSramEccErrorStatus(self, gpu, reference):
        reference._obj.bThresholdExceeded = gpu.sram_exceeded

    def _nvmlEventSetCreate(self):
        return object()

    def _nvmlEventSetFree(self, used):
        return None

    def _nvmlDeviceRegisterEvents(self, gpu, mask, used):
        return None

    def _nvmlEventSetWait_v2(self, used, milliseconds):
        if not self.events:
            raise error(10)
        event = self.events.pop(0)
        if isinstance(event, pynvml.NVMLError):
            raise event
        return event


def _address(sample):
    return ctypes.cast(sample, ctypes.c_void_p).value


def _told(answer, arguments):
    if callable(answer) and not isinstance(answer, FakeGpu):
        answer = answer(*arguments)
    if isinstance(answer, Exception):
        raise answer
    return answer


@dataclass
class ManualClock:
    seconds: float = 1000.0

    def now(self):
        return self.seconds

    def wall(self):
        return 1_700_000_000.0 + self.seconds


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def nv():
    return Binding()


@pytest.fixture
def undecodable():
    """A PCI address of bytes that are no text: the binding trips when it is looked at, not when it is told."""
    info = pynvml.nvmlPciInfo_t()
    ctypes.memset(ctypes.addressof(info), 0xC3, ctypes.sizeof(info))
    return info


@pytest.fixture
def marks():
    return []


@pytest.fixture
def reader(nv, clock, marks):
    reader = Reader(nv, clock, lambda uuid, call: marks.append((uuid, call)))
    reader.open()
    nv.called.clear()
    nv.log.clear()
    return reader
