"""A simulated host that is already so many seconds into its scenario."""

from __future__ import annotations

from pathlib import Path

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control


def arguments(folder: Path, host: str, scenario: str, *, elapsed: float = 0.0) -> tuple[str, str]:
    """The serve arguments for it. A scenario's faults come 20 s in; nobody wants to wait for them."""
    file = folder / "control.json"
    control.create(str(file), host, scenario, SystemClock(), elapsed=elapsed)
    return f"--simulate={host}:{scenario}", f"--simulate.control={file}"
