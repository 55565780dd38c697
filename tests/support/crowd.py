"""Company for benchmarks: thousands of idle processes, and one with 500 threads that notices when it is disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

_VICTIM = """
import os, sys, threading, time
threading.stack_size(65536)
for _ in range(499):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
null = os.open("/dev/null", os.O_WRONLY)
print(flush=True)
for line in sys.stdin:
    end, took = time.monotonic() + float(line), []
    while time.monotonic() < end:
        begin = time.perf_counter_ns()
        os.write(null, b"x"), os.times()
        took.append(time.perf_counter_ns() - begin)
        time.sleep(0.0005)
    print(*took, flush=True)
"""


@contextlib.contextmanager
def others(count):
    """So many more processes on the host."""
    script = f"i=0; while [ $i -lt {count} ]; do sleep 3600 & i=$((i+1)); done; echo; wait"
    shell = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    shell.stdout.readline()
    try:
        yield
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        shell.stdout.close()


class Victim:
    """A process with 500 threads; one of them times two system calls again and again."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self._process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def start(self, seconds):
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def finish(self):
        """Microseconds of each pair of calls, in order of size."""
        return sorted(int(word) / 1000 for word in self._process.stdout.readline().split())
