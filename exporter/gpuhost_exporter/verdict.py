"""Whether this host may take a job, in one word and one reason, for schedulers and load balancers.

fit       nothing that drains (kinds.py) is found, and all that it rests on is read
unfit     something that drains is found
unknown   simulated, not read yet, not readable any more: nobody shall take this for fit
"""

from __future__ import annotations

from typing import Literal

from gpuhost_exporter.status import Status

Word = Literal["fit", "unfit", "unknown"]

# What drains is told by these. A subject that is not on this host tells nothing, and is not waited for.
_RESTS_ON = frozenset({"driver", "gpu_health", "nvlink", "fabric", "nvme", "raid", "rdma"})
_UNREADABLE = frozenset({"released", "permission", "crashed", "error"})
_UNREAD = frozenset({"waiting", "failing", "denied"})


def verdict(status: Status, *, sampling: bool) -> tuple[Word, str]:
    """`sampling`: whether the collectors run at all."""
    if status.simulated:
        return "unknown", f"the exporter serves a simulated host, {status.simulated}"
    draining = [finding for finding in status.findings if finding.drains]
    if draining:
        more = f", and {len(draining) - 1} more" if len(draining) > 1 else ""
        return "unfit", f"{draining[0]}{more}"
    if not sampling:
        return "unknown", "no collector of the exporter has finished a poll for long"
    missing = unread(status)
    if missing:
        return "unknown", missing
    if status.verdict == "unknown":
        return "unknown", status.headline
    return "fit", status.headline


def unread(status: Status) -> str:
    """What is not read though it is here, and why if that is known; "" where all is read that the verdict rests on."""
    names = [row.name for row in status.collectors if row.name in _RESTS_ON and row.state in _UNREAD]
    why = next((f" ({finding})" for finding in status.findings if finding.kind in _UNREADABLE), "")
    return f"not read: {', '.join(names)}{why}" if names else ""
