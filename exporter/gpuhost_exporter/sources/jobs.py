"""Whose work a process is, from the path of its control group and a few words of its environment.

    /proc/4711/cgroup   0::/system.slice/slurmstepd.scope/job_90017/step_0/user/task_3
                        0::/kubepods.slice/kubepods-pod0b1c..._7f.slice/cri-containerd-<64 hex digits>.scope
                        4:devices:/slurm/uid_1001/job_90017/step_0/task_3               (version 1)
                        0::/system.slice/train@7b.service
    /proc/4711/environ  RANK=3\0LOCAL_RANK=3\0WORLD_SIZE=16\0...   as it was when the program started

The environment holds secrets: only the names in KEYS leave read_environment().

What has none of these is its user's, who may run several jobs at a time. The ranks of one have their rendezvous in
common; whoever tells none has the program that started it, as far up as no shell or daemon lies between:

    bash -> python a.py, python b.py      two jobs, though of one session
    bash -> torchrun -> python, python    one, though torchrun begins a session for each
"""

from __future__ import annotations

import os
import queue
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import procfs
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
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")
# A login, a terminal's tab or a daemon that starts other people's programs: no job, whatever runs in it.
_NO_JOB = re.compile(
    r"(?:session-.+|init|vte-spawn-.+|tmux-spawn-.+|app-.+)\.scope"
    r"|(?:user@.*|slurmd.*|sshd?(?:@.*)?|crond?|atd|jupyterhub)\.service"
)
# What starts programs that have nothing to do with each other, by the kernel's 15 bytes of its name.
_STARTERS = frozenset(
    {"bash", "sh", "dash", "zsh", "fish", "ksh", "csh", "tcsh", "tmux: server", "screen", "login", "su", "sudo"}
    | {"sshd", "sshd-session", "systemd", "init", "cron", "crond", "atd", "xargs", "parallel", "make", "supervisord"}
)
_MOST_STEPS = 32
_RUN = "-run-"
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


def unified_group(text: str) -> tuple[str | None, bool]:
    """The unified_path(), and whether the group there is the job's own by its name. No path where version 1 alone names
    the job: in version 2 it is together with everybody's then, below the daemon that started them all."""
    path = unified_path(text)
    named, job = identify(f"0::{path}", {}, None), identify(text, {}, None)
    if path is None or (named and named.key) != (job and job.key):
        return None, False
    return path, named is not None


def origin(root: Root, pid: int, stat: procfs.Stat) -> int:
    """The process that it all began with: the highest above this one with no shell, daemon or the like between."""
    for _ in range(_MOST_STEPS):
        if stat.ppid <= 1:
            break
        try:
            parent = procfs.parse_stat(read_text(f"{root.proc}/{stat.ppid}/stat"))
        except SourceError:
            break
        if parent.comm in _STARTERS:
            break
        pid, stat = stat.ppid, parent
    return pid


def identify(
    cgroup: str, environment: Mapping[str, str], uid: int | None, began: int = 0, session: int = 0
) -> JobIdentity | None:
    """Of /proc/PID/cgroup's text, what could be read of the environment ({} when nothing), and the owner; `began`: its
    origin(). 0 where that or the session is not known.

    None when not even the owner is told.
    """
    told = {key: _plain(value) for key, value in environment.items()}
    paths = [line.split(":", 2)[-1] for line in cgroup.splitlines()]
    slurm = _first(_SLURM, paths)
    pod = _first(_POD, [path for path in paths if "kubepods" in path])
    container = _last_container(paths)
    lxc = _first(_LXC, paths)
    slurm_number = told.get("SLURM_JOB_ID") or ""
    base = _whose(told, uid)
    unit = _unit(paths)
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
    if lxc and _plain(lxc[1]):
        return base._replace(kind="container", id=lxc[1], name=lxc[1])
    if slurm_number.isdecimal():
        return base._replace(kind="slurm", id=slurm_number, name=told.get("SLURM_JOB_NAME"))
    if unit:
        return base._replace(kind="systemd", id=unit, name=unit.rpartition("/")[2])
    return None if uid is None else base._replace(id=_apart(base, told, began, session))


def same_run(identities: Iterable[tuple[int, JobIdentity | None]]) -> dict[int, str]:
    """By origin, the id of the one run that came of it. Who starts a run's other ranks from within itself tells them
    of a rendezvous that its own environment, as it was at its start, does not have."""
    found: dict[int, set[str]] = {}
    for began, identity in identities:
        if identity and identity.kind == "user" and _RUN in identity.id:
            found.setdefault(began, set()).add(identity.id)
    return {began: ids.pop() for began, ids in found.items() if len(ids) == 1}


def in_run(identity: JobIdentity | None, run: str | None) -> JobIdentity | None:
    """Told of no rendezvous, it is in the run of its origin, if there is one."""
    if identity is None or run is None or identity.kind != "user" or _RUN in identity.id:
        return identity
    return identity._replace(id=run)


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


def _apart(base: JobIdentity, told: Mapping[str, str | None], began: int, session: int) -> str:
    """The user, and which of the user's jobs. A digest, because hosts' names are shown or not as the site says."""
    run = base.rendezvous if told.get("MASTER_PORT") else told.get("TORCHELASTIC_RUN_ID")
    if run and run != "none":  # torchrun's own default
        return f"{base.uid}{_RUN}{zlib.crc32(run.encode()):08x}"
    # One of several that were started one by one, by a shell each perhaps: what they have in common is the session.
    several = (base.world_size or 1) > 1
    number = session if several else began
    return f"{base.uid}-{number}" if number else str(base.uid)


def _unit(paths: list[str]) -> str | None:
    """The innermost unit of systemd's that is somebody's work."""
    for path in paths:
        for name in reversed(path.split("/")):
            if _UNIT.fullmatch(name) and not _NO_JOB.fullmatch(name) and _plain(name):
                manager = re.search(r"/user@(\d+)\.service/", path)
                return f"{manager[1]}/{name}" if manager else name
    return None


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
    return None
