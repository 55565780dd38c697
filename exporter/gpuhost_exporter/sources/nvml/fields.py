"""Field values: many counters of a GPU in one call.

    nvmlDeviceGetFieldValues(handle, [(138, 0xFFFFFFFF), (82, 0)]) -> array of nvmlFieldValue_t, each with its own
    return code and value type

Only ids whose meaning never changed are used: 251 to 273 were renumbered between driver releases.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from gpuhost_exporter.errors import Denied, Malformed, SourceError, Unsupported
from gpuhost_exporter.sources.nvml.calls import kind_of
from gpuhost_exporter.sources.nvml.probe import Probe
from gpuhost_exporter.sources.nvml.quantities import COUNTED_BYTES, COUNTED_KIBIBYTES, Quantity

Field = tuple[int, int]  # id and scope; for links the scope is the link, and 0 would be link 0

ALL_LINKS = 0xFFFFFFFF

MEMORY_TEMPERATURE = 82
LINK_COMMON_SPEED = 90
LINK_COUNT = 91
THROTTLED = {
    74: "power",
    75: "thermal",
    76: "sync_boost",
    77: "board_limit",
    78: "low_utilization",
    79: "reliability",
    80: "app_clocks",
    81: "base_clocks",
}
LINK_TX_KIBIBYTES = 138
LINK_RX_KIBIBYTES = 139
LINK_REPLAYS = 161
LINK_RECOVERIES = 162
LINK_CRC_ERRORS = 163
LINK_SPEED = 164
PCIE_TX_BYTES = 197
PCIE_RX_BYTES = 198
LINK5_TX_BYTES = 202
LINK5_RX_BYTES = 204
LINK5_RECOVERIES = 215
RECOVERY_ACTION = 230

_CALL = "nvmlDeviceGetFieldValues"
# nvmlFieldValue_t: id, scope, timestamp, latency, value type, return code, value. Read as a block: attribute by
# attribute it takes the binding three times as long, and there are 90 fields a GPU with NVLink.
_ROW = struct.Struct("=IIqqII8s")
_TYPES = tuple(struct.Struct("=" + letter) for letter in "dIQQqiH")  # by value type


class Told:
    """What one call filled in; a field that the GPU did not tell is None."""

    def __init__(self, probe: Probe, values: Mapping[Field, object]) -> None:
        self._probe = probe
        self._values = values

    def quantity(self, quantity: Quantity, field: int, scope: int = 0) -> float | None:
        return self._probe.checked(quantity, self._values.get((field, scope)), f"field {field}")

    def whole(self, quantity: Quantity, field: int, scope: int = 0) -> int | None:
        return self._probe.counted(quantity, self._values.get((field, scope)), f"field {field}")

    def link_bytes(self, scope: int) -> tuple[int | None, int | None]:
        """Payload sent and received over one link or all."""
        tx = self.whole(COUNTED_BYTES, LINK5_TX_BYTES, scope)
        rx = self.whole(COUNTED_BYTES, LINK5_RX_BYTES, scope)
        if tx is None:
            tx = self.whole(COUNTED_KIBIBYTES, LINK_TX_KIBIBYTES, scope)
        if rx is None:
            rx = self.whole(COUNTED_KIBIBYTES, LINK_RX_KIBIBYTES, scope)
        return tx, rx


def link_byte_fields(probe: Probe, scope: int) -> tuple[Field, ...]:
    """The ids to ask for Told.link_bytes. Those of NVLink 5 are left alone on older GPUs, where a driver may
    fill them with a zero that counts nothing."""
    older = ((LINK_TX_KIBIBYTES, scope), (LINK_RX_KIBIBYTES, scope))
    return ((LINK5_TX_BYTES, scope), (LINK5_RX_BYTES, scope), *older) if probe.blackwell() else older


def read(probe: Probe, wanted: Sequence[Field]) -> Told:
    """The fields that this GPU tells; those it refuses are not asked again for a while."""
    asked = []
    for field in wanted:
        refusal = probe.refusal(_CALL, field)
        if refusal is None:
            asked.append(field)
        else:
            probe.failed(_CALL, refusal)
    return Told(probe, _read(probe, asked))


def _read(probe: Probe, fields: list[Field]) -> Mapping[Field, object]:
    if not fields:
        return {}
    try:
        answers = probe.calls.call(probe.device.uuid, _CALL, probe.device.handle, fields)
    except (Unsupported, Denied) as error:
        if len(fields) > 1:  # find the one that the driver stumbles over; it is not asked again
            return {field: value for field in fields for value in _read(probe, [field]).values()}
        _refused(probe, fields[0], error)
        return {}
    except SourceError as error:
        probe.failed(_CALL, error)
        return {}
    values: dict[Field, object] = {}
    for field, (_, _, _, _, kind, code, value) in zip(fields, _ROW.iter_unpack(answers), strict=True):
        if code:
            _failed(probe, field, code)
        elif kind < len(_TYPES):
            (values[field],) = _TYPES[kind].unpack_from(value)
        else:
            probe.failed(f"field {field[0]}", Malformed(f"field {field[0]}: unknown value type {kind}"))
    return values


def _failed(probe: Probe, field: Field, code: int) -> None:
    name = f"field {field[0]}"
    cause = probe.calls.nv.NVMLError(code)
    error = kind_of(code)(f"{name}: {cause}")
    error.__cause__ = cause
    if isinstance(error, (Unsupported, Denied)):
        _refused(probe, field, error)
    else:
        probe.failed(name, error)


def _refused(probe: Probe, field: Field, error: SourceError) -> None:
    """Not to be asked again. A privilege that is missing is one fault, however many fields want it."""
    probe.calls.refuse(probe.device, _CALL, field, error)
    probe.failed(_CALL, error)
