"""How RDMA adapters can reach GPU memory. No privilege needed.

/sys/module/nvidia_peermem              (before 2021: nv_peer_mem)
/proc/driver/nvidia/version             NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06 ...
/proc/sys/kernel/osrelease              6.8.0-57-generic        (DMA-BUF: open module and 5.12 or newer)
"""

from __future__ import annotations

import os
import re

from gpuhost_exporter.sources.files import Root, optional_text

_RELEASE = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})")
_DMA_BUF_SINCE = (5, 12)


def paths(root: Root) -> dict[str, bool]:
    """Whether each path is there; none of them told where NVIDIA's driver is not loaded."""
    driver = optional_text(f"{root.proc}/driver/nvidia/version")
    if driver is None:
        return {}
    release = _RELEASE.match(optional_text(f"{root.proc}/sys/kernel/osrelease") or "")
    new = release is not None and (int(release[1]), int(release[2])) >= _DMA_BUF_SINCE
    modules = (f"{root.sys}/module/{name}" for name in ("nvidia_peermem", "nv_peer_mem"))
    return {
        "peer_memory": any(os.path.exists(module) for module in modules),
        "dma_buf": new and "Open Kernel Module" in driver,
    }
