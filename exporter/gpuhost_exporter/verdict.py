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
_RESTS_ON = frozenset({"driver", "gpu_health", "nvlink", "fabric", "nvme", "raid"})
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
    unread = [row.name for row in status.collectors if row.name in _RESTS_ON and row.state in _UNREAD]
    if unread:
        first = status.findings[0] if status.findings else None
        said = f" ({first})" if first and first.kind in ("released", "permission", "crashed", "error") else ""
        return "unknown", f"not read: {', '.join(unread)}{said}"
    if status.verdict == "unknown":
        return "unknown", status.headline
    return "fit", status.headline
