"""Writes the dashboards: `python dashboards/build.py`, after a change to a panel, a metric or a recording rule.

`--check` writes nothing and fails when a committed file differs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
NAMES = ("fleet", "job", "host", "gpu_time", "nvlink", "storage", "fabric", "metal", "exporter")


def built() -> dict[str, str]:
    """File name -> content of every dashboard."""
    found = {}
    for name in NAMES:
        if (HERE / "boards" / f"{name}.py").exists():
            found[f"{name.replace('_', '-')}.json"] = importlib.import_module(f"boards.{name}").BOARD.json()
    return found


def main(arguments: list[str]) -> int:
    differing = []
    for name, content in built().items():
        file = HERE / name
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            differing.append(name)
            if "--check" not in arguments:
                file.write_text(content, encoding="utf-8")
    if "--check" in arguments and differing:
        print(f"differ from what dashboards/build.py makes: {', '.join(differing)}", file=sys.stderr)
        return 1
    print(f"{len(differing)} of {len(NAMES)} dashboards changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
