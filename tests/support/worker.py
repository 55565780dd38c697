"""A real process that does as it is told: `Worker().do("write", path, 50)` returns when it has been done.

Megabytes are 10**6 bytes. `fork` gives the command to a child that then waits until `reap`. What takes `seconds` is
spread over them. `start` and `finish` are the two halves of `do`, for several at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

_PROGRAM = r"""
import ctypes, json, mmap, os, resource, shutil, signal, socket, sys, threading, time

MB = 1_000_000
children = []
held = []


def paced(count, seconds):
    begin = time.monotonic()
    for number in range(count):
        yield number
        time.sleep(max(0.0, begin + seconds * (number + 1) / count - time.monotonic()))


def write(path, megabytes, seconds=0.0):
    with open(path, "wb", buffering=0) as file:
        for _ in paced(megabytes, seconds):
            file.write(bytes(MB))


def save(path, megabytes, seconds=0.0, sync=False):
    # As torch.save does: a zip archive, for each tensor (of 16 MB) a short header and its bytes.
    with open(path, "wb") as file:
        for number in paced(megabytes // 16, seconds):
            file.write(b"PK\3\4" + b"archive/data/%d" % number)
            file.write(bytes(16 * MB))
        if sync:
            file.flush()
            os.fsync(file.fileno())


def overwrite(path, megabytes, seconds=0.0):
    with open(path, "r+b", buffering=0) as file:
        for _ in paced(megabytes, seconds):
            file.write(bytes(MB))


def direct(path, megabytes, seconds=0.0):
    block = mmap.mmap(-1, 1 << 20)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    for _ in paced(megabytes, seconds):
        os.write(descriptor, block)
    os.close(descriptor)


def mapped(path, megabytes, seconds=0.0):
    with open(path, "w+b") as file:
        file.truncate(megabytes * MB)
        with mmap.mmap(file.fileno(), megabytes * MB) as area:
            for number in paced(megabytes, seconds):
                area[number * MB : (number + 1) * MB] = bytes(MB)


def stage(memory, path, megabytes, seconds=0.0):
    # Into memory first, then to where it stays.
    save(memory, megabytes, 0.7 * seconds)
    shutil.move(memory, path)


def writers(path, count, megabytes, seconds=0.0):
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            write(f"{path}.{number}", megabytes, seconds)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def files(folder, count, kilobytes, seconds=0.0):
    os.makedirs(folder, exist_ok=True)
    for number in paced(count, seconds):
        with open(f"{folder}/{number}.cubin", "wb") as file:
            file.write(bytes(1000 * kilobytes))


def dump(folder, megabytes):
    # A child that fails and leaves a core of that size.
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 40, 1 << 40))
        ballast = b"x" * (megabytes * MB)
        os.abort()
    os.waitpid(pid, 0)


def read(path, seconds=0.0):
    with open(path, "rb", buffering=0) as file:
        for _ in paced(os.path.getsize(path) // MB, seconds):
            file.read(MB)


def send(megabytes, seconds=0.0):
    left, right = socket.socketpair()
    threading.Thread(target=lambda: [None for _ in iter(lambda: right.recv(MB), b"")], daemon=True).start()
    for _ in paced(megabytes, seconds):
        left.sendall(bytes(MB))
    left.close()


def keep(path, megabytes, seconds=0.0):
    held.append(open(path, "wb", buffering=0))
    for _ in paced(megabytes, seconds):
        held[-1].write(bytes(MB))


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
        self.finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def do(self, *command):
        self.start(*command)
        return self.finish()

    def start(self, *command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def finish(self):
        line = self._process.stdout.readline()
        assert line, "the worker failed"
        return json.loads(line)
