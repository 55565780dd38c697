"""The table of what the last verify measured."""

from kit.names import Scope
from kit.parts import GOOD, PLAIN, WATCH, Placed
from kit.tables import Column, listing


def measured(scope: Scope, width: int) -> Placed:
    return listing(
        "What the last verify measured",
        (
            Column("Check", label="check"),
            Column("Device", label="device", width=120),
            Column(
                "Measured",
                f"max by (check, device) ({scope('gpuhost_verify_bytes_per_second')})",
                unit="Bps",
            ),
            Column(
                "Warns below",
                f"max by (check, device) ({scope('gpuhost_verify_target_bytes_per_second')})",
                unit="Bps",
            ),
            Column(
                "Of it",
                f"max by (check, device) ({scope('gpuhost_verify_bytes_per_second')}"
                f" / {scope('gpuhost_verify_target_bytes_per_second')})",
                unit="percentunit",
                decimals=0,
                steps=((None, PLAIN), (0, WATCH), (1, GOOD)),
            ),
            Column(
                "Against sisters",
                f"max by (check, device) ({scope('device:gpuhost_verify:ratio_sisters')})",
                unit="percentunit",
                decimals=0,
                steps=((None, PLAIN), (0, WATCH), (0.9, PLAIN)),
            ),
        ),
        why="By gpuhost-exporter verify, as it was then. Against sisters: over the median of the cluster's "
        "machines of this product; good is near 100 %, one machine well below is the one to look at.",
        sort="Check",
        descending=False,
        empty="Nobody has run gpuhost-exporter verify on this host",
        most=50,
        width=width,
    )
