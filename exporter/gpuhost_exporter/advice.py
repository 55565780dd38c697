"""XID errors of late, and what to do about a GPU: as it says itself, else as NVIDIA's catalogue does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from gpuhost_exporter.collectors import driver, gpu_health, xid
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.xids import UNLISTED, Severity

RESET = "Drain the host, then reset the GPU: nvidia-smi --gpu-reset -i INDEX."
POWER_CYCLE = "Drain the host and power-cycle it; if the GPU does not come back, have it exchanged."
EXCHANGE = "Drain the host and have the GPU exchanged."
LINK = "Drain the host and reset the GPU; a link that stays down needs service."
REBOOT = "Drain the host and reboot it."

# By gpuhost_gpu_recovery_action.
RECOVERY = {
    "gpu_reset": RESET,
    "node_reboot": REBOOT,
    "system_reboot": REBOOT,
    "drain_p2p": "End the jobs that use peer access, then reset the GPU.",
    "drain_and_reset": RESET,
}
STATE = {
    "lost": POWER_CYCLE,
    "needs_reset": RESET,
    "hung": "Drain the host; reset the GPU or reboot.",
    "missing": POWER_CYCLE,
}
# By the word of NVIDIA's XID catalogue.
CATALOGUE = {
    "": "The kernel log has the error's own words: dmesg | grep Xid.",
    "IGNORE": "Nothing at once, says NVIDIA's catalogue.",
    "RESTART_APP": "Restart the application.",
    "RESET_GPU": RESET,
    "RESTART_BM": POWER_CYCLE,
    "RESTART_VM": "Restart the virtual machine.",
    "CHECK_MECHANICALS": "Drain the host and have the GPU's seat and power cables looked at.",
    "CONTACT_SUPPORT": "Drain the host and call NVIDIA's support.",
    "WORKFLOW_NVLINK_ERR": LINK,
    "WORKFLOW_NVLINK5_ERR": LINK,
    "WORKFLOW_XID_45": "Look for the error before it in the kernel log.",
    "WORKFLOW_XID_48": "Drain the host, then reset the GPU; if it comes again, have it exchanged.",
    "XID_154": "Do what the kernel log says beside XID 154.",
}

_RECENT_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class SeenXid:
    """One code of one GPU. `count` is since the exporter started, `last` in seconds since the epoch."""

    index: str
    uuid: str
    code: str
    meaning: str
    severity: Severity
    action: str  # the catalogue's
    count: float
    last: float
    recent: bool


def seen_xids(latest: Latest, now: float) -> Iterator[SeenXid]:
    """`now` in seconds since the epoch."""
    for (index, uuid, code), last in latest.rows(xid.LAST).items():
        facts = latest.facts(xid.INFO, code)
        yield SeenXid(
            index,
            uuid,
            code,
            facts.get("meaning", ""),
            cast("Severity", facts.get("severity", UNLISTED)),
            CATALOGUE[facts.get("action", "")].replace("INDEX", index),
            max(1.0, latest.value(xid.ERRORS, index, uuid, code) or 0.0),  # the counter stands at 0 for a while
            last,
            now - last <= _RECENT_SECONDS,
        )


def seen_sxids(latest: Latest) -> Iterator[tuple[str, float]]:
    """Code and count of fatal errors of NVSwitches. A series begins with the first one, and shows 0 for a while."""
    for (code, fatal), count in latest.rows(xid.SXID_ERRORS).items():
        if fatal == "true":
            yield code, max(1.0, count)


def for_gpu(latest: Latest, index: str, uuid: str, xids: Sequence[SeenXid]) -> str:
    """What the GPU asks for: its own word, else what its state calls for; nothing where it is well.

    A reset does not reach a GPU that fell off the bus, whatever state it is in since.
    """
    asked = latest.state(gpu_health.RECOVERY_ACTION, index, uuid)
    state = latest.state(driver.GPU_STATE, index, uuid)
    off_the_bus = any(
        seen.recent and seen.action == POWER_CYCLE for seen in xids if (seen.index, seen.uuid) == (index, uuid)
    )
    if asked not in (None, "none"):
        action = RECOVERY.get(asked, "Drain the host and do so.")
    elif state in STATE:
        action = POWER_CYCLE if off_the_bus else STATE[state]
    else:
        action = ""
    return action.replace("INDEX", index)
