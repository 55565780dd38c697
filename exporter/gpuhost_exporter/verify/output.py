"""A run as a table for terminals and mails, as JSON, and as JUnit for pipelines."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree as ET

from gpuhost_exporter import figures
from gpuhost_exporter.findings import ranges
from gpuhost_exporter.table import WIDTH, table
from gpuhost_exporter.verify.result import VERDICTS, Result, Run, Unit, document

_GPU = re.compile(r"GPU (\d+)\Z")
_LEAST_WIDTH = 8  # of a column; whole names are beside the table and in the JSON
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def page(run: Run, simulated: str, width: int = WIDTH) -> str:
    """The judgement and what speaks against the host first; then a line for each group of devices that say the same;
    then what is worth a note, and what was not judged.
    """
    when = datetime.fromtimestamp(run.at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    counts = ", ".join(f"{run.count(verdict)} {verdict}" for verdict in VERDICTS if run.count(verdict))
    head = [f"SIMULATED host {simulated}: no figure here is real"] if simulated else []
    head.append(f"{'ACCEPTED' if run.accepted else 'REJECTED'} ({run.mode}, {when}): {counts}")
    judged = _groups(result for result in run.results if result.verdict != "skipped")
    said = {word: [(name, result.why) for name, result in judged if result.verdict == word] for word in VERDICTS}
    notes: dict[str, list[str]] = {}
    for name, why in said["pass"]:
        notes.setdefault(why, []).append(name)
    skipped: dict[str, list[str]] = {}
    for name, result in _groups(result for result in run.results if result.verdict == "skipped"):
        skipped.setdefault(result.why, []).append(name)
    against_it = [f"{word}  {name}: {why}" for word in ("fail", "warn") for name, why in said[word]]
    others = [
        f"{word}  {'; '.join(names)}: {why}"
        for word, group in (("note", notes), ("skipped", skipped))
        for why, names in group.items()
        if why
    ]
    parts = (_filled(head, width), _filled(against_it, width), _table(judged, width), _filled(others, width))
    return "\n".join(filter(None, parts))


def as_json(run: Run, simulated: str) -> str:
    return json.dumps({"simulated": simulated or None, "accepted": run.accepted, **document(run)}, indent=1)


def junit(run: Run, host: str) -> bytes:
    """One test case a result; a warning passes and says why on its standard output."""
    suite = ET.Element(
        "testsuite",
        name="gpuhost-exporter verify",
        hostname=_clean(host),
        timestamp=datetime.fromtimestamp(run.at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        tests=str(len(run.results)),
        failures=str(run.count("fail")),
        errors="0",
        skipped=str(run.count("skipped")),
    )
    for result in run.results:
        name = " ".join(filter(None, (result.check, result.device)))
        case = ET.SubElement(suite, "testcase", classname=f"gpuhost.{run.mode}", name=_clean(name))
        why = _clean(result.why)
        if result.verdict == "fail":
            ET.SubElement(case, "failure", message=why)
        elif result.verdict == "skipped":
            ET.SubElement(case, "skipped", message=why)
        measured, wanted, before = _figures(result)
        said = f"{result.verdict}: measured {measured}, target {wanted}, baseline {before}"
        ET.SubElement(case, "system-out").text = _clean(f"{said}; {why}" if why else said)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, "unicode").encode()


def _table(judged: Sequence[tuple[str, Result]], width: int) -> str:
    lines = [["check", "measured", "target", "baseline", "verdict"]]
    lines += [[name, *_figures(result), result.verdict] for name, result in judged]
    if not any(result.baseline for _, result in judged):
        lines = [[*line[:3], line[4]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = width - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _LEAST_WIDTH:
        widths[widths.index(max(widths))] -= 1
    head, *rows = [[*map(_cut, line, widths)] for line in lines]
    return table(head, rows)


def _filled(lines: Iterable[str], width: int) -> str:
    return "".join(textwrap.fill(line, width, subsequent_indent="      ") + "\n" for line in lines)


def _groups(results: Iterable[Result]) -> list[tuple[str, Result]]:
    """What devices of one check say alike, once: "PCIe, GPUs 0-7"."""
    same: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        same.setdefault((result.check, result.verdict, result.why, *_figures(result)), []).append(result)
    return [(", ".join(filter(None, (group[0].check, _together(group)))), group[0]) for group in same.values()]


def _together(group: list[Result]) -> str:
    devices = [result.device for result in group]
    numbers = [match[1] for device in devices if (match := _GPU.match(device))]
    if len(numbers) > 1:
        return f"GPUs {ranges(numbers)}"
    return ", ".join(devices) if len(devices) < 3 else f"{devices[0]} and {len(devices) - 1} more"


def _figures(result: Result) -> tuple[str, str, str]:
    if result.value is None:
        return result.measured or figures.NOTHING, result.wanted or figures.NOTHING, figures.NOTHING
    unit = result.unit
    return _figure(result.value, unit), _figure(result.target, unit), _figure(result.baseline, unit)


def _figure(value: float | None, unit: Unit) -> str:
    if value is None:
        return figures.NOTHING
    return figures.rate(value) if unit == "bytes_per_second" else f"{value * 1e6:.3g} µs"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _clean(text: str) -> str:
    return _NO_XML.sub("?", text)
