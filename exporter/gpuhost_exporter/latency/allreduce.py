"""How long an allreduce of a few bytes takes over the hosts of an MPI job: `gpuhost-exporter allreduce`, on every rank.

    mpirun --host gpu-a,gpu-b gpuhost-exporter allreduce --storage.path=/var/lib/gpuhost-exporter

One rank a host leaves the result in that host's state directory, where its exporter finds it. Each time is that of the
slowest rank, for then the collective is done. It holds mpi4py's own cost, about a microsecond a call.
"""

from __future__ import annotations

import time
from array import array

from gpuhost_exporter.averages import median
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.latency.collective import SUBJECT, Collective
from gpuhost_exporter.sources.state import State

BYTES = 8
_WARM_UP = 100


def allreduce(storage: str, iterations: int) -> int:
    """Measure, print a line on the first rank, and leave the result. 1 where a host cannot keep it."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library to load
        raise ConfigError(
            f"mpi4py: {error}; pip install 'gpuhost-exporter[mpi]', and an MPI such as Open MPI"
        ) from error
    world = MPI.COMM_WORLD
    if world.size < 2:
        raise ConfigError("one rank alone has nobody to reduce with: start it with mpirun on two hosts or more")
    mine, summed = array("d", [1.0]), array("d", [0.0])
    seconds = array("d", bytes(8 * iterations))
    for number in range(-_WARM_UP, iterations):
        world.Barrier()
        began = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        world.Allreduce(mine, summed)
        took = time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - began
        if number >= 0:
            seconds[number] = took
    slowest = array("d", bytes(8 * iterations))
    world.Allreduce(seconds, slowest, op=MPI.MAX)
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    hosts = world.allreduce(int(host.rank == 0))
    reason = ""
    if host.rank == 0:
        state = State(storage)
        found = Collective(time.time(), world.size, hosts, BYTES, tuple(slowest))
        state.replace(SUBJECT, found.data())
        state.flush()
        reason = state.reason
        state.close()
    reasons = [reason for reason in world.gather(reason) or () if reason]
    if world.rank == 0:
        where = f"{world.size} ranks, {hosts} host{'s' * (hosts > 1)}"
        print(f"allreduce of {BYTES} bytes, {where}: median {median(slowest) * 1e6:.2f} us")
        for reason in reasons:
            print(f"not kept: {reason}")
    return int(bool(reasons))
