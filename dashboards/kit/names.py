"""What a query may name: the exporter's metrics, by their Specs, and the recording rules in alerts/rules."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpuhost_exporter import catalogue
from gpuhost_exporter.specs import HISTOGRAM_LABEL, Spec

ROOT = Path(__file__).parents[2]
# Made by Prometheus itself.
OWN = frozenset({"up", "ALERTS", "ALERTS_FOR_STATE"})
# Labels that scraping adds or takes; a metric's own label of such a name arrives as exported_NAME.
TARGET_LABELS = frozenset({"cluster", "job", "instance"})


class UnknownName(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Names:
    specs: Mapping[str, Spec]
    rules: Mapping[str, tuple[str, ...]]  # name -> expressions

    def check(self, name: str, labels: frozenset[str]) -> None:
        """Raises UnknownName for a metric or a label that nobody makes."""
        if name in OWN or name in self.rules:
            return
        known = self.labels(name)
        for label in labels - known:
            raise UnknownName(f"{name} has no label {label}: it has {', '.join(sorted(known)) or 'none'}")

    def labels(self, name: str) -> frozenset[str]:
        """Labels of an exporter's metric as they are in Prometheus; histograms by the names of their series."""
        spec = self.specs.get(name)
        bucket = False
        if spec is None:
            stem, _, suffix = name.rpartition("_")
            histogram = self.specs.get(stem)
            if histogram and histogram.kind == "histogram" and suffix in ("bucket", "sum", "count"):
                spec, bucket = histogram, suffix == "bucket"
        if spec is None or (spec.kind == "histogram" and spec.name == name):
            near = difflib.get_close_matches(name, [*self.specs, *self.rules], 1)
            raise UnknownName(f"{name}: no such metric or recording rule" + (f"; {near[0]}?" if near else ""))
        own = set(spec.labels) - (set() if bucket else {HISTOGRAM_LABEL})
        return frozenset(f"exported_{label}" if label in TARGET_LABELS else label for label in own) | TARGET_LABELS


def read(rules: Path = ROOT / "alerts" / "rules") -> Names:
    recorded: dict[str, tuple[str, ...]] = {}
    for file in sorted(rules.glob("*.yml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    recorded[rule["record"]] = (*recorded.get(rule["record"], ()), rule["expr"])
    return Names(catalogue.specs(), recorded)


@dataclass(frozen=True, slots=True)
class Scope:
    """Selects series of some hosts. `HOST("gpuhost_gpu_up", gpu="~0|1")` is the PromQL selector, checked."""

    names: Names
    matchers: tuple[str, ...]

    def __call__(self, name: str, **labels: str) -> str:
        """`label="value"` for equal; a value that begins with !, ~ or !~ for those operators."""
        self.names.check(name, frozenset(labels))
        own = []
        for label, value in labels.items():
            operator = next((each for each in ("!~", "!", "~") if value.startswith(each)), "")
            shown = {"": "=", "!": "!=", "~": "=~", "!~": "!~"}[operator]
            own.append(f'{label}{shown}"{value[len(operator) :]}"')
        return f"{name}{{{','.join((*own, *self.matchers))}}}"
