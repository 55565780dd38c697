"""What hosts cost the agent that scrapes them and the store behind it; deploy/fleet/README.md shows the last run.

PYTHONPATH=tests python tests/bench/agent.py [HOSTS [SECONDS]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from support.fleet import Fleet

INTERVAL = 15


def main(hosts: int = 200, seconds: int = 150) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        Fleet(Path(folder), hosts, INTERVAL) as fleet,
    ):
        fleet.wait_for(lambda: len(fleet.replay.served) == hosts, 120)
        time.sleep(2 * INTERVAL)  # new series cost more than old ones
        sent = "prometheus_remote_storage_bytes_total"
        began, bytes_before = time.monotonic(), fleet.agent_says(sent)
        cpu = fleet.agent.cpu_seconds(), fleet.store.cpu_seconds()
        scraped = sum(fleet.replay.served.values())
        time.sleep(seconds)
        took = time.monotonic() - began
        scrapes = sum(fleet.replay.served.values()) - scraped
        samples = scrapes * fleet.replay.samples
        wire = fleet.agent_says(sent) - bytes_before
        agent, store = fleet.agent.cpu_seconds() - cpu[0], fleet.store.cpu_seconds() - cpu[1]
        dropped = fleet.agent_says("prometheus_remote_storage_samples_dropped_total")
        memory = fleet.agent.memory(), fleet.store.memory()
        fleet.store.stop()
        written = sum(path.stat().st_size for path in fleet.data.rglob("*") if path.is_file())
        total = sum(fleet.replay.served.values()) * fleet.replay.samples
        print(f"{hosts} hosts, {fleet.replay.samples} series and {fleet.replay.bytes} bytes of text each, {INTERVAL} s")
        print(f"scraped {scrapes} of {hosts * took / INTERVAL:.0f} due in {took:.0f} s, {dropped:.0f} samples dropped")
        print(f"a host: {samples / took / hosts:.0f} samples/s, {wire / took / hosts:.0f} bytes/s to the store")
        print(f"a host: agent {memory[0] / hosts / 1e6:.1f} MB, store {memory[1] / hosts / 1e6:.1f} MB")
        print(f"all: agent {agent / took:.2f} cores, store {store / took:.2f} cores")
        print(f"store: {written / total:.2f} bytes a sample on disk (index included)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
