"""nvmlDeviceGetFieldValues of the simulated library: an array of nvmlFieldValue_t, one result a field."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pynvml

from gpuhost_exporter.sim.nvml_library import GpuState, Library

_ALL_LINKS = 0xFFFFFFFF
_UINT = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
_ULONGLONG = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
_SIGNED_INT = pynvml.NVML_VALUE_TYPE_SIGNED_INT
_HOPPER = 9
_PROTOCOL = 1.09  # raw counters include the protocol's bytes
_RECEIVED = 0.998  # of what a GPU sends, it receives about as much
_REMAPPED_GPU = 4

_Value = tuple[int, int]  # value type, value
_Field = Callable[[GpuState, int], "_Value | None"]


class FieldCalls(Library):
    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: Sequence[int | tuple[int, int]]) -> Any:
        state = self._ask(handle)
        wall = int((self._timeline.control.booted_wall + self._timeline.control.started_at + state.at) * 1e6)
        last = self._driver.last_field
        packed: list[int] = []
        for wanted in fieldIds:
            field, scope = wanted if isinstance(wanted, tuple) else (wanted, 0)
            read = _FIELDS.get(field) if field <= last else None
            result = read(state, scope) if read is not None else None
            if result is None:
                packed += (field, scope, wall, 1, 0, pynvml.NVML_ERROR_NOT_SUPPORTED, 0)
            else:
                packed += (field, scope, wall, 1, result[0], pynvml.NVML_SUCCESS, result[1])
        # Setting each member of each structure takes ten times as long as packing the whole array.
        values = pynvml.c_nvmlFieldValue_t * len(fieldIds)
        return values.from_buffer_copy(_layout(len(fieldIds)).pack(*packed))


@lru_cache(maxsize=64)
def _layout(count: int) -> struct.Struct:
    return struct.Struct("<" + "IIqqIIQ" * count)


def _link_bytes(scale: float) -> _Field:
    def read(state: GpuState, scope: int) -> _Value | None:
        links = state.model.links
        if not links or (scope != _ALL_LINKS and scope >= links):
            return None
        total = state.moment.nvlink_bytes * scale / 1024
        return _ULONGLONG, int(total if scope == _ALL_LINKS else total / links)

    return read


def _per_link(value: Callable[[GpuState, int], int]) -> _Field:
    return lambda state, link: (_UINT, value(state, link)) if link < state.model.links else None


def _per_hopper_link(value: Callable[[GpuState, int], int]) -> _Field:
    def read(state: GpuState, link: int) -> _Value | None:
        if link >= state.model.links or state.model.architecture < _HOPPER:
            return None
        return _ULONGLONG, value(state, link)

    return read


def _linked(value: Callable[[GpuState], int]) -> _Field:
    return lambda state, _: (_UINT, value(state)) if state.model.links else None


def _whole_gpu(value: Callable[[GpuState], int]) -> _Field:
    return lambda state, _: None if state.gpu.mig else (_UINT, value(state))


def _milliwatts(value: Callable[[GpuState], float]) -> _Field:
    return lambda state, scope: None if scope else (_UINT, int(1000 * value(state)))


def _count(value: Callable[[GpuState], float]) -> _Field:
    return lambda state, _: (_ULONGLONG, int(value(state)))


def _always(value: int) -> _Field:
    return lambda _state, _scope: (_UINT, value)


def _offset(value: int) -> _Field:
    return lambda _state, _scope: (_SIGNED_INT, value & 0xFFFFFFFF)


def remapped_rows(state: GpuState) -> int:
    """Rows remapped for uncorrectable errors: the fifth GPU of every host has had one, long ago."""
    return int(state.gpu.index == _REMAPPED_GPU)


_NONE_YET = _count(lambda _: 0)
_RECOVERIES = _per_hopper_link(lambda state, link: state.link_errors.get(link, 0))

_FIELDS: dict[int, _Field] = {
    1: _always(1),
    2: _always(1),
    74: _count(lambda state: state.moment.power_capped_seconds * 1e9),
    75: _count(lambda state: state.moment.thermal_slowdown_seconds * 1e9),
    **dict.fromkeys((76, 77, 78, 79, 80, 81), _NONE_YET),
    82: lambda state, _: (_UINT, round(state.moment.memory_celsius)) if state.model.hbm else None,
    83: _count(lambda state: state.moment.joules * 1000),
    90: _linked(lambda state: state.model.link_megabytes_per_second),
    91: _linked(lambda state: state.model.links),
    94: _always(0),
    95: _always(0),
    138: _link_bytes(1.0),
    139: _link_bytes(_RECEIVED),
    140: _link_bytes(_PROTOCOL),
    141: _link_bytes(_RECEIVED * _PROTOCOL),
    142: _whole_gpu(lambda _: 0),
    143: _whole_gpu(remapped_rows),
    144: _whole_gpu(lambda _: 0),
    145: _whole_gpu(lambda _: 0),
    147: lambda state, _: (_UINT, state.model.links - len(state.dead_links)) if state.switched else None,
    161: _RECOVERIES,
    162: _RECOVERIES,
    163: _per_hopper_link(lambda _state, _link: 0),
    164: _per_link(lambda state, link: 0 if link in state.dead_links else state.model.link_megabytes_per_second),
    165: _per_link(lambda state, link: int(link not in state.dead_links)),
    166: _per_link(lambda state, _: state.model.link_version),
    **dict.fromkeys((169, *range(173, 184)), _always(0)),
    185: _milliwatts(lambda state: state.moment.watts),
    186: _milliwatts(lambda state: state.moment.watts),
    187: _milliwatts(lambda state: state.model.min_limit_watts),
    **dict.fromkeys((188, 189), _milliwatts(lambda state: state.model.limit_watts)),  # highest, default
    **dict.fromkeys((190, 192), _milliwatts(lambda state: state.power_limit_watts)),  # in force, asked for
    191: lambda state, scope: None if scope else (_ULONGLONG, int(state.moment.joules * 1000)),
    193: _offset(-8),
    194: _offset(-2),
    195: _offset(0),
    196: _offset(0),
    197: _count(lambda state: state.moment.pcie_tx_bytes),
    198: _count(lambda state: state.moment.pcie_rx_bytes),
    230: _always(0),
}
