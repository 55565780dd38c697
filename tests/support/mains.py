"""Reader mains for the launcher's tests."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time

from gpuhost_exporter.sources import linux
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
    ctypes.string_at(0)


def hang(sockets, arguments, marks):
    send_answer(Pipe(sockets[0]), os.getpid())
    while True:
        time.sleep(60)


def wait_for_end(sockets, arguments, marks):
    send_answer(Pipe(sockets[0]), os.getpid())
    select.select([sockets[0]], [], [])
