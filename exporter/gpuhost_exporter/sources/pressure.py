"""Pressure stall information: how long tasks waited for a resource.

    /proc/pressure/io   some avg10=0.05 avg60=0.02 avg300=0.06 total=2571168
                        full avg10=0.05 avg60=0.02 avg300=0.05 total=2401826

Totals are microseconds since boot. `some`: at least one task waited; `full`: every task that had work did. irq has
`full` only. For the whole machine `full` means nothing for cpu: kernels since 5.13 write a constant 0, left out here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpuhost_exporter.errors import Absent, Malformed, Unsupported
from gpuhost_exporter.sources.files import Root, names, read_text

RESOURCES = ("cpu", "memory", "io", "irq")

_LINE = re.compile(r"(some|full) avg10=[0-9.]+ avg60=[0-9.]+ avg300=[0-9.]+ total=([0-9]{1,20})\Z")


@dataclass(frozen=True, slots=True)
class Stall:
    """Seconds stalled since boot."""

    resource: str
    kind: Literal["some", "full"]
    seconds: float


def resources(root: Root) -> tuple[str, ...]:
    """The resources that the kernel accounts for. Raises Unsupported when it accounts for none."""
    try:
        present = names(f"{root.proc}/pressure")
    except Absent as error:
        names(root.proc)
        raise Unsupported(f"{error}: the kernel keeps no pressure figures; boot it with psi=1") from error
    return tuple(resource for resource in RESOURCES if resource in present)


def read(root: Root, resource: str) -> tuple[Stall, ...]:
    """Raises Unsupported where the files are there but accounting is switched off."""
    path = f"{root.proc}/pressure/{resource}"
    try:
        return parse_pressure(resource, read_text(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def parse_pressure(resource: str, text: str) -> tuple[Stall, ...]:
    stalls: list[Stall] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            raise Malformed(f"expected 'some|full avg10= avg60= avg300= total=', got {line[:60]!r}")
        kind: Literal["some", "full"] = "some" if match[1] == "some" else "full"
        if (resource, kind) != ("cpu", "full"):
            stalls.append(Stall(resource, kind, int(match[2]) / 1e6))
    if not stalls:
        raise Malformed("expected a line 'some|full avg10= avg60= avg300= total=', got none")
    return tuple(stalls)
