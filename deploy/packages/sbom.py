"""What the packages bring along, as CycloneDX 1.5, from the lock that they are built from.

sbom.py requirements.txt VERSION > gpuhost-exporter-VERSION.cdx.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_PACKAGE = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bill(lock: str, version: str) -> dict[str, Any]:
    """One component a package; its hashes are those of every file that the lock accepts for it."""
    components: list[dict[str, Any]] = []
    for line in lock.splitlines():
        if found := _PACKAGE.match(line):
            name = re.sub(r"[-_.]+", "-", found[1]).lower()
            address = f"pkg:pypi/{name}@{found[2]}"
            components.append(
                {
                    "type": "library",
                    "bom-ref": address,
                    "name": name,
                    "version": found[2],
                    "purl": address,
                    "hashes": [],
                }
            )
        components[-1]["hashes"] += [{"alg": "SHA-256", "content": digest} for digest in _HASH.findall(line)]
    ours = f"pkg:generic/gpuhost-exporter@{version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": ours, "name": "gpuhost-exporter", "version": version}
        },
        "components": components,
        "dependencies": [{"ref": ours, "dependsOn": [each["bom-ref"] for each in components]}],
    }


if __name__ == "__main__":
    json.dump(bill(Path(sys.argv[1]).read_text(), sys.argv[2]), sys.stdout, indent=1)
    print()
