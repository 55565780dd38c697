"""What the way to another host delivers: perftest to a peer, and an MPI all-reduce with it.

    $ ib_write_bw -d mlx5_0 -i 1 --report_gbits PEER
     #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
     65536      5000             392.01             391.87               0.747431
    $ ib_write_lat -d mlx5_0 -i 1 PEER
     #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% ...
     2       1000          0.99           3.21         1.02               1.03           0.03            1.12     2.35
    $ mpirun -np 2 --host localhost,PEER osu_allreduce -m 8:8
    # Size       Avg Latency(us)
    8                       2.31

The peer has to run ib_write_bw, then ib_write_lat, with the same device and no further options, once for each port.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from gpuhost_exporter.collectors import rdma, targets
from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources import tools
from gpuhost_exporter.verify import thresholds
from gpuhost_exporter.verify.measurement import ROOM_TO_HANG, Asked, Measurement, Planned, Waiting, attempt, succeeded
from gpuhost_exporter.verify.result import Result
from gpuhost_exporter.verify.thresholds import judge

BANDWIDTH, LATENCY, ALL_REDUCE = "RDMA write", "RDMA write latency", "MPI all-reduce"
CHECKS = (BANDWIDTH, LATENCY, ALL_REDUCE)
_PROGRAMS = {BANDWIDTH: "ib_write_bw", LATENCY: "ib_write_lat"}
_SECONDS = 10.0
_NOBODY = ("Couldn't connect", "Connection refused", "Unable to find the Exposed", "Couldn't resolve")
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def plan(asked: Asked, latest: Latest) -> list[Planned]:
    ports = [labels for labels, up in latest.rows(rdma.UP).items() if up]
    planned: list[Planned] = []
    for check, program in _PROGRAMS.items():
        why = _obstacle(asked, program) or ("" if ports else "no RDMA port is up")
        if why:
            planned.append(Result(check, "", "skipped", why=why))
            continue
        for device, port in ports:
            run = partial(_perftest, latest, asked.peer or "", check, device, port)
            planned.append(Measurement(f"{program} {device}", _SECONDS, run))
    why = _obstacle(asked, "mpirun") or _obstacle(asked, "osu_allreduce")
    if why:
        planned.append(Result(ALL_REDUCE, "", "skipped", why=why))
    else:
        planned.append(Measurement("osu_allreduce", _SECONDS, partial(_all_reduce, latest, asked.peer or "")))
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


def parse_osu(text: str) -> float:
    """Microseconds of the last size. Raises Malformed."""
    lines = [words for line in text.splitlines() if len(words := line.split()) >= 2 and words[0].isdecimal()]
    if not lines:
        raise Malformed(f"osu_allreduce: expected a line a size, got {text[:40]!r}")
    return _positive(lines[-1][1], "osu_allreduce")


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


def _perftest(latest: Latest, peer: str, check: str, device: str, port: str, waiting: Waiting) -> Sequence[Result]:
    results: list[Result] = []
    name = f"{device} port {port}"
    with attempt(check, name, results):
        program = _PROGRAMS[check]
        options = ("--report_gbits",) if check == BANDWIDTH else ()
        command = (program, "-d", device, "-i", port, *options, peer)
        answer = tools.run(command, _SECONDS * ROOM_TO_HANG, waiting)
        if answer.status and any(words in answer.errors + answer.output for words in _NOBODY):
            raise Absent(f"nobody answers on {peer}: run {program} -d DEVICE there")
        output = succeeded(program, answer)
        if check == BANDWIDTH:
            rate = parse_perftest(output, "BW_average") * 1e9 / 8
            line = latest.value(rdma.RATE, device, port)
            results.append(judge(check, name, rate, "bytes_per_second", line, thresholds.load()["ib_write_bw"]))
        else:
            results.append(judge(check, name, parse_perftest(output, "t_typical") / 1e6, "seconds", None, None))
    return results


def _all_reduce(latest: Latest, peer: str, waiting: Waiting) -> Sequence[Result]:
    results: list[Result] = []
    with attempt(ALL_REDUCE, "", results):
        command = ("mpirun", "-np", "2", "--host", f"localhost,{peer}", "osu_allreduce", "-m", "8:8")
        output = succeeded("osu_allreduce", tools.run(command, _SECONDS * ROOM_TO_HANG, waiting, _AS_ROOT))
        wanted = latest.value(targets.COLLECTIVE_LATENCY)
        share = thresholds.load()["mpi_all_reduce"]
        results.append(judge(ALL_REDUCE, "", parse_osu(output) / 1e6, "seconds", wanted, share))
    return results
