"""Every way in goes past the command line's imports, which take longer than the answer of `health`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_console_script_and_the_packages_script_enter_by_main():
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert re.findall(r'(?m)^gpuhost-exporter = "(.*)"$', project) == ["gpuhost_exporter.__main__:main"]
    script = (REPOSITORY / "deploy" / "packages" / "gpuhost-exporter.in").read_text()
    assert re.findall(r"(?m)^(?:from|import) (gpuhost_exporter\S*) ?(.*)$", script) == [
        ("gpuhost_exporter.__main__", "import main")
    ]


def test_the_packages_script_answers_health_without_the_command_line(tmp_path):
    script = (REPOSITORY / "deploy" / "packages" / "gpuhost-exporter.in").read_text()
    package = str(REPOSITORY / "exporter")
    script = script.replace("/usr/lib/gpuhost-exporter", package).replace("sys.exit(main())", _TELL)
    (tmp_path / "script").write_text(script)
    command = [sys.executable, "-sE", tmp_path / "script", "health", "--url=http://127.0.0.1:1", "--timeout=1s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said, loaded = done.stdout.splitlines()
    assert said.startswith("unknown: no exporter at 127.0.0.1:1")
    assert (loaded, done.returncode) == ("[]", 2)


_TELL = """
code = main()
print([name for name in sys.modules if name in ("gpuhost_exporter.cli", "gpuhost_exporter.collectors")])
sys.exit(code)
"""
