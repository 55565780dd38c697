"""Every call into NVIDIA's library: marked before it is made, its errors turned into our types, and what a GPU
does not have remembered.

    nvmlDeviceGetPowerUsage(handle) -> 412345     milliwatts, or NVMLError with .value 3, 4, 15, ...
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import (
    Absent,
    Denied,
    Gone,
    Lost,
    Malformed,
    NeedsReset,
    SourceError,
    Transient,
    Unsupported,
)

Mark = Callable[[str, str], None]

# How long an answer "not supported" or "no permission" is taken for good.
REMEMBERED_SECONDS = 600.0

_KINDS: dict[int, type[SourceError]] = {
    2: Unsupported,  # invalid argument: a field or link that this driver or GPU does not know
    3: Unsupported,
    4: Denied,
    6: Absent,  # not found
    13: Unsupported,  # function not found: a driver older than the binding
    15: Lost,
    16: NeedsReset,
    21: Absent,  # no data
    25: Unsupported,  # argument version mismatch
    26: Unsupported,  # deprecated
    28: Gone,
}
_DRIVER_STATES = {1: "error", 9: "no_driver", 12: "no_library", 18: "mismatch"}


class DriverDown(Exception):
    """The library as a whole does not answer; `state` is one of the driver states in DESIGN.md."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(state, message)  # both, so that it survives pickling
        self.state = state

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(slots=True, eq=False)
class Device:
    """A handle. `uuid` is the GPU's; `key` is what refusals are remembered by: the instance's UUID under MIG."""

    index: int
    uuid: str
    key: str
    handle: Any
    bdf: str = ""
    architecture: int | None = None  # NVML's number, once it was asked


class _Refusal(NamedTuple):
    kind: type[SourceError]
    code: int  # NVML's number, 0 where the library was not asked
    until: float


def load() -> Any:
    """The real binding. Nothing else imports it: it costs 5 MiB that only the child should pay."""
    # pynvml imports find_library and never calls it; ctypes.util would bring subprocess, tempfile and OpenSSL: 1.5 MiB.
    with _standing_in("ctypes.util", find_library=lambda _name: None):
        return importlib.import_module("pynvml")


@contextmanager
def _standing_in(name: str, **attributes: object) -> Iterator[None]:
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(attributes)
    try:
        yield
    finally:
        del sys.modules[name]


def kind_of(code: int) -> type[SourceError]:
    return _KINDS.get(code, Transient)


def code_of(error: SourceError) -> int:
    """NVML's number behind an error; 0 where the library was not asked, or answered but not sensibly."""
    code = getattr(error.__cause__, "value", 0)
    return code if isinstance(code, int) else 0


class Calls:
    """The library's functions by name. Raises the types of errors.py, and DriverDown for all GPUs at once."""

    def __init__(self, nv: Any, clock: Clock, mark: Mark) -> None:
        self.nv = nv
        self._clock = clock
        self._mark = mark
        # Unhashable, and equal only to its own kind: never compared, only .value is looked at.
        self._error: type[Exception] = nv.NVMLError
        self._mismatch: type[Exception] = getattr(nv, "NVMLLibraryMismatchError", nv.NVMLError)
        self._refused: dict[tuple[str, str, Hashable], _Refusal] = {}

    def ask(self, device: Device, name: str, *numbers: int) -> Any:
        """A getter of one device, remembered as refused for these very numbers."""
        return self._asked(device, name, numbers, (device.handle, *numbers))

    def hand(self, device: Device, name: str, about: str, *arguments: Any) -> Any:
        """A function of one device that is handed structures or samples; `about` is what a refusal concerns."""
        return self._asked(device, name, about, (device.handle, *arguments))

    def call(self, uuid: str, name: str, *arguments: Any) -> Any:
        """A function that takes no device handle first; nothing is remembered."""
        function = getattr(self.nv, name, None)
        if function is None:
            raise Unsupported(f"{name}: not in this binding")
        self._mark(uuid, name)
        try:
            return function(*arguments)
        except self._mismatch as error:
            raise self._typed(name, error) from error
        except self._error as error:
            raise self._typed(name, error) from error
        except (TypeError, ValueError) as error:  # the binding trips over memory "N/A" and undecodable strings
            raise Malformed(f"{name}: {error}") from error

    def refuse(self, device: Device, name: str, about: Hashable, error: SourceError) -> None:
        """Take this answer for good, for a while."""
        until = self._clock.now() + REMEMBERED_SECONDS
        self._refused[device.key, name, about] = _Refusal(type(error), code_of(error), until)

    def refusal(self, device: Device, name: str, about: Hashable) -> SourceError | None:
        """What the device is known to answer, with NVML's number as when it did; None where it must be asked."""
        known = self._refused.get((device.key, name, about))
        if known is None:
            return None
        if self._clock.now() < known.until:
            error = known.kind(f"{name}: {known.kind.kind}, as it was")
            error.__cause__ = self._error(known.code) if known.code else None
            return error
        del self._refused[device.key, name, about]
        return None

    def forget(self, device: Device) -> None:
        """Ask the device everything anew: it changed."""
        for key in [key for key in self._refused if key[0] == device.key]:
            del self._refused[key]

    def _asked(self, device: Device, name: str, about: Hashable, arguments: tuple[Any, ...]) -> Any:
        known = self.refusal(device, name, about) if self._refused else None
        if known is not None:
            raise known
        try:
            return self.call(device.uuid, name, *arguments)
        except (Unsupported, Denied) as error:
            self.refuse(device, name, about, error)
            raise

    def _typed(self, name: str, error: Exception) -> SourceError:
        code = getattr(error, "value", 13)  # the binding's own "function missing" exception carries no number
        if code in _DRIVER_STATES:
            raise DriverDown(_DRIVER_STATES[code], f"{name}: {error}") from error
        return kind_of(code)(f"{name}: {error}")
