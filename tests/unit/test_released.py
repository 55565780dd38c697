"""Metric names are an interface: what the last release had is still there, with the same type and labels.

pytest tests/unit/test_released.py --update-golden      after a release, or with a line in the CHANGELOG
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from gpuhost_exporter import catalogue

REPOSITORY = Path(__file__).parents[2]
RELEASED = REPOSITORY / "tests" / "golden" / "catalogue.json"


def now() -> dict[str, list[object]]:
    return {name: [spec.kind, list(spec.labels)] for name, spec in sorted(catalogue.specs().items())}


def breaks(released: dict[str, list[object]], current: dict[str, list[object]], changelog: str) -> list[str]:
    """What a rule or dashboard of the last release would trip over, but for what a [CHANGE] line names."""
    announced = set(re.findall(r"gpuhost_\w+", "\n".join(re.findall(r"(?m)^- \[CHANGE\] .*", changelog))))
    return [name for name, was in released.items() if current.get(name) != was and name not in announced]


def test_no_metric_of_the_last_release_is_gone_or_changed(request):
    if request.config.getoption("--update-golden"):
        lines = (f" {json.dumps(name)}: {json.dumps(told)}" for name, told in now().items())
        RELEASED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    released = json.loads(RELEASED.read_text())
    assert len(released) > 100
    assert breaks(released, now(), (REPOSITORY / "CHANGELOG.md").read_text()) == []


def test_a_metric_that_goes_or_changes_is_found_unless_the_changelog_says_so():
    released = {"gpuhost_a": ["gauge", ["gpu"]], "gpuhost_b": ["gauge", []], "gpuhost_c": ["gauge", []]}
    current = {"gpuhost_a": ["gauge", ["gpu", "uuid"]], "gpuhost_c": ["gauge", []], "gpuhost_new": ["gauge", []]}
    assert breaks(released, current, "- [FEATURE] gpuhost_b") == ["gpuhost_a", "gpuhost_b"]
    assert breaks(released, current, "- [CHANGE] gpuhost_b is gone: use gpuhost_new.") == ["gpuhost_a"]
