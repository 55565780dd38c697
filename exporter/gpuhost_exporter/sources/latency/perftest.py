"""perftest's ib_write_lat and ib_send_lat: their command lines, their output, and one as a child process.

    $ ib_write_lat -d mlx5_0 -i 1 -p 18515 -n 46 -s 8 -F -U 10.0.0.2
    ---------------------------------------------------------------------------------------
                        RDMA_Write Latency Test
     Dual-port       : OFF		Device         : mlx5_0
    ...
     #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec] ...
    #, usec
    1, 1.84
    2, 1.05
    ...
    ---------------------------------------------------------------------------------------
     #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec] ...
     8       46          0.97           1.84         1.02                1.04             0.04 ...

Both print half a round trip, in microseconds (perftest_parameters.c: rtt_factor is 2 but for reads and atomics).
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

from gpuhost_exporter.errors import Malformed

if TYPE_CHECKING:
    from gpuhost_exporter.latency.settings import Rdma

MESSAGE_BYTES = 8
RUN_SECONDS = 10
_OUTPUT_BYTES = 256 << 10
_HALVES = 2
_VALUE = re.compile(r"\d{1,6}, (?P<microseconds>\d{1,9}(?:\.\d{1,9})?(?:e[+-]\d\d)?)\s*\Z")


def command(rdma: Rdma, messages: int, server: str | None) -> list[str]:
    """The client's command line, or the server's where there is no server to connect to. `messages` that are timed:
    perftest takes a time stamp of each that it is told to send, and lists what lies between them, one less.
    """
    chosen = [] if rdma.gid_index is None else ["-x", str(rdma.gid_index)]
    arguments = ["-d", rdma.device, "-i", str(rdma.port), "-p", str(rdma.tcp_port), "-n", str(messages + 1)]
    peer = [] if server is None else [server]
    return [rdma.program, *arguments, "-s", str(MESSAGE_BYTES), *chosen, "-F", "-U", *peer]


def parse(output: str, warm_up: int) -> tuple[float, ...]:
    """Seconds of each round trip in the order in which they were made, without the first few. Raises Malformed."""
    lines = iter(output.splitlines())
    if not any(line.strip() == "#, usec" for line in lines):
        raise Malformed(f"perftest: expected a list headed '#, usec', got {_last_line(output)!r}")
    seconds = []
    for line in lines:
        match = _VALUE.match(line.strip())
        if match is None:
            break
        seconds.append(float(match["microseconds"]) * 1e-6 * _HALVES)
    if len(seconds) <= warm_up or min(seconds) <= 0.0:
        raise Malformed(f"perftest: expected more than {warm_up} latencies above 0, got {len(seconds)}")
    return tuple(seconds[warm_up:])


def _last_line(output: str) -> str:
    return next((line.strip()[:120] for line in reversed(output.splitlines()) if line.strip()), "")


class Program:
    """A program that is killed when it takes too long, also by then without an exporter. Wait on fileno()."""

    def __init__(self, arguments: list[str]) -> None:
        self._output = bytearray()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        try:
            self._pid = os.posix_spawnp(
                "timeout",
                ["timeout", "--signal=KILL", str(RUN_SECONDS), *arguments],
                {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writing, 1),
                    (os.POSIX_SPAWN_DUP2, writing, 2),
                ],
                setsigmask=(),
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._reading = reading

    def fileno(self) -> int:
        return self._reading

    def read(self) -> bool:
        """Take what it printed; False at its end. What is too much to be a result is dropped."""
        try:
            block = os.read(self._reading, 65536)
        except BlockingIOError:
            return True
        if len(self._output) < _OUTPUT_BYTES:
            self._output += block
        return bool(block)

    def stop(self) -> None:
        """Have it end now; `timeout` hands the signal on."""
        os.kill(self._pid, signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """Its exit status and output, once read() said that it ended."""
        os.close(self._reading)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status), self._output.decode("utf-8", "replace")
