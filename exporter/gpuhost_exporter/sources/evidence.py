"""What the processes on the GPUs did in one window: frozen readings, pickled by the privileged reader.

SI units; None is "not told". `since` and `at` are Clock.now(). All bytes and seconds of work are what came within the
window, each counted once: what a parent inherits from a child that it has reaped is taken off again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# What a process seems to be for. holder: NVML names it. writer, loader: below a holder or in its job, by what it did
# in the last half minute. other: below a holder or in its job, and neither.
Role = Literal["holder", "loader", "writer", "other"]
JobKind = Literal["slurm", "kubernetes", "container", "systemd", "user"]


_ITSELF = ("localhost", "127.", "0.", "::", "[::")  # how addresses begin that every host, and container, has for itself


class JobIdentity(NamedTuple):
    """Whose work a GPU holder is: from its cgroup's path, and from its environment where that may be read.

    Text from the environment is the user's own: printable, at most 128 characters, and else not to be trusted.
    A tuple, as ProcessSample is.
    """

    kind: JobKind
    # Slurm's job id, the pod's UID with dashes, the container's id (LXC: its name), the unit's name (of a user's own
    # manager with the user id before it), or the user id with what tells the user's jobs apart: "1007-run-1f3a99c0",
    # "1007-4711".
    id: str
    step: str | None = None  # Slurm: "0", "batch", "interactive", ...
    pod: str | None = None  # Kubernetes: the pod's UID, as id
    container: str | None = None  # its id of 64 hex digits, where the cgroup names one
    uid: int | None = None  # owner of the process
    user: str | None = None  # SLURM_JOB_USER, else USER
    # SLURM_JOB_NAME, POD_NAME (else the pod's HOSTNAME), the unit, LXC's name of the container, TORCHELASTIC_RUN_ID
    name: str | None = None
    account: str | None = None  # SLURM_JOB_ACCOUNT, POD_NAMESPACE
    rank: int | None = None  # RANK, else Slurm's or Open MPI's
    local_rank: int | None = None
    world_size: int | None = None
    rendezvous: str | None = None  # MASTER_ADDR:MASTER_PORT, the same on every host of a job

    @property
    def key(self) -> str:
        """What tells two jobs on this host apart: "slurm:90017"."""
        return f"{self.kind}:{self.id}"

    @property
    def meeting(self) -> str | None:
        """The rendezvous, where ranks of other hosts and containers can come to it."""
        return None if self.rendezvous and self.rendezvous.startswith(_ITSELF) else self.rendezvous


class ProcessSample(NamedTuple):
    """One process in the window. A process is (pid, start): numbers are used again.

    The work of a process that is first seen is None, unless it started within the window. Threads are together.
    A tuple, because dozens are pickled each second: a frozen dataclass takes 35 us.
    """

    pid: int
    start: float  # Clock.now() at its start, to 10 ms
    ppid: int
    holder: int  # pid of the GPU holder that led here; its own pid for a holder
    gpus: tuple[str, ...]  # UUIDs that it holds itself
    role: Role
    role_evidence: str  # "nvml"; "wrote 2.1 GB"; "read 310 MB"; "cpu 8.1 s"; ""
    job: str | None  # key of a JobIdentity in the same Evidence
    comm: str  # the kernel's 15 bytes of its name
    state: str  # of the main thread at `at`: R running, S sleeping, D waiting for I/O, T stopped, Z ended
    threads: int
    threads_looked: int  # how many of them were looked at in this window, the main thread among them
    threads_blocked: int  # and how many of those were in D
    cpu_seconds: float | None  # user and system
    blocked_seconds: float | None  # main thread waiting for block I/O; None unless delay accounting is on
    denied: bool  # /proc/PID/io may not be read: the fields below are None
    # Through system calls: files, on tmpfs too, and pipes; not sockets' recv and send, not mmap. A call counts when it
    # returns, less what the page cache had told of it in the windows before. A core file is left out.
    read_chars: int | None
    written_chars: int | None
    read_bytes: int | None  # fetched from storage
    write_bytes: int | None  # page cache newly dirtied, mmap too, and direct writes; 0 for tmpfs and for overwrites
    cancelled_bytes: int | None  # dirtied before and then removed: never written
    made_bytes: int | None  # of what it wrote, less what it read meanwhile: a copy makes nothing. Negative: takes back
    mount: str | None = None  # mount point that it writes to, where it wrote much and its files may be looked at
    mount_type: str | None = None  # "ext4", "nfs4", "tmpfs", ...

    @property
    def wrote(self) -> int | None:
        """The best single figure for bytes written to files: what system calls or the page cache saw, whichever is
        more (an overwrite and tmpfs are only in the first, mmap only in the second)."""
        if self.written_chars is None or self.write_bytes is None:
            return None
        return max(self.written_chars, self.write_bytes)

    @property
    def read(self) -> int | None:
        """The same for bytes read from files."""
        if self.read_chars is None or self.read_bytes is None:
            return None
        return max(self.read_chars, self.read_bytes)


@dataclass(frozen=True, slots=True)
class CgroupIo:
    """The control group of GPU holders, where it is cgroup v2 with the io or memory controller. Anybody may read it.

    Bytes are counted at the lowest devices only, not at md or dm above them, and what an md mirror was given once.
    None in the first window.
    """

    path: str  # below the cgroup root, "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
    job: str | None
    read_bytes: int | None  # from block devices
    write_bytes: int | None  # to block devices
    dirtied_bytes: int | None  # page cache newly dirtied: written to devices plus the change of what is dirty
    io_some_seconds: float | None  # some task of it stalled on I/O
    io_full_seconds: float | None  # all of them
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class DeviceIo:
    name: str  # "nvme0n1": lowest devices, and redundant arrays in place of what they are made of
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class MountIo:
    point: str  # "/data"
    write_bytes: int  # to the device that is mounted there


@dataclass(frozen=True, slots=True)
class HostIo:
    """All of the host: whoever wrote. None in the first window."""

    dirtied_bytes: int | None  # page cache newly dirtied (nr_dirtied)
    written_bytes: int | None  # page cache written back (nr_written)
    devices: tuple[DeviceIo, ...] | None
    most_written: MountIo | None = None  # of the mounts on the host's own drives


@dataclass(frozen=True, slots=True)
class Evidence:
    """One answer of the privileged reader's job `processes`."""

    since: float
    at: float
    processes: tuple[ProcessSample, ...]
    jobs: tuple[JobIdentity, ...]  # one for each holder's rank: several with the same key
    holders: tuple[tuple[int, int], ...]  # (pid, index of its JobIdentity in `jobs`)
    cgroups: tuple[CgroupIo, ...]
    host: HostIo
    unseen: tuple[int, ...]  # pids that NVML names and /proc does not show: another PID namespace, hidepid, or ended
    left_out: frozenset[str]  # keys of jobs with more processes than are followed

    @property
    def denied(self) -> bool:
        """Whether some process' I/O may not be read."""
        return any(process.denied for process in self.processes)

    def job_of(self, pid: int) -> JobIdentity | None:
        """The identity of a GPU holder."""
        return next((self.jobs[place] for holder, place in self.holders if holder == pid), None)
