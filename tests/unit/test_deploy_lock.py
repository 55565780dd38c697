"""The lock of what packages bring along, and the bill of materials that is made from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = REPOSITORY / "deploy" / "packages"
LOCK = (PACKAGES / "requirements.txt").read_text()


def pinned():
    return dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==(\S+)", LOCK))


def test_every_dependency_is_pinned_with_hashes_and_no_index_is_named():
    project = (REPOSITORY / "pyproject.toml").read_text()
    (block,) = re.findall(r"(?ms)^dependencies = \[$(.*?)^\]$", project)
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)', block)}
    assert wanted == {name.lower() for name in pinned()}
    for entry in re.split(r"(?m)^(?=\S)", LOCK):
        if "==" in entry and not entry.startswith("#"):
            assert "--hash=sha256:" in entry, entry[:60]
    assert "://" not in LOCK
    assert "index" not in LOCK


def test_what_builds_the_packages_is_pinned_with_hashes_too():
    text = (PACKAGES / "build-requirements.txt").read_text()
    script = (PACKAGES / "build.sh").read_text()
    entries = [entry for entry in re.split(r"(?m)^(?=\S)", text) if entry and not entry.startswith("#")]
    assert {entry.partition("==")[0] for entry in entries} >= {"build", "setuptools"}
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    for line in script.replace("\\\n", " ").splitlines():
        if 'pip" install' in line:
            assert "--require-hashes" in line or "--no-deps" in line, line
    assert "-m build --no-isolation" in script, "else build fetches a setuptools of its own"


def test_the_bill_names_what_the_lock_pins_with_its_hashes():
    command = [sys.executable, PACKAGES / "sbom.py", PACKAGES / "requirements.txt", "1.2.3"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (told["bomFormat"], told["metadata"]["component"]["version"]) == ("CycloneDX", "1.2.3")
    assert {each["name"]: each["version"] for each in told["components"]} == {
        name.lower(): version for name, version in pinned().items()
    }
    assert sum(len(each["hashes"]) for each in told["components"]) == LOCK.count("--hash=sha256:")
    assert told["dependencies"][0]["dependsOn"] == [each["purl"] for each in told["components"]]
