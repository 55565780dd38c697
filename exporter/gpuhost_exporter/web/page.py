"""The status page: one HTML document without anything from elsewhere, which refreshes itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from html import escape

from gpuhost_exporter import figures
from gpuhost_exporter.findings import Finding
from gpuhost_exporter.sources.files import read_text
from gpuhost_exporter.status import ArrayRow, CollectorRow, DriveRow, GpuRow, InstanceRow, PortRow, Status
from gpuhost_exporter.table import demanded

_MARKS = {"good": "✓", "critical": "✕", "warning": "!", "info": "i", "unknown": "?"}
_WORDS = {"good": "good", "critical": "critical", "warning": "warning", "info": "note", "unknown": "unknown"}
_WAITS_SECONDS = 10.0
_TEXT_COLUMNS = frozenset({"State", "Slowed", "Model", "Interface", "Errors", "Profile", "Lost most to, 24 h"})
_TEXT = ' class="text"'

Figure = Callable[[float | None], str]


def render(status: Status, nonce: str) -> bytes:
    """The page as UTF-8. `nonce` is what the Content-Security-Policy lets style and script in by."""
    folder = os.path.dirname(__file__)
    style, script = (read_text(os.path.join(folder, name)) for name in ("style.css", "refresh.js"))
    tag = f'nonce="{escape(nonce)}"'
    title = f"{_MARKS[status.verdict]} {status.headline}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        '<noscript><meta http-equiv="refresh" content="5"></noscript>'
        f"<style {tag}>{style}</style></head><body>"
        '<p id="stale" role="alert" hidden>The exporter does not answer. What you see is old.</p>'
        f"<main>{_main(status)}</main>"
        f"<script {tag}>{script}</script></body></html>\n"
    ).encode()


def _main(status: Status) -> str:
    return "".join(
        (
            _simulated(status.simulated),
            _verdict(status),
            _findings([finding for finding in status.findings if str(finding) != status.headline]),
            _gpus(status.gpus) if status.gpus else "",
            _instances(status.instances) if status.instances else "",
            f'<div class="pair">{_links(status.gpus)}{_ports(status.ports) if status.ports else ""}</div>',
            _storage(status) if status.arrays or status.drives else "",
            _collectors(status.collectors),
            _footer(status),
        )
    )


def _simulated(target: str) -> str:
    if not target:
        return ""
    return f'<p class="simulated"><strong>SIMULATED</strong> host {escape(target)}: no figure here is real</p>'


def _verdict(status: Status) -> str:
    action = f"<p>{escape(status.action)}</p>" if status.action else ""
    return (
        f'<header class="verdict {status.verdict}">'
        f'<span class="mark" aria-hidden="true">{_MARKS[status.verdict]}</span>'
        f"<div><h1>{escape(status.headline)}</h1>{action}</div></header>"
    )


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    items = "".join(
        f'<li class="{finding.severity}"><span class="word">{_WORDS[finding.severity]}</span>'
        f"<div><strong>{escape(str(finding))}</strong>"
        + (f"<br>{escape(finding.action)}" if finding.action else "")
        + "</div></li>"
        for finding in findings
    )
    return f'<section><h2>Also found</h2><ul class="findings">{items}</ul></section>'


def _gpus(rows: Sequence[GpuRow]) -> str:
    names = {row.name for row in rows if row.name}
    shared = names.pop() if len(names) == 1 else ""
    ledger = any(row.lost for row in rows)
    head = (
        "GPU",
        "State",
        "Busy",
        "Tensor",
        "Memory BW",
        "NVLink",
        "Links",
        "Power",
        "Core",
        "Memory temp",
        "Memory",
        "Slowed",
        "XIDs",
        *(("Lost most to, 24 h",) if ledger else ()),
    )
    return _section(f"GPUs {shared}".strip(), _table(head, (_gpu(row, shared, ledger=ledger) for row in rows)))


def _gpu(row: GpuRow, shared: str, *, ledger: bool) -> str:
    name = "" if row.name in ("", shared) else f" {row.name}"
    slow = row.nvlink_usable is not None and row.nvlink_target is not None and row.nvlink_usable < row.nvlink_target
    fewer = row.links_active is not None and row.links_expected is not None and row.links_active < row.links_expected
    bandwidth = _share(row.memory_bandwidth, row.memory_bandwidth_target)
    throttling = figures.NOTHING if row.throttling is None else ", ".join(row.throttling) or "no"
    return "".join(
        (
            _row_head(f"{row.index}{name}", row.uuid),
            _cell(row.state.replace("_", " "), "" if row.state == "ok" else "critical", text=True),
            _cell(figures.percent(row.utilization), share=row.utilization),
            _cell(figures.percent(row.tensor), share=row.tensor),
            _cell(_of(figures.rate, row.memory_bandwidth, row.memory_bandwidth_target), share=bandwidth),
            _cell(_of(figures.rate, row.nvlink_usable, row.nvlink_target), "critical" if slow else ""),
            _cell(_of(figures.count, row.links_active, row.links_expected), "critical" if fewer else ""),
            _cell(_of(figures.watts, row.power, row.power_limit), share=_share(row.power, row.power_limit)),
            _cell(figures.celsius(row.temperature)),
            _cell(figures.celsius(row.memory_temperature)),
            _cell(
                _of(figures.size, row.memory_used, row.memory_total), share=_share(row.memory_used, row.memory_total)
            ),
            _cell(throttling, "warning" if row.throttling else "", text=True),
            _cell(figures.count(row.xids), row.xid_severity),
            _cell(_lost(row), text=True) if ledger else "",
        )
    )


def _lost(row: GpuRow) -> str:
    if row.lost is None:
        return figures.NOTHING
    account, seconds, dollars = row.lost
    return f"{figures.seconds(seconds)} {account.replace('_', ' ')}, ${dollars:.2f}"


def _instances(rows: Sequence[InstanceRow]) -> str:
    head = ("GPU / instance", "Profile", "Busy", "SM", "Tensor", "Memory BW", "Memory")
    return _section("MIG instances", _table(head, map(_instance, rows)))


def _instance(row: InstanceRow) -> str:
    used = _share(row.memory_used, row.memory_total)
    return "".join(
        (
            _row_head(f"{row.gpu} / {row.gpu_instance} / {row.compute_instance}", row.uuid),
            _cell(row.profile or figures.NOTHING, text=True),
            _cell(figures.percent(row.utilization), share=row.utilization),
            _cell(figures.percent(row.sm_active), share=row.sm_active),
            _cell(figures.percent(row.tensor), share=row.tensor),
            _cell(figures.percent(row.memory_bandwidth), share=row.memory_bandwidth),
            _cell(_of(figures.size, row.memory_used, row.memory_total), share=used),
        )
    )


def _links(rows: Sequence[GpuRow]) -> str:
    numbers = sorted({number for row in rows for number, _ in row.links})
    if not numbers:
        return ""
    lines = []
    for row in rows:
        up = dict(row.links)
        cells = "".join(_link(row.index, number, up.get(number)) for number in numbers)
        lines.append(_row_head(row.index, row.uuid) + cells)
    legend = (
        '<p class="legend"><i class="up"></i> up <i class="down">✕</i> down '
        f'<i class="untold">{figures.NOTHING}</i> not told</p>'
    )
    head = ("GPU", *map(str, numbers))
    return _section("NVLinks", _table(head, lines, "links") + legend)


def _link(gpu: str, number: int, up: bool | None) -> str:
    word, mark = {True: ("up", ""), False: ("down", "✕"), None: ("untold", figures.NOTHING)}[up]
    return f'<td><i class="{word}" title="GPU {escape(gpu)} link {number}: {word}">{mark}</i></td>'


def _storage(status: Status) -> str:
    arrays = ("Array", "State", "Members", "Read", "Written", "Under demand", "Size")
    drives = ("Drive", "State", "Read", "Written", "Temp", "Worn", "Spare", "PCIe", "Size", "Model")
    parts = []
    if status.arrays:
        parts.append(_table(arrays, map(_array, status.arrays)))
    if status.drives:
        parts.append(_table(drives, map(_drive, status.drives)))
    if any(row.read_target is not None or row.written_target is not None for row in status.arrays):
        parts.append('<p class="legend">After the slash: what is good while the array is asked for more.</p>')
    return _section("Storage", "".join(parts))


def _array(row: ArrayRow) -> str:
    fewer = (
        row.members_active is not None
        and row.members_expected is not None
        and row.members_active < row.members_expected
    )
    doing = f", {row.doing} {figures.percent(row.progress)}" if row.doing else ""
    return "".join(
        (
            _row_head(f"{row.device} {row.level}".strip()),
            _cell(("up" if row.up else "down") + doing, "" if row.up else "critical", text=True),
            _cell(_of(figures.count, row.members_active, row.members_expected), "warning" if fewer else ""),
            _cell(_of(figures.rate, row.read, row.read_target), share=_share(row.read, row.read_target)),
            _cell(_of(figures.rate, row.written, row.written_target), share=_share(row.written, row.written_target)),
            _cell(demanded(row.demand), "warning" if _held_back(row) else ""),
            _cell(figures.size(row.size)),
        )
    )


def _held_back(row: ArrayRow) -> bool:
    return row.demand is not None and (bool(row.demand.member) or row.demand.slow())


def _drive(row: DriveRow) -> str:
    link = f"{figures.count(row.generation)} x{figures.count(row.width)}"
    full = f"{figures.count(row.generation_max)} x{figures.count(row.width_max)}"
    slow = figures.NOTHING not in link + full and link != full
    return "".join(
        (
            _row_head(row.device),
            _cell("up" if row.up else "down", "" if row.up else "critical", text=True),
            _cell(figures.rate(row.read)),
            _cell(figures.rate(row.written)),
            _cell(figures.celsius(row.temperature)),
            _cell(figures.percent(row.wear), "warning" if row.wear is not None and row.wear >= 1 else ""),
            _cell(figures.percent(row.spare)),
            _cell(f"{link} of {full}" if slow else link, "warning" if slow else ""),
            _cell(figures.size(row.size)),
            _cell(row.model or figures.NOTHING, text=True),
        )
    )


def _ports(rows: Sequence[PortRow]) -> str:
    head = ("Port", "State", "Rate", "Received", "Sent", "Interface")
    return _section("RDMA ports", _table(head, map(_port, rows)))


def _port(row: PortRow) -> str:
    return "".join(
        (
            _row_head(f"{row.device}/{row.port}", row.link_layer),
            _cell("up" if row.up else "down", "" if row.up else "info", text=True),
            _cell(figures.bits(row.rate)),
            _cell(figures.rate(row.received), share=_share(row.received, row.rate)),
            _cell(figures.rate(row.sent), share=_share(row.sent, row.rate)),
            _cell(row.interface or figures.NOTHING, text=True),
        )
    )


def _collectors(rows: Sequence[CollectorRow]) -> str:
    head = ("Collector", "State", "Read", "In flight", "Errors")
    return _section("Collectors", _table(head, map(_collector, rows)))


def _collector(row: CollectorRow) -> str:
    errors = ", ".join(f"{kind} {count:.0f}" for kind, count in row.errors) or "none"
    waits = row.in_flight is not None and row.in_flight > _WAITS_SECONDS
    return "".join(
        (
            _row_head(row.name),
            _cell(row.state, "warning" if row.state in ("denied", "failing") else "", text=True),
            _cell(figures.ago(row.age)),
            _cell(figures.seconds(row.in_flight) if row.in_flight else "no", "warning" if waits else ""),
            _cell(errors, text=True),
        )
    )


def _footer(status: Status) -> str:
    facts = " · ".join(escape(fact) for fact in status.machine)
    return (
        f'<footer><p>{facts}</p><p>gpuhost-exporter {escape(status.version)} · <a href="metrics">metrics</a> · '
        '<a href="healthz">healthz</a> · <a href="readyz">readyz</a></p></footer>'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    heads = "".join(f'<th scope="col"{_TEXT if text in _TEXT_COLUMNS else ""}>{escape(text)}</th>' for text in head)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _row_head(text: str, title: str = "") -> str:
    hint = f' title="{escape(title)}"' if title else ""
    return f'<th scope="row"{hint}>{escape(text)}</th>'


def _cell(content: str, severity: str = "", *, share: float | None = None, text: bool = False) -> str:
    """`severity` colours and marks, `share` draws a bar below, `text` sets it to the left."""
    mark = f' <b aria-label="{_WORDS[severity]}">{_MARKS[severity]}</b>' if severity else ""
    bar = ""
    if share is not None:
        width = round(100 * min(1.0, max(0.0, share)))
        bar = (
            '<svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{width}" height="4"/></svg>'
        )
    kind = " ".join(filter(None, (severity, "text" if text else "")))
    return f'<td class="{kind}">{escape(content)}{mark}{bar}</td>'


def _of(figure: Figure, value: float | None, whole: float | None) -> str:
    return figures.of(figure(value), figure(whole))


def _share(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None
