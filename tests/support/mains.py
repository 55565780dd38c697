"""Reader mains for the launcher's tests."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import socket
import time
from pathlib import Path

from gpuhost_exporter.sources import linux
from gpuhost_exporter.sources.nvml.calls import DriverDown
from gpuhost_exporter.sources.nvml.marks import MarkWriter
from gpuhost_exporter.sources.nvml.readings import Batch, Driver, Fault, Gpu, Inventory, Links, Xid
from gpuhost_exporter.sources.pipe import Pipe, recv_request, send_answer


def echo(sockets, arguments, marks):
    pipe = Pipe(sockets[0])
    while True:
        send_answer(pipe, (arguments, recv_request(pipe)))


def facts(sockets, arguments, marks):
    """What a reader may do and holds."""
    try:
        socket.socket(socket.AF_INET).close()
        internet = True
    except PermissionError:
        internet = False
    marks[:5] = b"noted"
    descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    send_answer(Pipe(sockets[0]), (internet, linux.effective_capabilities(), os.getppid(), descriptors))


def crash(sockets, arguments, marks):
    faulthandler.disable()  # pytest's, whose traceback would look like a defect in the log
    ctypes.string_at(0)


def hang(sockets, arguments, marks):
    send_answer(Pipe(sockets[0]), os.getpid())
    while True:
        time.sleep(60)


def wait_for_end(sockets, arguments, marks):
    send_answer(Pipe(sockets[0]), os.getpid())
    select.select([sockets[0]], [], [])


def nvml(sockets, arguments, marks):
    """An NVML reader whose behaviour is a list of steps in a file: each start and each request takes the next.

    Steps: ok, ok:UUID,UUID (those answer, the others are lost), hang:UUID, crash:UUID, down:STATE, event.
    A skipped GPU is neither touched nor answered.
    """
    steps = Path(arguments["steps"])
    mark = MarkWriter(marks)
    pipe, events = Pipe(sockets[0]), Pipe(sockets[1])
    gpus = tuple(_gpu(index, f"GPU-{index}") for index in range(arguments["gpus"]))

    def step(skip):
        todo = steps.read_text().split()
        steps.write_text(" ".join(todo[1:]))
        what, _, which = (todo or ["ok"])[0].partition(":")
        if which in skip:
            return "ok", ""
        if what in ("hang", "crash"):
            mark(which, "nvmlDeviceGetPowerUsage")
            if what == "crash":
                faulthandler.disable()
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(600)
        if what == "down":
            send_answer(pipe, DriverDown(which, f"the driver is {which}"))
            os._exit(0)
        return what, which

    what, which = step(arguments["skip"])
    alive = set(which.split(",")) if which else {gpu.uuid for gpu in gpus}
    out = {int(name[6:]) for name in arguments["skip"] if name.startswith("index:")}
    gpus = tuple(gpu for gpu in gpus if gpu.index not in out)
    here = tuple(gpu for gpu in gpus if gpu.uuid in alive)
    told = tuple(gpu for gpu in here if gpu.uuid not in arguments["skip"])
    faults = tuple(Fault(f"index:{gpu.index}", "open", "lost", 15, "lost") for gpu in gpus if gpu.uuid not in alive)
    faults += tuple(Fault(f"index:{gpu.index}", "open", "hung", 0, "left out") for gpu in here if gpu not in told)
    send_answer(pipe, Inventory(Driver("580.1", "13", "13.0"), told, faults))
    while True:
        request = recv_request(pipe)
        what, which = step(request["skip"])
        alive = set(which.split(",")) if which else {gpu.uuid for gpu in gpus}
        if what == "event":
            send_answer(events, (Xid("GPU-0", "0000:01:00", 79, 1.0, "nvml"),))
            alive = {gpu.uuid for gpu in gpus}
        asked = [gpu for gpu in here if gpu.uuid not in request["skip"]]
        readings = tuple(Links(gpu.uuid, 0.0, ()) for gpu in asked if gpu.uuid in alive)
        faults = tuple(Fault(gpu.uuid, "power", "lost", 15, "lost") for gpu in asked if gpu.uuid not in alive)
        send_answer(pipe, Batch(0.0, readings, faults))


def _gpu(index, uuid):
    return Gpu(index, uuid, "NVIDIA H100 80GB HBM3", f"0000:{index:02x}:00.0", *[None] * 8, link_count=18)
