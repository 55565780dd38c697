"""A real process that does as it is told: `Worker().do("write", path, 50)` returns when it has been done.

Megabytes are 10**6 bytes. `fork` gives the command to a child that then waits until `reap`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

_PROGRAM = r"""
import ctypes, json, mmap, os, signal, socket, sys, threading, time

MB = 1_000_000
children = []
held = []


def write(path, megabytes):
    with open(path, "wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(bytes(MB))


def overwrite(path, megabytes):
    with open(path, "r+b", buffering=0) as file:
        for _ in range(megabytes):
            file.write(bytes(MB))


def direct(path, megabytes):
    block = mmap.mmap(-1, 1 << 20)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    for _ in range(megabytes):
        os.write(descriptor, block)
    os.close(descriptor)


def mapped(path, megabytes):
    with open(path, "w+b") as file:
        file.truncate(megabytes * MB)
        with mmap.mmap(file.fileno(), megabytes * MB) as area:
            area[:] = bytes(megabytes * MB)


def read(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(MB):
            pass


def send(megabytes):
    left, right = socket.socketpair()
    threading.Thread(target=lambda: [None for _ in iter(lambda: right.recv(MB), b"")], daemon=True).start()
    for _ in range(megabytes):
        left.sendall(bytes(MB))
    left.close()


def keep(path, megabytes):
    held.append(open(path, "wb", buffering=0))
    held[-1].write(bytes(megabytes * MB))


def unlink(path):
    os.unlink(path)


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def ignore():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def threads(count):
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def fork(*command):
    to_child, ours = os.pipe()
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        if command:
            globals()[command[0]](*command[1:])
        os.write(told, b"x")
        os.read(to_child, 1)
        os._exit(0)
    os.close(to_child), os.close(told)
    os.read(done, 1), os.close(done)
    children.append((pid, ours))
    return pid


def end():
    # The last child ends; nobody waits for it yet.
    pid, pipe = children.pop()
    os.close(pipe)
    return pid


def reap():
    pid = end()
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


class Worker:
    def __init__(self, environment=None, through=()):
        self._process = subprocess.Popen(
            [*through, sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], **(environment or {})},
        )
        self.pid = self._process.pid
        self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def do(self, *command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the worker failed"
        return json.loads(line)
