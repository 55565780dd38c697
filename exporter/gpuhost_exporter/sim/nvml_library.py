"""What every simulated NVML call stands on: initialisation, handles, and the faults that hit a call."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pynvml

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.hosts import Driver, Gpu, GpuModel, HostSpec, MigInstance
from gpuhost_exporter.sim.scenario import Fault, FaultKind
from gpuhost_exporter.sim.timeline import GpuMoment, Timeline

_MISMATCH = 18  # the driver is another than the library's: it concerns whoever has it open, too
_GPU_ADDRESS = 0x7F10_0000_0000
_MIG_ADDRESS = 0x7F20_0000_0000
_STATE_SECONDS = 0.1  # a GPU's state is computed at most so often
_CONTROL_SECONDS = 0.05  # and the control file looked at: what has been told meanwhile goes by the levels before

# In pynvml by that name, but no functions of the library.
_HELPERS = frozenset({"nvmlExceptionClass", "nvmlFriendlyObjectToStruct", "nvmlStructToFriendlyObject"})


@dataclass(frozen=True, slots=True)
class GpuState:
    gpu: Gpu
    model: GpuModel
    switched: bool  # its links lead to NVSwitches that the host sees
    at: float  # simulated seconds
    moment: GpuMoment
    dead_links: frozenset[int]
    link_errors: Mapping[int, int]  # link -> recovery errors, where there are any
    fabric: int  # NVML's state
    error: int  # what every call about the GPU gets instead of an answer, 0 for none
    hangs: bool
    clock_limit_mhz: int
    power_limit_watts: int


def not_found(*_: object, **__: object) -> NoReturn:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def referred(reference: Any) -> Any:
    """The structure behind ctypes.byref() or a pointer."""
    return reference._obj if hasattr(reference, "_obj") else reference.contents  # noqa: SLF001 (ctypes' name)


class Library:
    """A simulated library in this process. Names that it lacks are pynvml's own, but none of its functions:
    those are missing, as in an old library.
    """

    def __init__(self, control_path: str, clock: Clock) -> None:
        self._path = control_path
        self._clock = clock
        self._stamp = self._control_stamp()
        self._timeline = Timeline(control.load(control_path))
        self._looked_at = clock.now()
        self._born = self._elapsed()
        self._references = 0
        self._states: dict[int, tuple[float, GpuState]] = {}
        self._gpus = {_GPU_ADDRESS + 0x1000 * gpu.index: gpu for gpu in self._host.gpus}
        self._instances = {
            _MIG_ADDRESS + 0x1000 * gpu.index + 0x10 * instance.position: (gpu, instance)
            for gpu in self._host.gpus
            for instance in gpu.mig
        }
        if self._host.driver is not None:
            for name in self._host.driver.missing:
                setattr(self, name, not_found)

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        if isinstance(value, types.FunctionType) and name.startswith("nvml") and name not in _HELPERS:
            value = not_found
        setattr(self, name, value)
        return value

    def nvmlInitWithFlags(self, _flags: int) -> None:
        if self._host.driver is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        error = self._driver_fails()
        if error:
            raise pynvml.NVMLError(error)
        self._references += 1

    def nvmlInit(self) -> None:
        self.nvmlInitWithFlags(0)

    def nvmlShutdown(self) -> None:
        self._initialised()
        self._references -= 1

    @property
    def _host(self) -> HostSpec:
        return self._timeline.host

    @property
    def _driver(self) -> Driver:
        self._initialised()
        assert self._host.driver is not None
        return self._host.driver

    @property
    def _model(self) -> GpuModel:
        assert self._host.model is not None
        return self._host.model

    def _initialised(self) -> None:
        if not self._references:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def _driver_fails(self) -> int | None:
        """The error with which the library is not to be opened now, 0 where it finds no GPU, None where all is well."""
        elapsed = self._elapsed()  # may replace the timeline
        fault = self._timeline.active("driver_fails", elapsed)
        return fault.code if fault else None

    def _elapsed(self) -> float:
        now = self._clock.now()
        if not 0 <= now - self._looked_at < _CONTROL_SECONDS:
            self._looked_at = now
            self._reload()
        return self._timeline.control.elapsed(now)

    def _reload(self) -> None:
        stamp = self._control_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._timeline = Timeline(control.load(self._path))
        except ConfigError:
            return  # the simulation is ending: a driver does not notice
        self._states.clear()

    def _control_stamp(self) -> tuple[int, int]:
        try:
            status = os.stat(self._path)
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)

    def _handle(self, gpu: Gpu) -> Any:
        return ctypes.cast(_GPU_ADDRESS + 0x1000 * gpu.index, pynvml.c_nvmlDevice_t)

    def _instance_handle(self, gpu: Gpu, instance: MigInstance) -> Any:
        return ctypes.cast(_MIG_ADDRESS + 0x1000 * gpu.index + 0x10 * instance.position, pynvml.c_nvmlDevice_t)

    def _gpu(self, handle: Any) -> Gpu:
        """What a handle stands for, for calls that the library answers from its own memory."""
        self._initialised()
        gpu = self._gpus.get(_address(handle))
        if gpu is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._refuse_lost(gpu)
        return gpu

    def _refuse_lost(self, gpu: Gpu) -> None:
        state = self._current(gpu)
        if state.error:
            raise pynvml.NVMLError(state.error)

    def _instance(self, handle: Any) -> tuple[Gpu, MigInstance] | None:
        """The MIG instance behind a handle, or None when it is a whole GPU's."""
        self._initialised()
        found = self._instances.get(_address(handle))
        if found is not None:
            self._refuse_lost(found[0])
        return found

    def _ask(self, handle: Any) -> GpuState:
        """The GPU's state, for calls that ask the GPU: this is where a call crashes or hangs."""
        if not self._references:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        gpu = self._gpus.get(_address(handle))
        if gpu is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._answer(gpu)

    def _answer(self, gpu: Gpu) -> GpuState:
        state = self._current(gpu)
        if state.hangs:
            threading.Event().wait()
        if state.error:
            raise pynvml.NVMLError(state.error)
        return state

    def _current(self, gpu: Gpu) -> GpuState:
        now = self._clock.now()
        known = self._states.get(gpu.index)
        if known is not None and 0 <= now - known[0] < _STATE_SECONDS:
            return known[1]
        elapsed = self._elapsed()
        crash = self._timeline.active("call_crashes", elapsed)
        if crash is not None and self._born < crash.at:
            os.kill(os.getpid(), signal.SIGSEGV)
        state = self._state(gpu, elapsed)
        self._states[gpu.index] = (now, state)
        return state

    def _state(self, gpu: Gpu, elapsed: float) -> GpuState:
        faults = self._timeline.faults(elapsed)
        own = tuple(fault for fault in faults if fault.gpu == gpu.index)
        fabric = next((fault.code for fault in faults if fault.kind == "fabric"), 3)
        return GpuState(
            gpu=gpu,
            model=self._model,
            switched=bool(self._host.switches),
            at=elapsed,
            moment=self._timeline.gpu(gpu.index, elapsed),
            dead_links=frozenset(link for fault in own if fault.kind == "link_down" for link in fault.links),
            link_errors=self._timeline.link_errors(gpu.index, elapsed),
            fabric=fabric if self._host.fabric else 0,
            error=refusal(own) or (_MISMATCH if _code_of(faults, "driver_fails") == _MISMATCH else 0),
            hangs=any(fault.kind == "call_hangs" for fault in own),
            clock_limit_mhz=_code_of(own, "clocks_locked") or self._model.sm_clock_mhz,
            power_limit_watts=_code_of(own, "power_limit_lowered") or self._model.limit_watts,
        )


def _code_of(faults: Iterable[Fault], kind: FaultKind) -> int:
    return next((fault.code for fault in faults if fault.kind == kind), 0)


def refusal(faults: Iterable[Fault]) -> int:
    """The error with which a GPU in this state refuses every call; 0 where it answers."""
    kinds = {fault.kind for fault in faults}
    if "gpu_lost" in kinds:
        return int(pynvml.NVML_ERROR_GPU_IS_LOST)
    return int(pynvml.NVML_ERROR_RESET_REQUIRED) if "reset_required" in kinds else 0


def _address(handle: Any) -> int:
    try:
        return ctypes.addressof(handle.contents)
    except (AttributeError, ValueError):  # no pointer, or null
        return 0
