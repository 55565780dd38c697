"""Following the GPUs' processes: their trees and jobs, and what each did since the last look. Never all of /proc.

    follower.look({"GPU-...": [4711]}) -> Evidence

Each second: every process' io and stat, a holder's children, a few threads' states. Each five: the others' children and
the job's cgroup.procs. Once: the environment of a holder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Denied, SourceError
from gpuhost_exporter.sources import cgroups, jobs, procfs, writeback
from gpuhost_exporter.sources.evidence import Evidence, JobIdentity, ProcessSample, Role
from gpuhost_exporter.sources.files import Root, optional_text, read_text
from gpuhost_exporter.sources.process_work import Process, Work
from gpuhost_exporter.sources.procfs import Io, Stat

MOST_PROCESSES = 512
SEARCH_SECONDS = 5.0
THREADS_SECONDS = 30.0  # a thread other than the main one seldom has children
THREADS_A_LOOK = 8  # of a process
MOST_THREADS_A_LOOK = 64  # of all holders
MOUNT_BYTES = 32 << 20  # written in one window: worth a look at the open files
MOUNT_SECONDS = 10.0
_SLOW_SECONDS = 60.0


@dataclass(slots=True)
class _Holder:
    """Who holds a GPU, and what is known of the job."""

    since: float
    start: int
    cgroup_text: str
    cgroup: str | None  # path in version 2
    own_cgroup: bool  # it is the job's, by its name; a login session's may hold anything
    uid: int | None
    session: int
    began: int  # pid of its jobs.origin()
    identity: JobIdentity | None


class Follower:
    def __init__(self, root: Root, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._environments = jobs.Environments(root)
        self._counters = writeback.HostCounters(root)
        self._groups = cgroups.Groups(root)
        self._processes: dict[int, Process] = {}
        self._holders: dict[int, _Holder] = {}
        self._at: float | None = None
        self._slow_at = float("-inf")
        self._delays = False
        self._known_since = float("-inf")  # what began before may have been followed, or seen and left out

    def look(self, holding: Mapping[str, Iterable[int]]) -> Evidence:
        """What came of these GPUs' processes since the last call. `holding`: pids by GPU UUID."""
        now = self._clock.now()
        since = self._at if self._at is not None else now
        self._at = now
        if now - self._slow_at >= _SLOW_SECONDS:
            self._slow_at = now
            self._counters.refresh()
            self._groups.refresh()
            self._delays = optional_text(f"{self._root.proc}/sys/kernel/task_delayacct") == "1"
        gpus: dict[int, list[str]] = {}
        for uuid, pids in holding.items():
            for pid in pids:
                gpus.setdefault(pid, []).append(uuid)
        host = self._counters.look()
        self._drop(gpus, since)
        unseen = tuple(pid for pid in sorted(gpus) if not self._hold(pid, now))
        self._search(now)
        told = [(process, stat, process.advance(stat, io)) for process, stat, io in self._read_all()]
        self._find_mounts(((process, work) for process, _, work in told), now)
        samples = tuple(self._sample(*each, gpus.get(each[0].pid, ()), now - since) for each in told)
        holders = [(pid, holder.identity) for pid, holder in self._holders.items() if holder.identity is not None]
        groups: dict[str, str | None] = {}
        for holder in self._holders.values():
            if holder.cgroup:
                key = holder.identity.key if holder.identity else None
                # What the group of several jobs does is none's in particular.
                groups[holder.cgroup] = key if groups.get(holder.cgroup, key) == key else None
        return Evidence(
            since=since,
            at=now,
            processes=samples,
            jobs=tuple(identity for _, identity in holders),
            holders=tuple((pid, place) for place, (pid, _) in enumerate(holders)),
            cgroups=self._groups.look(groups),
            host=host,
            unseen=unseen,
            left_out=frozenset(
                sample.job
                for (process, *_), sample in zip(told, samples, strict=True)
                if process.left_out and sample.job
            ),
        )

    # Who is to be followed

    def _drop(self, gpus: Mapping[int, object], since: float) -> None:
        gone = {pid for pid in self._holders if pid not in gpus}
        for pid in gone:
            del self._holders[pid]
        if gone:
            # The others may lead to what it led to: at once, or later, when nobody knows what that did before.
            led = any(process.holder in gone and process.pid not in gone for process in self._processes.values())
            self._known_since = since
            for pid in self._holders.keys() & self._processes.keys() if led else ():
                self._processes[pid].searched = -math.inf
        found = list(self._environments.found())
        for pid, start, environment in found:
            holder = self._holders.get(pid)
            if holder is not None and holder.start == start:
                known = holder.cgroup_text, environment, holder.uid, holder.began, holder.session
                holder.identity = jobs.identify(*known)
        if found:
            runs = jobs.same_run((holder.began, holder.identity) for holder in self._holders.values())
            for holder in self._holders.values():
                holder.identity = jobs.in_run(holder.identity, runs.get(holder.began))

    def _hold(self, pid: int, now: float) -> bool:
        """Follow a holder from now on; False when it is not to be seen."""
        known = self._processes.get(pid)
        if known is not None and pid in self._holders:
            return True
        try:
            stat = procfs.parse_stat(read_text(f"{self._root.proc}/{pid}/stat"))
        except SourceError:
            return False
        text = optional_text(f"{self._root.proc}/{pid}/cgroup") or ""
        uid = jobs.owner(self._root, pid)
        began = jobs.origin(self._root, pid, stat)
        identity = jobs.identify(text, {}, uid, began, stat.session)
        path, own_cgroup = jobs.unified_group(text)
        self._holders[pid] = _Holder(now, stat.start, text, path, own_cgroup, uid, stat.session, began, identity)
        self._environments.ask(pid, stat.start)
        if known is None:
            self._processes[pid] = Process(pid, pid, now, stat.start)
        else:
            known.holder = pid
        return True

    def _search(self, now: float) -> None:
        """Find the holders' descendants, and companions last: what is below one of them is that one's."""
        waiting = [process for process in self._processes.values() if process.holder in self._holders]
        groups: dict[str, Process] = {}
        known_since = self._known_since
        while waiting or groups:
            if waiting:
                process = waiting.pop()
                found = self._descendants(process, now, groups)
            else:
                path, process = groups.popitem()
                found = self._groups.members(path)
            for pid in found:
                known = self._processes.get(pid)
                if known is None:
                    if len(self._processes) >= MOST_PROCESSES:
                        process.left_out = True
                        self._known_since = now
                        continue
                    new_since = max(known_since, self._holders[process.holder].since)
                    known = self._processes[pid] = Process(pid, process.holder, new_since)
                elif known.holder in self._holders:
                    continue
                known.holder, known.searched = process.holder, -math.inf
                waiting.append(known)

    def _descendants(self, process: Process, now: float, groups: dict[str, Process]) -> list[int]:
        """Children, as far as it is their turn; `groups`: whose companions are due as well."""
        if now - process.searched < SEARCH_SECONDS:
            return self._children_of(process.pid, process.pid) if process.pid == process.holder else []
        # Spread over the seconds to come, so that not all are due in the same.
        process.searched = now + (process.pid % 5 if math.isinf(process.searched) else 0)
        process.left_out = False
        process.threads = procfs.threads(self._root, process.pid)
        holder = self._holders.get(process.pid)
        if holder and holder.cgroup and holder.own_cgroup:
            groups.setdefault(holder.cgroup, process)
        return self._children(process, now)

    def _children(self, process: Process, now: float) -> list[int]:
        if now - process.threads_searched < THREADS_SECONDS:
            return self._children_of(process.pid, process.pid)
        process.threads_searched = now
        return [child for thread in process.threads for child in self._children_of(process.pid, thread)]

    def _children_of(self, pid: int, thread: int) -> list[int]:
        return procfs.parse_pids(optional_text(f"{self._root.proc}/{pid}/task/{thread}/children") or "")

    # What they did

    def _read_all(self) -> list[tuple[Process, Stat, Io | None]]:
        """Every process' counters, before any is judged: what ends meanwhile shows in its parent's.

        I/O before stat: a child that is waited for in between is taken off too early, which the next look mends.
        What no holder leads to any more is let go as if it had ended, since most of it has.
        """
        told = []
        ended = {pid: process for pid, process in self._processes.items() if process.holder not in self._holders}
        for process in self._processes.values():
            if process.pid in ended:
                continue
            folder = f"{self._root.proc}/{process.pid}"
            try:
                io = _io(process, folder)
                stat = procfs.parse_stat(read_text(f"{folder}/stat"))
            except SourceError:
                ended[process.pid] = process
                continue
            if process.start < 0:
                process.start = stat.start
                if parent := self._processes.get(stat.ppid):
                    process.holder = parent.holder  # found as a companion: not the main thread began it
            if process.start == stat.start:
                told.append((process, stat, io))
            else:
                ended[process.pid] = process  # its number is another's now
        for pid in ended:
            del self._processes[pid]
        for process in reversed(ended.values()):
            if process.parent is not None:
                heir = self._processes.get(process.parent) or ended.get(process.parent)
                if heir is not None:
                    process.bequeath(heir)
        return told

    def _sample(self, process: Process, stat: Stat, work: Work, gpus: Iterable[str], seconds: float) -> ProcessSample:
        role, why = process.role(work, seconds)
        looked, waiting = self._threads(process, stat, role)
        done = work.io
        identity = self._holders[process.holder].identity
        return ProcessSample(
            pid=process.pid,
            start=stat.start / procfs.TICKS_PER_SECOND,
            ppid=stat.ppid,
            holder=process.holder,
            gpus=tuple(gpus),
            role=role,
            role_evidence=why,
            job=identity.key if identity else None,
            comm=stat.comm,
            state=stat.state,
            threads=stat.threads,
            threads_looked=looked,
            threads_blocked=waiting,
            cpu_seconds=work.cpu_seconds,
            blocked_seconds=work.blocked_seconds if self._delays else None,
            denied=process.denied,
            read_chars=done.read_chars if done else None,
            written_chars=done.written_chars if done else None,
            read_bytes=done.read_bytes if done else None,
            write_bytes=done.write_bytes if done else None,
            cancelled_bytes=done.cancelled_bytes if done else None,
            made_bytes=work.made,
            mount=process.mount.point if process.mount else None,
            mount_type=process.mount.type if process.mount else None,
        )

    def _threads(self, process: Process, stat: Stat, role: Role) -> tuple[int, int]:
        """(looked at, in D): the main thread, those found in D the last time, and the next few in turn."""
        blocked = [process.pid] if stat.state == "D" else []
        if role not in ("holder", "writer") or not process.threads:
            return 1, len(blocked)
        count = len(process.threads)
        few = max(1, min(THREADS_A_LOOK, MOST_THREADS_A_LOOK // len(self._holders)))
        chosen = set(process.blocked[:THREADS_A_LOOK])
        chosen.update(process.threads[(process.turn + step) % count] for step in range(min(count, few)))
        chosen.discard(process.pid)
        process.turn = (process.turn + few) % count
        for thread in chosen:
            text = optional_text(f"{self._root.proc}/{process.pid}/task/{thread}/stat") or ""
            if text.rpartition(")")[2][1:2] == "D":
                blocked.append(thread)
        process.blocked = blocked
        return 1 + len(chosen), len(blocked)

    def _find_mounts(self, works: Iterable[tuple[Process, Work]], now: float) -> None:
        """Of those who write much; where none of many that belong together does, of the one that writes most."""
        together: dict[int, list[tuple[int, Process]]] = {}
        for process, work in works:
            if work.io is not None and (wrote := max(work.io.written_chars, work.io.write_bytes)):
                together.setdefault(process.holder, []).append((wrote, process))
        for writers in together.values():
            if sum(wrote for wrote, _ in writers) >= MOUNT_BYTES:
                most = max(wrote for wrote, _ in writers)
                for wrote, process in writers:
                    if wrote >= min(most, MOUNT_BYTES):
                        self._find_mount(process, now)

    def _find_mount(self, process: Process, now: float) -> None:
        passing = process.mount is None or process.mount.type == "tmpfs"  # what is staged moves on
        if passing or now - process.mount_at >= MOUNT_SECONDS:
            process.mount_at, process.mount = now, procfs.written_mount(self._root, process.pid)


def _io(process: Process, folder: str) -> Io | None:
    try:
        io = procfs.parse_io(read_text(f"{folder}/io"))
    except Denied:
        process.denied = True
        return None
    process.denied = False
    return io
