"""The host at a glance as text for terminals and mails: what is wrong first, then aligned tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from gpuhost_exporter import figures
from gpuhost_exporter.demand import Demand
from gpuhost_exporter.status import ArrayRow, CollectorRow, DriveRow, GpuRow, InstanceRow, PortRow, Status

WIDTH = 100


def render(status: Status) -> str:
    """A page no wider than WIDTH where its longest name allows it."""
    return "\n".join(filter(None, ("".join(lines) for lines in _sections(status))))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, the last one ragged."""
    lines = [head, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def _sections(status: Status) -> Iterator[Iterable[str]]:
    yield _headline(status)
    others = [finding for finding in status.findings if str(finding) != status.headline]
    yield (_indented(finding.severity, str(finding), finding.action) for finding in others)
    if status.gpus:
        names = ", ".join(sorted({row.name for row in status.gpus if row.name}))
        figured = ("GPU", "state", "busy", "tensor", "memory BW", "NVLink", "links", "power", "core", "memory")
        yield names and f"{names}\n", table(figured, map(_gpu, status.gpus))
    if status.instances:
        parts = ("MIG", "profile", "busy", "SM", "tensor", "memory BW", "memory")
        yield table(parts, map(_instance, status.instances))
    if status.arrays:
        yield table(
            ("array", "state", "members", "read", "written", "under demand", "size"), map(_array, status.arrays)
        )
    if status.drives:
        columns = ("drive", "state", "read", "written", "temp", "worn", "spare", "PCIe", "size", "model")
        yield table(columns, map(_drive, status.drives))
    if status.ports:
        yield table(("port", "state", "rate", "received", "sent", "interface"), map(_port, status.ports))
    unwell = [row for row in status.collectors if row.state != "ok"]
    if unwell:
        yield table(("collector", "state", "last read", "errors"), map(_collector, unwell))


def _headline(status: Status) -> Iterator[str]:
    if status.simulated:
        yield f"SIMULATED host {status.simulated}: no figure here is real\n"
    yield _filled(status.headline, "")
    yield _filled(status.action, "")
    yield _filled(" · ".join(status.machine), "")


def _indented(severity: str, finding: str, action: str) -> str:
    indent = " " * 10
    return _filled(finding, indent, severity.ljust(10)) + _filled(action, indent)


def _filled(text: str, indent: str, first: str | None = None) -> str:
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent)
    return "".join(f"{line}\n" for line in lines)


def _gpu(row: GpuRow) -> tuple[str, ...]:
    return (
        row.index,
        row.state.replace("_", " "),
        figures.percent(row.utilization),
        figures.percent(row.tensor),
        figures.of(figures.rate(row.memory_bandwidth), figures.rate(row.memory_bandwidth_target)),
        figures.of(figures.rate(row.nvlink_usable), figures.rate(row.nvlink_target)),
        figures.of(figures.count(row.links_active), figures.count(row.links_expected)).replace(" ", ""),
        figures.watts(row.power),
        figures.celsius(row.temperature),
        figures.size(row.memory_used),
    )


def _instance(row: InstanceRow) -> tuple[str, ...]:
    return (
        f"{row.gpu}/{row.gpu_instance}/{row.compute_instance}",
        row.profile or figures.NOTHING,
        figures.percent(row.utilization),
        figures.percent(row.sm_active),
        figures.percent(row.tensor),
        figures.percent(row.memory_bandwidth),
        figures.of(figures.size(row.memory_used), figures.size(row.memory_total)),
    )


def _array(row: ArrayRow) -> tuple[str, ...]:
    doing = f", {row.doing} {figures.percent(row.progress)}" if row.doing else ""
    return (
        f"{row.device} {row.level}".rstrip(),
        _up(row.up) + doing,
        figures.of(figures.count(row.members_active), figures.count(row.members_expected)),
        figures.of(figures.rate(row.read), figures.rate(row.read_target)),
        figures.of(figures.rate(row.written), figures.rate(row.written_target)),
        demanded(row.demand),
        figures.size(row.size),
    )


def _drive(row: DriveRow) -> tuple[str, ...]:
    link = f"{figures.count(row.generation)} x{figures.count(row.width)}"
    full = f"{figures.count(row.generation_max)} x{figures.count(row.width_max)}"
    return (
        row.device,
        _up(row.up),
        figures.rate(row.read),
        figures.rate(row.written),
        figures.celsius(row.temperature),
        figures.percent(row.wear),
        figures.percent(row.spare),
        link if link == full or figures.NOTHING in link + full else f"{link} of {full}",
        figures.size(row.size),
        row.model or figures.NOTHING,
    )


def _port(row: PortRow) -> tuple[str, ...]:
    return (
        f"{row.device}/{row.port}",
        _up(row.up),
        figures.bits(row.rate),
        figures.rate(row.received),
        figures.rate(row.sent),
        row.interface or figures.NOTHING,
    )


def _collector(row: CollectorRow) -> tuple[str, ...]:
    return (
        row.name,
        row.state,
        figures.ago(row.age),
        ", ".join(f"{kind} {count:.0f}" for kind, count in row.errors) or "none",
    )


def demanded(demand: Demand | None) -> str:
    """3.13 / 20.0 GB/s (nvme2n1), with who holds it back where that is not the array as a whole."""
    if demand is None:
        return figures.NOTHING
    if demand.by == "submitter":
        return "submitter"
    rate = figures.of(figures.rate(demand.delivered), figures.rate(demand.good))
    return f"{rate} ({demand.member})" if demand.member else rate


def _up(up: bool) -> str:
    return "up" if up else "down"
