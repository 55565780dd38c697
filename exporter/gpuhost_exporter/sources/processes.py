"""Who owns a process: the owner of its folder in /proc, which any user may ask for.

    stat /proc/4711 -> Uid: 1000
A process that may not be traced (setuid programs) shows root here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from gpuhost_exporter.sources.files import Root


def owners(root: Root, pids: Iterable[int]) -> frozenset[int]:
    """The distinct user ids behind these process ids. One that has ended, or that hidepid or another PID
    namespace hides, is left out."""
    found = set()
    for pid in pids:
        try:
            found.add(os.stat(f"{root.proc}/{pid}").st_uid)
        except OSError:
            continue
    return frozenset(found)
