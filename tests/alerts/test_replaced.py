"""An exporter whose pod is replaced: its series go on under another name, and no rule takes them for double."""

from __future__ import annotations

import pytest
import yaml
from support.days import lived
from support.promtool import ABSENT, PROMTOOLS, promtool
from support.rules import RULE_FILES

pytestmark = pytest.mark.skipif(not PROMTOOLS, reason=ABSENT)
MINUTES, REPLACED = 40, 20


@pytest.fixture(scope="module")
def series():
    """Of a host that trains and saves each minute, as the operator's target labels have it."""
    found = {}
    for minute, text in enumerate(lived("checkpoint-sync", 60 * MINUTES)):
        pod = "old" if minute < REPLACED else "new"
        for line in text:
            name, _, value = line.rpartition(" ")
            values = found.setdefault(name.replace("{", f'{{pod="{pod}",', 1), ["_"] * MINUTES)
            values[minute] = value
    # What ends is marked so by Prometheus: it is not looked at for five minutes more.
    for values in found.values():
        last = max(minute for minute, value in enumerate(values) if value != "_")
        if last + 1 < MINUTES:
            values[last + 1] = "stale"
    return [{"series": name, "values": " ".join(values)} for name, values in found.items()]


def test_no_rule_fails(series, tmp_path):
    assert any("checkpoint_last_bytes" in each["series"] for each in series)
    case = {
        "rule_files": list(RULE_FILES),
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {"alertname": "GpuhostExporterDown", "eval_time": f"{MINUTES - 1}m", "exp_alerts": []}
                ],
            }
        ],
    }
    path = tmp_path / "case.yml"
    path.write_text(yaml.safe_dump(case))
    for tool in PROMTOOLS:
        code, output = promtool(tool, "test", "rules", str(path))
        assert code == 0, output
