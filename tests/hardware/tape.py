"""What NVIDIA's library answers and how long each call takes, noted on the way through.

    tape = Tape(pynvml, Pseudonyms())
    tape.nvmlDeviceGetPowerUsage(handle)
    tape.document()["calls"]["nvmlDeviceGetPowerUsage()"]
        {"calls": 1, "answered": 1, "errors": {}, "first": 412345, "last": 412345, "min": 412345, "max": 412345,
         "first_microseconds": 812.4, "microseconds": null}

A call goes by its name and its numbers; all GPUs share an entry. Errors are counted by NVML's number, or by the name
of the exception where the binding itself trips. Serial numbers, UUIDs and process names become numbered stand-ins.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import re
import threading
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by value type
_MOST_ITEMS = 16  # of a list that are kept


class Pseudonyms:
    """The same stand-in for the same thing, in the form of the thing, numbered as they come."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}

    def text(self, raw: str, name: str) -> str:
        """`raw` as it may be published; `name` of the call or member says what it is."""
        name = name.lower()
        if "serial" in name and raw:
            return f"{self._number('serial', raw):013d}"
        if "processname" in name and raw:
            return f"process-{self._number('process', raw)}"
        return _UUID.sub(lambda found: str(self._uuid(found[0])), raw)

    def octets(self, raw: bytes) -> list[int]:
        """A UUID as its 16 bytes; all zeros are none."""
        return list(self._uuid(raw.hex()).bytes if any(raw) else raw)

    def _uuid(self, raw: str) -> uuid.UUID:
        return uuid.UUID(int=self._number("uuid", raw.replace("-", "").lower()))

    def _number(self, kind: str, raw: str) -> int:
        first = 1 + sum(known == kind for known, _ in self._known)
        return self._known.setdefault((kind, raw), first)

    def plain(self, value: Any, name: str) -> Any:
        """What the binding returned, as JSON has it."""
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            return self.text(value, name)
        if isinstance(value, ctypes.Structure):
            return {member[0]: self._member(value, member[0]) for member in value._fields_}
        if isinstance(value, (list, tuple, ctypes.Array)):
            if "uuid" in name.lower():
                return self.octets(bytes(value))
            return [self.plain(item, name) for item in value[:_MOST_ITEMS]]
        if isinstance(value, ctypes._SimpleCData):
            return value.value
        if hasattr(value, "__dict__") and not isinstance(value, ctypes._Pointer):  # the binding's friendly object
            value = vars(value)
        if isinstance(value, dict):
            return {member: self.plain(item, member) for member, item in value.items()}
        return type(value).__name__  # a handle

    def _member(self, structure: ctypes.Structure, name: str) -> Any:
        try:
            return self.plain(getattr(structure, name), name)
        except ValueError:  # the binding decodes text as it is read
            return "undecodable"


class Tally:
    """What one call answered, and how long it took."""

    def __init__(self) -> None:
        self._answered = 0
        self._errors: Counter[str] = Counter()
        self._nanoseconds = array("q")
        self._first: Any = None
        self._last: Any = None
        self._numbers: tuple[float, float] | None = None

    def took(self, nanoseconds: int) -> None:
        self._nanoseconds.append(nanoseconds)

    def failed(self, code: str) -> None:
        self._errors[code] += 1

    def answered(self, value: Any) -> None:
        if not self._answered:
            self._first = value
        self._answered += 1
        self._last = value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = self._numbers or (value, value)
            self._numbers = (min(low, value), max(high, value))

    def document(self) -> dict[str, Any]:
        errors = self._errors
        told: dict[str, Any] = {
            "calls": self._answered + errors.total(),
            "answered": self._answered,
            "errors": {code: errors[code] for code in sorted(errors)},
        }
        if self._answered:
            told |= {"first": self._first, "last": self._last}
        if self._numbers:
            told |= {"min": self._numbers[0], "max": self._numbers[1]}
        return told | latencies(self._nanoseconds)


def latencies(nanoseconds: Sequence[int]) -> dict[str, Any]:
    """The first one apart: it pays for what the later ones find ready."""
    if not nanoseconds:
        return {}
    later = sorted(nanoseconds[1:])
    places = {"min": 0, "p50": len(later) // 2, "p99": math.ceil(0.99 * len(later)) - 1, "max": -1}
    return {
        "first_microseconds": nanoseconds[0] / 1000,
        "microseconds": {name: later[place] / 1000 for name, place in places.items()} if later else None,
    }


class Tape:
    """The binding `nv`, every function of the library noted. Other names are the binding's own."""

    def __init__(self, nv: Any, names: Pseudonyms) -> None:
        self._nv = nv
        self._names = names
        self._errors = (nv.NVMLError, nv.NVMLLibraryMismatchError, TypeError, ValueError)
        self._calls: dict[str, Tally] = {}
        self._fields: dict[tuple[int, int], Tally] = {}
        self._gpm: dict[int, Tally] = {}
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self.asked = 0  # calls of the thread that made the tape
        self.noting = 0  # nanoseconds that noting them took

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._nv, name)
        if name.startswith("nvml") and isinstance(value, (FunctionType, MethodType)):
            value = functools.partial(self._call, name, value)
        setattr(self, name, value)
        return value

    def document(self) -> dict[str, dict[str, Any]]:
        return {
            "calls": {key: self._calls[key].document() for key in sorted(self._calls)},
            "fields": {f"{key[0]}/{key[1]}": self._fields[key].document() for key in sorted(self._fields)},
            "gpm": {str(key): self._gpm[key].document() for key in sorted(self._gpm)},
        }

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter_ns()
        try:
            value = function(*arguments)
        except self._errors as error:
            self._note(name, arguments, begin, time.perf_counter_ns(), error=error)
            raise
        self._note(name, arguments, begin, time.perf_counter_ns(), value=value)
        return value

    def _note(
        self,
        name: str,
        arguments: Sequence[Any],
        begin: int,
        end: int,
        value: Any = None,
        error: Exception | None = None,
    ) -> None:
        with self._lock:
            tally = self._calls.setdefault(call_key(name, arguments), Tally())
            tally.took(end - begin)
            if error is not None:
                tally.failed(str(getattr(error, "value", type(error).__name__)))
            elif name == "nvmlDeviceGetFieldValues":
                tally.answered(None)
                self._note_fields(value)
            elif name == "nvmlGpmMetricsGet":
                tally.answered(None)
                self._note_metrics(arguments[0])
            else:
                filled = [argument._obj for argument in arguments if hasattr(argument, "_obj")]
                tally.answered(self._names.plain(filled[0] if filled else value, name))
            if threading.get_ident() == self._thread:
                self.asked += 1
                self.noting += time.perf_counter_ns() - end

    def _note_fields(self, values: Any) -> None:
        for told in values:
            tally = self._fields.setdefault((told.fieldId, told.scopeId), Tally())
            tally.took(1000 * told.latencyUsec)  # by the library's own account
            if told.nvmlReturn:
                tally.failed(str(told.nvmlReturn))
            elif told.valueType < len(_UNION):
                tally.answered(self._names.plain(getattr(told.value, _UNION[told.valueType]), "field"))
            else:
                tally.failed(f"value type {told.valueType}")

    def _note_metrics(self, block: Any) -> None:
        for row in range(block.numMetrics):
            metric = block.metrics[row]
            tally = self._gpm.setdefault(metric.metricId, Tally())
            if metric.nvmlReturn:
                tally.failed(str(metric.nvmlReturn))
            else:
                tally.answered(self._names.plain(metric.value, "metric"))


def call_key(name: str, arguments: Sequence[Any]) -> str:
    """nvmlDeviceGetClockInfo(1): the numbers, structures and lengths that it was handed, without the handles."""
    told = []
    for argument in arguments:
        if isinstance(argument, int):
            told.append(str(argument))
        elif isinstance(argument, list):
            told.append(f"{len(argument)} fields")
        elif hasattr(argument, "_obj"):
            told.append(type(argument._obj).__name__)
        elif hasattr(argument, "numMetrics"):
            told.append(f"{argument.numMetrics} metrics")
    return f"{name}({', '.join(told)})"


def layout(value: Any, depth: int = 3, indent: str = "") -> str:
    """JSON with one call a line, so that diff compares two recordings."""
    if depth and value and isinstance(value, dict):
        rows = [f"{indent} {json.dumps(key)}: {layout(item, depth - 1, indent + ' ')}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if depth and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        rows = [f"{indent} {layout(item, depth - 1, indent + ' ')}" for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
