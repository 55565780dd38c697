"""The names of NVIDIA's dcgm-exporter beside our own, for dashboards and rules that are made for it.

A rendering of what is published anyway: data/dcgm.toml says which metric becomes which name, and what is not given.
Labels are dcgm-exporter's: gpu, UUID, pci_bus_id, device, modelName, hostname and the driver's version. `Hostname` is
there besides, as it was called before 4.8. What is told of a MIG GPU's instances has GPU_I_PROFILE and GPU_I_ID and
takes the place of the whole GPU's, so that sums over GPUs stay right.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.exposition import escaped
from gpuhost_exporter.sources.files import read_text
from gpuhost_exporter.specs import Sample

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = ("dcgm",)
_IDENTITY = "gpuhost_gpu_info"
_DRIVER = "gpuhost_driver_info"
_SOURCE = "gpuhost_gpu_utilization_source_info"
_XIDS = "gpuhost_xid_events_total"
_XID_MEANINGS = "gpuhost_xid_info"
_INSTANCES = "gpuhost_mig_instance_info"
_TABLE = os.path.join(os.path.dirname(__file__), "data", "dcgm.toml")
_COMPUTE_SLICE = re.compile(r"^\d+c\.")  # of a profile: 1c.3g.40gb is a part of the instance 3g.40gb

Found = Mapping[str, list[tuple[dict[str, str], float, float]]]  # by our name: labels, value, when it was read
Value = tuple[str, str, float]  # uuid, labels that follow the GPU's as text, value in our unit


@dataclass(frozen=True, slots=True)
class Field:
    """One of dcgm-exporter's metrics, and what of ours it is made of."""

    name: str
    type: str
    help: str
    made_of: str
    where: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    whole: bool = False
    rule: str = ""
    only_gpm: bool = False
    of_instance: str = ""


def load() -> tuple[tuple[Field, ...], Mapping[str, str]]:
    """The fields that are given, and those of the default set that are not, with the reason."""
    document = tomllib.loads(read_text(_TABLE))
    not_given: Mapping[str, str] = document.pop("not_given")
    fields = []
    for name, entry in document.items():
        made_of = entry.pop("from")
        fields.append(Field(name, made_of=made_of, **entry))
    return tuple(fields), not_given


class Dcgm:
    """Samples of ours -> text in dcgm-exporter's names. Not safe between threads: the exposition's lock covers it."""

    def __init__(self, name: str, hostname: str) -> None:
        if name not in NAMES:
            raise ConfigError(f"--compat {name}: there is {', '.join(NAMES)}")
        self._fields, _ = load()
        self._hostname = hostname
        self._rates: dict[str, tuple[float, float, float | None]] = {}  # by uuid: when, bytes, a second

    def block(self, snapshots: Sequence[tuple[float, tuple[Sample, ...]]], *, openmetrics: bool) -> tuple[bytes, int]:
        """`snapshots`: when each was read, and its samples."""
        wanted = {each.made_of for each in self._fields} | {each.of_instance for each in self._fields}
        wanted |= {_IDENTITY, _DRIVER, _SOURCE, _XIDS, _XID_MEANINGS, _INSTANCES}
        found: dict[str, list[tuple[dict[str, str], float, float]]] = {}
        for at, samples in snapshots:
            for spec, labels, value in samples:
                if spec.name in wanted:
                    found.setdefault(spec.name, []).append((dict(zip(spec.labels, labels, strict=True)), value, at))
        identities = self._identities(found)
        parts: list[str] = []
        count = 0
        for each in self._fields:
            lines = [
                f"{each.name}{{{identities[uuid]}{more}}} {_number(value * each.scale, whole=each.whole)}\n"
                for uuid, more, value in self._values(each, found)
                if uuid in identities
            ]
            if lines:
                # OpenMetrics has no counter whose name does not end in _total.
                kind = "unknown" if openmetrics and each.type == "counter" else each.type
                parts.append(f"# HELP {each.name} {each.help}\n# TYPE {each.name} {kind}\n")
                parts += lines
                count += len(lines)
        return "".join(parts).encode("utf-8", "replace"), count

    def _identities(self, found: Found) -> dict[str, str]:
        """uuid -> dcgm-exporter's labels, as text."""
        driver = next((labels["driver_version"] for labels, _, _ in found.get(_DRIVER, ())), "")
        identities = {}
        for labels, _, _ in found.get(_IDENTITY, ()):
            shown = {
                "gpu": labels["gpu"],
                "UUID": labels["uuid"],
                "pci_bus_id": bus_id(labels["bdf"]),
                "device": f"nvidia{labels['gpu']}",
                "modelName": labels["name"],
                "hostname": self._hostname,
                "Hostname": self._hostname,
                "DCGM_FI_DRIVER_VERSION": driver,
            }
            identities[labels["uuid"]] = _text(shown)
        return identities

    def _values(self, each: Field, found: Found) -> Iterator[Value]:
        instances = list(_of_instances(each, found))
        partitioned = {uuid for uuid, _, _ in instances}
        yield from instances
        series = [
            (labels, value, at)
            for labels, value, at in found.get(each.made_of, ())
            if labels["uuid"] not in partitioned
            and all(labels[label] == wanted for label, wanted in each.where.items())
        ]
        if each.rule == "sum_rate":
            yield from self._rate(series)
        elif each.rule == "newest_xid":
            yield from _newest_xids(series, found)
        else:
            by_gpm = {labels["uuid"] for labels, _, _ in found.get(_SOURCE, ()) if labels["source"] == "gpm"}
            for labels, value, _ in series:
                if not each.only_gpm or labels["uuid"] in by_gpm:
                    yield labels["uuid"], "", value

    def _rate(self, series: Iterable[tuple[dict[str, str], float, float]]) -> Iterator[Value]:
        """Since the scrape before, as DCGM tells it; nothing at the first."""
        totals: dict[str, tuple[float, float]] = {}
        for labels, value, at in series:
            totals[labels["uuid"]] = (at, totals.get(labels["uuid"], (at, 0.0))[1] + value)
        for uuid, (at, total) in totals.items():
            before_at, before, rate = self._rates.get(uuid, (at, total, None))
            if at > before_at:
                rate = (total - before) / (at - before_at) if total >= before else None
            self._rates[uuid] = (at, total, rate)
            if rate is not None:
                yield uuid, "", rate


def _of_instances(each: Field, found: Found) -> Iterator[Value]:
    """One a GPU instance, also where several compute instances share it."""
    profiles = {
        (labels["uuid"], labels["gpu_instance"]): labels["profile"] for labels, _, _ in found.get(_INSTANCES, ())
    }
    values = {(labels["uuid"], labels["gpu_instance"]): value for labels, value, _ in found.get(each.of_instance, ())}
    for (uuid, number), value in values.items():
        profile = _COMPUTE_SLICE.sub("", profiles.get((uuid, number), ""))
        yield uuid, "," + _text({"GPU_I_PROFILE": profile, "GPU_I_ID": number}), value


def _newest_xids(series: Iterable[tuple[dict[str, str], float, float]], found: Found) -> Iterator[Value]:
    meanings = {labels["xid"]: labels["meaning"] for labels, _, _ in found.get(_XID_MEANINGS, ())} | {"0": "No Error"}
    newest = {labels["uuid"]: (0.0, "0") for labels, _, _ in found.get(_XIDS, ())}
    for labels, value, _ in series:
        if labels["xid"].isdigit():  # "other" stands for more codes than there are series
            newest[labels["uuid"]] = max(newest.get(labels["uuid"], (0.0, "0")), (value, labels["xid"]))
    for uuid, (_, code) in newest.items():
        yield uuid, "," + _text({"err_code": code, "err_msg": meanings.get(code, "Unknown Error")}), float(code)


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())


def bus_id(bdf: str) -> str:
    """0000:1b:00.0, as sysfs has it -> 00000000:1B:00.0, as DCGM has it."""
    domain, _, rest = bdf.partition(":")
    return f"{domain:0>8}:{rest}".upper()


def _number(value: float, *, whole: bool) -> str:
    return str(round(value)) if whole else f"{value:.6f}"
