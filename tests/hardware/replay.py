"""A recording in the binding's place: answers each call with what the recorded GPU answered last.

    reader = Reader(Recorded(json.loads(text)), clock, lambda gpu, call: None)

One GPU, the last of the recorded host; a call that was not recorded is missing, as in an old library. Handles are
not told apart, so a host with MIG instances cannot be replayed.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Mapping, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import pynvml
from hardware.tape import call_key

_SAMPLE_ADDRESS = 0x7F50_0000_0000
_DOUBLE, _UNSIGNED, _SIGNED = 0, 3, 4  # value types


class Recorded:
    def __init__(self, document: Mapping[str, Any]) -> None:
        answers = document["reader"]
        self._calls: Mapping[str, Any] = answers["calls"]
        self._fields: Mapping[str, Any] = answers["fields"]
        self._gpm: Mapping[str, Any] = answers["gpm"]

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        if name.startswith("nvml") and isinstance(value, FunctionType):
            return functools.partial(self._answer, name)
        return value

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlGpmSampleAlloc(self) -> Any:
        self._told(self._calls.get("nvmlGpmSampleAlloc()"))
        return ctypes.cast(_SAMPLE_ADDRESS, pynvml.c_nvmlGpmSample_t)

    def nvmlGpmMetricsGet(self, block: Any) -> Any:
        for row in range(block.numMetrics):
            metric = block.metrics[row]
            try:
                metric.value = float(self._told(self._gpm.get(str(metric.metricId))))
                metric.nvmlReturn = pynvml.NVML_SUCCESS
            except pynvml.NVMLError as error:
                metric.nvmlReturn = error.value
        return block

    def nvmlDeviceGetFieldValues(self, _handle: Any, wanted: Sequence[tuple[int, int]]) -> Any:
        values = (pynvml.c_nvmlFieldValue_t * len(wanted))()
        for value, (field, scope) in zip(values, wanted, strict=True):
            value.fieldId, value.scopeId = field, scope
            try:
                told = self._told(self._fields.get(f"{field}/{scope}"))
            except pynvml.NVMLError as error:
                value.nvmlReturn = error.value
                continue
            value.valueType = _DOUBLE if isinstance(told, float) else _SIGNED if told < 0 else _UNSIGNED
            letter = {_DOUBLE: "d", _SIGNED: "q", _UNSIGNED: "Q"}[value.valueType]
            ctypes.memmove(ctypes.byref(value.value), struct.pack(letter, told), 8)
        return values

    def _answer(self, name: str, *arguments: Any) -> Any:
        told = self._told(self._calls.get(call_key(name, arguments)))
        filled = [argument._obj for argument in arguments if hasattr(argument, "_obj")]
        if not filled:
            return _revived(told)
        for member, value in told.items():
            setattr(filled[0], member, type(getattr(filled[0], member))(*value) if isinstance(value, list) else value)
        return pynvml.NVML_SUCCESS

    def _told(self, entry: Mapping[str, Any] | None) -> Any:
        """The last answer, else the first kind of error."""
        if entry is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        if entry["answered"]:
            return entry["last"]
        code = next(iter(entry["errors"]))
        if code.isdecimal():
            raise pynvml.NVMLError(int(code))
        raise getattr(pynvml, code, ValueError)(f"recorded: {code}")  # the binding's own, or it tripped


def _revived(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**value)
    return [_revived(item) for item in value] if isinstance(value, list) else value
