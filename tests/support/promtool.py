"""promtool, and the test files of the alerts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from support.rules import TEST_FILES, load

PROMTOOLS = tuple(filter(None, os.environ.get("GPUHOST_PROMTOOLS", shutil.which("promtool") or "").split(":")))
ABSENT = "promtool is not installed: apt-get install prometheus"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text):
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhdw])", str(text)))


def promtool(tool, *arguments):
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout + done.stderr


def _cases():
    for path in TEST_FILES:
        for test in load(path)["tests"]:
            for name in {case["alertname"] for case in test.get("alert_rule_test", ())}:
                yield name, path, test


def by_alert():
    """Alert -> (its test file, its tests in it)."""
    found = {}
    for name, path, test in _cases():
        found.setdefault(name, (path, []))[1].append(test)
    return found


CASES = by_alert()
