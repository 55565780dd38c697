"""Whose work a process is, from the path of its control group and a few words of its environment.

    /proc/4711/cgroup   0::/system.slice/slurmstepd.scope/job_90017/step_0/user/task_3
                        0::/kubepods.slice/kubepods-pod0b1c..._7f.slice/cri-containerd-<64 hex digits>.scope
                        4:devices:/slurm/uid_1001/job_90017/step_0/task_3               (version 1)
    /proc/4711/environ  RANK=3\0LOCAL_RANK=3\0WORLD_SIZE=16\0...   as it was when the program started

The environment holds secrets: only the names in KEYS leave read_environment().
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Iterator, Mapping

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources.evidence import JobIdentity
from gpuhost_exporter.sources.files import Root, read_text

_RANKS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)
KEYS = frozenset(
    {
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_JOB_ACCOUNT",
        "SLURM_JOB_USER",
        "POD_NAME",
        "POD_NAMESPACE",
        "HOSTNAME",
        "TORCHELASTIC_RUN_ID",
        "MASTER_ADDR",
        "MASTER_PORT",
        "USER",
    }
).union(*_RANKS)
_LONGEST = 128

_SLURM = re.compile(r"/[^/]*slurm[^/]*/(?:[^/]+/)*?job_(\d+)(?:/step_([^/]+))?(?=/|\Z)")
_POD = re.compile(r"[-/]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./]|\Z)")
_CONTAINER = re.compile(r"[-/]([0-9a-f]{64})(?:\.scope)?(?=/|\Z)")
_LXC = re.compile(r"/lxc(?:\.payload)?[./]([^/]+)")


def read_environment(root: Root, pid: int) -> dict[str, str]:
    """What KEYS names of a process' environment. Reading can wait for the process itself: once, and in a thread of
    its own. Raises SourceError."""
    words = (word.partition("=") for word in read_text(f"{root.proc}/{pid}/environ").split("\0"))
    return {key: value for key, _, value in words if key in KEYS}


class Environments:
    """Reads environments in a thread of its own: a process in trouble can hold up who reads it."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._wanted: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[int, int, dict[str, str]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, pid: int, start: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="environments", daemon=True)
            self._thread.start()
        self._wanted.put((pid, start))

    def found(self) -> Iterator[tuple[int, int, dict[str, str]]]:
        """(pid, start, environment) of those read since the last call."""
        while not self._found.empty():
            yield self._found.get()

    def _run(self) -> None:
        while True:
            pid, start = self._wanted.get()
            try:
                self._found.put((pid, start, read_environment(self._root, pid)))
            except SourceError:
                continue


def unified_path(text: str) -> str | None:
    """The path in the cgroup v2 hierarchy, of /proc/PID/cgroup's text. None where there is none, or where it lies
    outside of this process' cgroup namespace ("/../...")."""
    path = next((line[3:] for line in text.splitlines() if line.startswith("0::/")), None)
    return None if path is None or path.startswith("/..") else path


def identify(cgroup: str, environment: Mapping[str, str], uid: int | None) -> JobIdentity | None:
    """Of /proc/PID/cgroup's text, what could be read of the environment ({} when nothing), and the owner.

    None when not even the owner is told.
    """
    told = {key: _plain(value) for key, value in environment.items()}
    paths = [line.split(":", 2)[-1] for line in cgroup.splitlines()]
    slurm = _first(_SLURM, paths)
    pod = _first(_POD, [path for path in paths if "kubepods" in path])
    container = _last_container(paths)
    slurm_number = told.get("SLURM_JOB_ID") or ""
    base = _whose(told, uid)
    if slurm:
        return base._replace(
            kind="slurm", id=slurm[1], step=slurm[2], container=container, name=told.get("SLURM_JOB_NAME")
        )
    if pod:
        pod_uid = pod[1].replace("_", "-")
        name = told.get("POD_NAME") or told.get("HOSTNAME")
        return base._replace(kind="kubernetes", id=pod_uid, pod=pod_uid, container=container, name=name)
    if container:
        return base._replace(kind="container", id=container, container=container)
    if slurm_number.isdecimal():
        return base._replace(kind="slurm", id=slurm_number, name=told.get("SLURM_JOB_NAME"))
    return base if uid is not None else None


def owner(root: Root, pid: int) -> int | None:
    """The user id that owns a process; None when it has ended or is hidden."""
    try:
        return os.stat(f"{root.proc}/{pid}").st_uid
    except OSError:
        return None


def _whose(told: Mapping[str, str | None], uid: int | None) -> JobIdentity:
    ranks = next((keys for keys in _RANKS if _number(told.get(keys[0])) is not None), ())
    rank, local_rank, world_size = (_number(told.get(key)) for key in ranks) if ranks else (None, None, None)
    address, port = told.get("MASTER_ADDR"), told.get("MASTER_PORT")
    return JobIdentity(
        kind="user",
        id=str(uid),
        uid=uid,
        user=told.get("SLURM_JOB_USER") or told.get("USER"),
        name=told.get("TORCHELASTIC_RUN_ID"),
        account=told.get("SLURM_JOB_ACCOUNT") or told.get("POD_NAMESPACE"),
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        rendezvous=f"{address}:{port}" if address and port else address,
    )


def _plain(text: str) -> str | None:
    """Whoever runs the job wrote this: what is not one short printable word or phrase is not told."""
    return text if text.isprintable() and 0 < len(text) <= _LONGEST else None


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 9 and text.isascii() and text.isdecimal() else None


def _first(pattern: re.Pattern[str], paths: list[str]) -> re.Match[str] | None:
    return next((match for path in paths if (match := pattern.search(path))), None)


def _last_container(paths: list[str]) -> str | None:
    """The innermost: nodes of a kind cluster are containers themselves."""
    for path in paths:
        if found := _CONTAINER.findall(path):
            return str(found[-1])
    lxc = _first(_LXC, paths)
    return lxc[1] if lxc else None
