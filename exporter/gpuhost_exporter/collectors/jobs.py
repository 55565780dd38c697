"""Whose work a GPU does: one series a GPU, from its holders' control group and environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpuhost_exporter.collectors.per_gpu import gpu_gauge, gpu_info
from gpuhost_exporter.config import JobNames, Shown
from gpuhost_exporter.sources.nvml.readings import Process
from gpuhost_exporter.specs import Sample

if TYPE_CHECKING:
    from gpuhost_exporter.sources.evidence import Evidence, JobIdentity

_CONTAINER_DIGITS = 12  # as docker ps shows them
_MOST_HASHES = 256

INFO = gpu_info(
    "gpuhost_gpu_job_info",
    "Whose work the GPU does; of several jobs the one with most GPU memory. job (Prometheus keeps it as "
    "exported_job): slurm, kubernetes, container, systemd or user, and its id: a user's own jobs are told apart by a "
    "digest of the rendezvous, else by the first process. name: of the job, pod, unit or elastic run. project: Slurm "
    "account or namespace. pod: its UID. run: the rendezvous, the same on every host of the job (none on a loopback "
    "address); rank: the place in it. Text is what the job's environment says. The configuration's [job] shows names "
    "plain, as hashes or not at all; users are not shown unless it says so.",
    "job",
    "name",
    "project",
    "pod",
    "container",
    "user",
    "run",
    "rank",
)
TENANTS = gpu_gauge(
    "gpuhost_gpu_jobs",
    "Distinct jobs that have processes on the GPU, as far as they can be seen. Good is 1, or 0 when nobody has it: "
    "the ledger books the time of a GPU that several share by the evidence of any of them.",
)
SPECS = (INFO, TENANTS)


class Jobs:
    def __init__(self, names: JobNames) -> None:
        self._names = names
        self._hashes: dict[str, str] = {}

    def samples(self, labels: tuple[str, str], processes: tuple[Process, ...], evidence: Evidence) -> Iterator[Sample]:
        """Of one GPU, whose holders NVML names and the privileged reader has looked at."""
        owners = {pid: evidence.jobs[place] for pid, place in evidence.holders}
        memory: dict[str, int] = {}
        first: dict[str, JobIdentity] = {}
        for process in sorted(processes, key=lambda process: process.pid):
            owner = owners.get(process.pid)
            if owner is not None:
                first.setdefault(owner.key, owner)
                memory[owner.key] = memory.get(owner.key, 0) + (process.memory_bytes or 0)
        if first or not processes:
            yield TENANTS(*labels, value=len(first))
        if first:
            job = max(sorted(first), key=lambda key: memory[key])
            yield INFO(*labels, self._key(first[job]), *self._about(first[job]))

    def _key(self, job: JobIdentity) -> str:
        """The name of a unit, or of a container without an id, is one that somebody chose."""
        chosen = job.kind == "systemd" or (job.kind == "container" and job.container is None)
        if not chosen or self._names.names == "plain":
            return job.key
        return f"{job.kind}:{_hash(job.id, self._hashes)}"

    def _about(self, job: JobIdentity) -> Iterator[str]:
        yield self._shown(job.name, self._names.names)
        yield self._shown(job.account, self._names.names)
        yield job.pod or ""
        yield (job.container or "")[:_CONTAINER_DIGITS]
        yield self._shown(job.user, self._names.users)
        yield self._shown(job.meeting, self._names.names)
        yield "" if job.rank is None else str(job.rank)

    def _shown(self, text: str | None, how: Shown) -> str:
        if not text or how == "off":
            return ""
        return text if how == "plain" else _hash(text, self._hashes)


def _hash(text: str, known: dict[str, str]) -> str:
    """The same on every host, so that series can still be joined. Who has a list of names can try them."""
    if text not in known:
        from hashlib import sha256  # OpenSSL's memory is for who wants hashes

        if len(known) >= _MOST_HASHES:
            known.clear()
        known[text] = sha256(text.encode()).hexdigest()[:12]
    return known[text]
