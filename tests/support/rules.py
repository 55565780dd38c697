"""The rule files of alerts/, and what their expressions may name: the catalogue, recording rules, and a few others'."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from glob import glob
from typing import Any

import yaml

from gpuhost_exporter.catalogue import specs
from support.promql import SCRAPED, Vector, Wrong, labels_of

ALERTS = os.path.normpath(os.path.join(os.path.dirname(__file__), "..", "..", "alerts"))
RULE_FILES = tuple(sorted(glob(f"{ALERTS}/rules/*.yml")))
TEST_FILES = tuple(sorted(glob(f"{ALERTS}/tests/*.yml")))
# Metrics of others that the rules read where somebody scrapes them, with the labels that are of use here.
OTHERS = {
    "up": (),
    "ALERTS": ("alertname", "severity", "gpu", "device", "exported_job", "fault"),
    "vllm:request_success_total": ("model_name", "finished_reason"),
    "nv_inference_request_success": ("model", "version"),
}
# What tells two series apart where that is less than all labels: the rest describes, and changes with it.
_KEYS = {
    "gpuhost_gpu_job_info": ("gpu", "uuid"),
    "gpuhost_gpu_pcie_info": ("gpu", "uuid"),
    "gpuhost_xid_info": ("xid",),
    "gpuhost_exporter_build_info": (),
    "gpuhost_machine_info": (),
    "gpuhost_virtualized": (),
}
_QUERY = re.compile(r'"((?:[^"\\]|\\.)*)"((?:\s+\$?[.\w]+)+)\s*\|\s*query')
_PLACE = "%q"


@dataclass(frozen=True, slots=True)
class Rule:
    file: str
    group: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.body.get("alert") or self.body["record"])

    @property
    def expr(self) -> str:
        return str(self.body["expr"])


def load(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


@cache
def rules() -> tuple[Rule, ...]:
    return tuple(
        Rule(os.path.basename(path), group["name"], body)
        for path in RULE_FILES
        for group in load(path)["groups"]
        for body in group["rules"]
    )


def alerts() -> tuple[Rule, ...]:
    return tuple(rule for rule in rules() if "alert" in rule.body)


def recordings() -> tuple[Rule, ...]:
    return tuple(rule for rule in rules() if "record" in rule.body)


@cache
def metric(name: str) -> Vector:
    """Raises Wrong for a name that neither the exporter nor a recording rule makes."""
    made = [rule for rule in recordings() if rule.name == name]
    if made:
        return _recorded(made)
    base, _, suffix = name.rpartition("_")
    spec = specs().get(name) or (specs().get(base) if suffix in ("bucket", "sum", "count") else None)
    if spec is None and name not in OTHERS:
        raise Wrong(f"{name} is neither in the catalogue nor recorded")
    if spec is not None and spec.kind == "histogram" and spec.name == name:
        raise Wrong(f"{name} is a histogram: its series end in _bucket, _sum or _count")
    own = spec.labels if spec else OTHERS[name]
    if spec is not None and suffix in ("sum", "count") and spec.name == base:
        own = own[:-1]
    # Prometheus keeps its own labels and renames the exporter's of the same name.
    own = tuple(f"exported_{label}" if label in SCRAPED else label for label in own)
    return Vector(SCRAPED | frozenset(own), SCRAPED | frozenset(_KEYS.get(name, own)))


def _recorded(made: list[Rule]) -> Vector:
    labels: frozenset[str] = frozenset()
    varying: frozenset[str] = frozenset()
    for rule in made:
        found = labels_of(rule.expr, metric)
        if found is None:
            raise Wrong(f"{rule.name} records a scalar")
        added = frozenset(rule.body.get("labels", {}))
        labels, varying = labels | found.labels | added, varying | found.varying | added
    return Vector(labels, varying)


def queries(text: str) -> list[str]:
    """The queries that an annotation's template makes, with something in place of what it fills in."""
    found = []
    for quoted, _ in _QUERY.findall(text):
        found.append(quoted.replace('\\"', '"').replace(_PLACE, '"x"'))
    return found
