"""What the way to another host delivers: perftest to a peer, and an MPI all-reduce with it.

    $ ib_write_bw -d mlx5_0 -i 1 -F -D 3 -f 1 --report_gbits PEER              1 of 3 seconds counts
     #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
     65536      2242290          0.00               391.87               0.747431
    $ ib_write_lat -d mlx5_0 -i 1 -F PEER                 -F: also while idle processors' clocks differ
     #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% ...
     2       1000          0.99           3.21         1.02               1.03           0.03            1.12     2.35
    $ mpirun -np 2 --host localhost,PEER gpuhost-exporter allreduce
    allreduce of 8 bytes, 2 ranks, 2 hosts: median 2.31 us

The peer has to run ib_write_bw, then ib_write_lat, once for each port with its device, and no further options.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gpuhost_exporter.collectors import rdma, targets
from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources import tools
from gpuhost_exporter.verify import thresholds
from gpuhost_exporter.verify.measurement import ROOM_TO_HANG, Asked, Measurement, Planned, Waiting, attempt, succeeded
from gpuhost_exporter.verify.result import Mode, Result
from gpuhost_exporter.verify.thresholds import judge

BANDWIDTH, LATENCY, ALL_REDUCE = "RDMA write", "RDMA write latency", "MPI all-reduce"
CHECKS = (BANDWIDTH, LATENCY, ALL_REDUCE)
_PROGRAMS = {BANDWIDTH: "ib_write_bw", LATENCY: "ib_write_lat"}
_SETTING_UP = 10.0  # seconds that connecting and starting ranks may well take
_BANDWIDTH_SECONDS = {"quick": 24, "full": 160}  # of all ports together
_LEAST_SECONDS, _MOST_SECONDS = 3, 20  # of one: perftest leaves out the first and the last
_CONNECTING = 0.75
_REDUCING = 8.0
_NOBODY = ("Couldn't connect", "Unable to init the socket connection")  # also of a name that nobody knows
_PATIENCE = 5.0
_LOOK_SECONDS = 0.3
_MEDIAN = re.compile(r"allreduce of \d+ bytes, \d+ ranks, (\d+) hosts?: median (\S+) us$", re.MULTILINE)
_REFUSED = re.compile(r"^gpuhost-exporter: (.+)$", re.MULTILINE)
_LACKING = re.compile(r"^(?:\S+: |ModuleNotFoundError: )No module named '?([\w.]+)'?$", re.MULTILINE)
# What Open MPI says of a host on which it can start nothing, or of one that lacks the program.
_NOT_STARTED = ("unable to reliably start", "unable to find the specified executable", "could not access or execute")
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(slots=True)
class _Peer:
    """`patience`: seconds that it may take to start the next program. Waited for in vain, it is waited for no more."""

    host: str
    patience: float


def plan(asked: Asked, latest: Latest, mode: Mode) -> list[Planned]:
    ports = [labels for labels, up in latest.rows(rdma.UP).items() if up]
    planned: list[Planned] = []
    peer = _Peer(asked.peer or "", _PATIENCE)
    share = _BANDWIDTH_SECONDS[mode] // max(1, len(ports))
    for check, program in _PROGRAMS.items():
        why = _obstacle(asked, program) or ("" if ports else "no RDMA port is up")
        if why:
            planned.append(Result(check, "", "skipped", why=why))
            continue
        for device, port in ports:
            lasts = max(_LEAST_SECONDS, min(_MOST_SECONDS, share)) if check == BANDWIDTH else 0
            run = partial(_perftest, latest, peer, check, device, port, lasts)
            planned.append(Measurement(f"{program} {device}", lasts + _CONNECTING, run))
    why = _obstacle(asked, "mpirun")
    if not why and not tools.has_module("mpi4py"):
        why = "mpi4py is not installed: pip install 'gpuhost-exporter[mpi]'"
    if why:
        planned.append(Result(ALL_REDUCE, "", "skipped", why=why))
    else:
        planned.append(Measurement("allreduce", _REDUCING, partial(_all_reduce, latest, asked)))
    return planned


def parse_perftest(text: str, column: str) -> float:
    """The figure below the column that begins so, of the last line of the table. Raises Malformed."""
    place = None
    for line in text.splitlines():
        if line.split()[:1] == ["#bytes"]:
            # "BW average[Gb/sec]" is one column of two words.
            names = line.replace("BW peak", "BW_peak").replace("BW average", "BW_average").replace("% percentile", "%")
            place = next((at for at, name in enumerate(names.split()) if name.startswith(column)), None)
            continue
        words = line.split()
        if place is not None and words[:1] and words[0].isdecimal() and len(words) > place:
            return _positive(words[place], "perftest")
    raise Malformed(f"perftest: expected a table with {column}, got {text[:40]!r}")


def parse_all_reduce(text: str) -> tuple[int, float]:
    """Hosts, and microseconds. Raises Malformed."""
    match = _MEDIAN.search(text)
    if not match:
        raise Malformed(f"allreduce: expected its median, got {text[:40]!r}")
    return int(match[1]), _positive(match[2], "allreduce")


def _positive(word: str, program: str) -> float:
    try:
        figure = float(word)
    except ValueError as error:
        raise Malformed(f"{program}: expected a figure, got {word[:40]!r}") from error
    if not (math.isfinite(figure) and figure > 0):
        raise Malformed(f"{program}: expected a figure above 0, got {word[:40]!r}")
    return figure


def _obstacle(asked: Asked, program: str) -> str:
    if not asked.peer:
        return "name a host on the same fabric: --peer HOST"
    return "" if tools.find(program) else f"{program} is not installed"


def _perftest(
    latest: Latest, peer: _Peer, check: str, device: str, port: str, lasts: int, waiting: Waiting
) -> Sequence[Result]:
    results: list[Result] = []
    name = f"{device} port {port}"
    with attempt(check, name, results):
        program = _PROGRAMS[check]
        # By time: the usual 5,000 messages are over in 7 ms on a port of 400 Gb/s, and take minutes on a slow one.
        options = ("-D", str(lasts), "-f", "1", "--report_gbits") if lasts else ()
        command = (program, "-d", device, "-i", port, "-F", *options, peer.host)
        output = succeeded(program, _ask(command, peer, lasts + _SETTING_UP, waiting))
        if check == BANDWIDTH:
            rate = parse_perftest(output, "BW_average") * 1e9 / 8
            line = latest.value(rdma.RATE, device, port)
            results.append(judge(check, name, rate, "bytes_per_second", line, thresholds.load()["ib_write_bw"]))
        else:
            results.append(judge(check, name, parse_perftest(output, "t_typical") / 1e6, "seconds", None, None))
    return results


def _ask(command: Sequence[str], peer: _Peer, seconds: float, waiting: Waiting) -> tools.Answer:
    """Its answer once the peer listens. Raises Absent."""
    until = time.monotonic() + peer.patience
    while True:
        answer = tools.run(command, seconds * ROOM_TO_HANG, waiting)
        if not answer.status or not any(words in answer.errors + answer.output for words in _NOBODY):
            return answer
        if time.monotonic() >= until:
            peer.patience = 0.0
            raise Absent(f"nobody answers on {peer.host}: run {command[0]} -d DEVICE there, once for each port")
        time.sleep(_LOOK_SECONDS)
        waiting()


def _all_reduce(latest: Latest, asked: Asked, waiting: Waiting) -> Sequence[Result]:
    results: list[Result] = []
    with attempt(ALL_REDUCE, "", results):
        program = (sys.executable, "-c", tools.starting_this_package(), "allreduce")
        storage = (f"--storage.path={asked.storage}",) if asked.storage else ()
        command = ("mpirun", "-np", "2", "--host", f"localhost,{asked.peer}", *program, *storage)
        answer = tools.run(command, _SETTING_UP * ROOM_TO_HANG, waiting, _AS_ROOT)
        if any(words in answer.errors for words in _NOT_STARTED):
            raise Absent(
                f"mpirun starts nothing on {asked.peer}: it needs ssh without a password, and {program[0]} there"
            )
        lacking = _LACKING.search(answer.errors)
        if answer.status and lacking:
            raise Absent(f"this host or {asked.peer} lacks Python's module {lacking[1]} for {program[0]}")
        refused = _REFUSED.search(answer.errors)
        if answer.status and refused:
            raise Absent(refused[1])
        # A host that measured and cannot keep its result says so by its status.
        kept = answer.status == 0 or _MEDIAN.search(answer.output)
        hosts, microseconds = parse_all_reduce(answer.output if kept else succeeded("allreduce", answer))
        if hosts < 2:
            raise Absent(f"{asked.peer} is this host: name another")
        wanted = latest.value(targets.COLLECTIVE_LATENCY)
        share = thresholds.load()["mpi_all_reduce"]
        results.append(judge(ALL_REDUCE, "", microseconds / 1e6, "seconds", wanted, share))
    return results
