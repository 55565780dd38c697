"""What a metric is. Each is declared once, beside the collector that fills it, and called to make a sample:

LINK_UP = gauge("gpuhost_nvlink_up", "Whether the link is active.", "gpu", "uuid", "link")
yield LINK_UP("0", "GPU-...", "3", value=1)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

PREFIX = "gpuhost_"
Kind = Literal["gauge", "counter", "info", "histogram"]
HISTOGRAM_LABEL = "le"

_new = tuple.__new__  # a thousand samples a second: NamedTuple's own constructor takes twice as long
_NAME = re.compile(r"gpuhost_[a-z][a-z0-9_]*\Z")
_LABEL = re.compile(r"[a-z][a-z0-9_]*\Z")
# Longest first: a rate ends in "seconds" too.
_UNITS = ("bytes_per_second", "seconds", "bytes", "joules", "watts", "celsius", "hertz", "ratio")


class Sample(NamedTuple):
    spec: Spec
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Spec:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ValueError(f"{self.name}: not a {PREFIX} metric name")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: a counter, and only a counter, ends in _total")
        if (self.kind == "info") != self.name.endswith("_info"):
            raise ValueError(f"{self.name}: an info metric, and only that, ends in _info")
        if not self.help.endswith("."):
            raise ValueError(f"{self.name}: help is a sentence and ends with a full stop")
        if len(set(self.labels)) != len(self.labels) or not all(_LABEL.match(name) for name in self.labels):
            raise ValueError(f"{self.name}: bad label names {self.labels}")

    @property
    def unit(self) -> str:
        """The unit that the name ends in, or nothing."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in _UNITS if stem.endswith("_" + unit)), "")

    def __call__(self, *labels: str, value: float = 1) -> Sample:
        if len(labels) != len(self.labels):
            raise TypeError(f"{self.name} takes labels {self.labels}, got {labels}")
        return _new(Sample, (self, labels, float(value)))


def gauge(name: str, text: str, *labels: str) -> Spec:
    return Spec(name, "gauge", text, labels)


def counter(name: str, text: str, *labels: str) -> Spec:
    return Spec(name, "counter", text, labels)


def histogram(name: str, text: str, *labels: str) -> Spec:
    """The last label of its samples is a bucket's upper bound, or says that the value is the sum or the count."""
    return Spec(name, "histogram", text, (*labels, HISTOGRAM_LABEL))


def info(name: str, text: str, *labels: str) -> Spec:
    return Spec(name, "info", text, labels)
