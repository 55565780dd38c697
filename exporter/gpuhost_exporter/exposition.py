"""Published snapshots -> the text that Prometheus reads, in format 0.0.4 or OpenMetrics 1.0. Never touches hardware.

A collector's block is rendered and compressed once and reused until it tells something else; ages, in-flight times and
expiry are of the moment of the scrape. Label strings are made once a series.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.runner import Runner, Task
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

if TYPE_CHECKING:
    from gpuhost_exporter.compat import Dcgm

BUILD = info("gpuhost_exporter_build_info", "Version of the exporter and of Python.", "version", "python")
SIMULATED = gauge(
    "gpuhost_simulated",
    "1 when the figures come from a simulated host (label target: HOST:SCENARIO), 0 on a real one.",
    "target",
)
READER_RESTARTS = counter(
    "gpuhost_reader_restarts_total",
    "Times that a process which reads for the exporter, nvml or privileged, ended or was ended and had to be started "
    "again. Good is no increase; gpuhost_nvml_reader_restarts_total says why nvml was.",
    "reader",
)
READER_STUCK = gauge(
    "gpuhost_reader_stuck",
    "Processes which read for the exporter that were killed and that the kernel cannot end: 0 is good. None is started "
    "in its place until it is gone.",
    "reader",
)
SCRAPES = counter("gpuhost_exporter_scrapes_total", "Expositions rendered, by format.", "format")
SERVED = counter("gpuhost_exporter_samples_served_total", "Samples in all expositions together.")
RENDER = counter("gpuhost_exporter_render_seconds_total", "Seconds spent rendering and compressing expositions.")
SPECS = (BUILD, SIMULATED, READER_RESTARTS, READER_STUCK, SCRAPES, SERVED, RENDER)

_MOST_PREFIXES = 50_000
# RFC 1952 and 1951: a header without a name or a time, a last block that is empty, and what ends the file.
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"
_GZIP_END = b"\x03\0"
_GZIP_TAIL = struct.Struct("<II")


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def header(spec: Spec, openmetrics: bool) -> str:
    """HELP and TYPE lines. OpenMetrics names a counter and an info without their suffix."""
    text = spec.help.replace("\\", "\\\\").replace("\n", "\\n")
    name, kind = spec.name, spec.kind
    if openmetrics:
        text = text.replace('"', '\\"')
        if kind in ("counter", "info"):
            name = name.rsplit("_", 1)[0]
        unit = f"# UNIT {name} {spec.unit}\n" if spec.unit else ""
        return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{unit}"
    return f"# HELP {name} {text}\n# TYPE {name} {'gauge' if kind == 'info' else kind}\n"


class Renderer:
    """Samples -> text. Keeps the label strings of series that it has seen."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[Spec, tuple[str, ...]], str] = {}
        self._headers: dict[tuple[Spec, bool], str] = {}

    def block(self, samples: Iterable[Sample], openmetrics: bool) -> tuple[bytes, int]:
        """The families of these samples, each once and whole, and how many samples they have.

        Of two samples of one series the last counts, and what is not a finite number is left out: either would
        cost the user the whole scrape.
        """
        prefixes = self._prefixes
        if len(prefixes) > _MOST_PREFIXES:
            prefixes.clear()
        families: dict[Spec, dict[str, float]] = {}
        for sample in samples:
            spec, labels, value = sample
            if not math.isfinite(value):
                continue
            key = (spec, labels)
            prefix = prefixes.get(key)
            if prefix is None:
                prefix = prefixes[key] = self._prefix(spec, labels)
            family = families.get(spec)
            if family is None:
                family = families[spec] = {}
            family[prefix] = value
        parts: list[str] = []
        count = 0
        for spec, family in families.items():
            parts.append(self._header(spec, openmetrics))
            parts.extend([f"{prefix}{value!r}\n" for prefix, value in family.items()])
            count += len(family)
        # A name from the kernel may hold bytes that are no UTF-8; such a byte must not cost the scrape.
        return "".join(parts).encode("utf-8", "replace"), count

    def _header(self, spec: Spec, openmetrics: bool) -> str:
        key = (spec, openmetrics)
        if key not in self._headers:
            self._headers[key] = header(spec, openmetrics)
        return self._headers[key]

    @staticmethod
    def _prefix(spec: Spec, labels: tuple[str, ...]) -> str:
        if not labels:
            return f"{spec.name} "
        suffix = ""
        pairs = [f'{name}="{escaped(value)}"' for name, value in zip(spec.labels, labels, strict=True)]
        if spec.kind == "histogram":
            suffix = f"_{labels[-1]}" if labels[-1] in ("sum", "count") else "_bucket"
            pairs = pairs if suffix == "_bucket" else pairs[:-1]
        return f"{spec.name}{suffix}{{{','.join(pairs)}}} " if pairs else f"{spec.name}{suffix} "


@dataclass(slots=True)
class Block:
    """A part of the page, and its deflate stream, which refers to nothing before it; made when first asked for."""

    text: bytes
    count: int
    samples: tuple[Sample, ...] = ()
    packed: bytes = b""


def gzipped(blocks: Iterable[Block]) -> bytes:
    """The blocks as one gzip member. Only what is not packed yet is compressed."""
    compressor = None
    parts = [_GZIP_HEAD]
    check = size = 0
    for block in blocks:
        if not block.packed:
            compressor = compressor or zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
            block.packed = compressor.compress(block.text) + compressor.flush(zlib.Z_FULL_FLUSH)
        parts.append(block.packed)
        check = zlib.crc32(block.text, check)
        size += len(block.text)
    return b"".join((*parts, _GZIP_END, _GZIP_TAIL.pack(check, size & 0xFFFFFFFF)))


class Exposition:
    """`own`: samples of the exporter itself, asked anew for every scrape. `compat`: the same in others' names."""

    def __init__(
        self, runner: Runner, clock: Clock, own: Callable[[], Iterable[Sample]], compat: Dcgm | None = None
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._own = own
        self._compat = compat
        self._renderer = Renderer()
        self._blocks: dict[tuple[Task, bool], Block] = {}
        self._lock = threading.Lock()
        self._scrapes = {"text": 0, "openmetrics": 0}
        self._served = 0
        self._seconds = 0.0

    def render(self, openmetrics: bool, gzip: bool) -> bytes:
        """The page. Scrapes share what is the same."""
        with self._lock:
            started = self._clock.now()
            self._scrapes["openmetrics" if openmetrics else "text"] += 1
            blocks = self._page(openmetrics)
            self._served += sum(block.count for block in blocks)
            page = gzipped(blocks) if gzip else b"".join([block.text for block in blocks])
            self._seconds += self._clock.now() - started
            return page

    def own_samples(self) -> Iterator[Sample]:
        for name, scrapes in self._scrapes.items():
            yield SCRAPES(name, value=scrapes)
        yield SERVED(value=self._served)
        yield RENDER(value=self._seconds)

    def _page(self, openmetrics: bool) -> list[Block]:
        now = self._clock.now()
        blocks: list[Block] = []
        for task in self._runner.tasks:
            snapshot = task.fresh(now)
            if snapshot is None:
                self._blocks.pop((task, openmetrics), None)
                continue
            known = self._blocks.get((task, openmetrics))
            if known is None or known.samples != snapshot.samples:
                known = Block(*self._renderer.block(snapshot.samples, openmetrics), snapshot.samples)
                self._blocks[task, openmetrics] = known
            blocks.append(known)
        if self._compat:
            blocks.append(Block(*self._compat.block(self._runner.snapshots(), openmetrics=openmetrics)))
        own = [*self._runner.self_samples(), *self._own(), *self.own_samples()]
        text, count = self._renderer.block(own, openmetrics)
        blocks.append(Block(text + b"# EOF\n" if openmetrics else text, count))
        return blocks
