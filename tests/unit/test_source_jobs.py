"""Whose work a process is: control groups as the runtimes name them, and what an environment may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Absent
from gpuhost_exporter.sources import jobs
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.jobs import identify, unified_path

UID = "0b1c5a0e-6a7c-4ed5-9f0a-3e6c1f2ab37f"
BAR = UID.replace("-", "_")
ID = "4f" * 32
OUTER = "a0" * 32


@pytest.mark.parametrize(
    ("path", "key", "pod", "container", "step"),
    [
        pytest.param(
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{BAR}.slice/cri-containerd-{ID}.scope",
            f"kubernetes:{UID}", UID, ID, None, id="systemd driver, containerd",
        ),
        pytest.param(
            f"0::/kubepods.slice/kubepods-pod{BAR}.slice/crio-{ID}.scope",
            f"kubernetes:{UID}", UID, ID, None, id="guaranteed pod, CRI-O",
        ),
        pytest.param(
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{BAR}.slice/docker-{ID}.scope",
            f"kubernetes:{UID}", UID, ID, None, id="systemd driver, Docker",
        ),
        pytest.param(
            f"0::/kubepods/burstable/pod{UID}/{ID}", f"kubernetes:{UID}", UID, ID, None, id="cgroupfs driver"
        ),
        pytest.param(f"0::/kubepods/pod{UID}/{ID}", f"kubernetes:{UID}", UID, ID, None, id="cgroupfs, guaranteed"),
        pytest.param(
            f"0::/kubepods/besteffort/pod{'c3' * 16}/{ID}", f"kubernetes:{'c3' * 16}", "c3" * 16, ID, None,
            id="static pod, named by a hash",
        ),
        pytest.param(
            f"0::/system.slice/docker-{OUTER}.scope/kubelet.slice/kubelet-kubepods.slice/"
            f"kubelet-kubepods-pod{BAR}.slice/cri-containerd-{ID}.scope",
            f"kubernetes:{UID}", UID, ID, None, id="kind, systemd driver",
        ),
        pytest.param(
            f"0::/docker/{OUTER}/kubelet/kubepods/burstable/pod{UID}/{ID}",
            f"kubernetes:{UID}", UID, ID, None, id="kind, cgroupfs driver",
        ),
        pytest.param(
            f"11:memory:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/\n0::/",
            f"kubernetes:{UID}", UID, ID, None, id="version 1",
        ),
        pytest.param(
            "0::/system.slice/slurmstepd.scope/job_90017/step_0/user/task_3",
            "slurm:90017", None, None, "0", id="Slurm, version 2",
        ),
        pytest.param(
            "0::/system.slice/gpu07_slurmstepd.scope/job_90017/step_batch/user/task_0",
            "slurm:90017", None, None, "batch", id="Slurm, several slurmd",
        ),
        pytest.param(
            "11:memory:/slurm/uid_1001/job_90017/step_0/task_3\n6:cpuset:/slurm/uid_1001/job_90017/step_0\n1:name=systemd:/",
            "slurm:90017", None, None, "0", id="Slurm, version 1",
        ),
        pytest.param(
            "4:devices:/slurm_gpu07/uid_1001/job_90017/step_extern", "slurm:90017", None, None, "extern",
            id="Slurm, version 1, node in the name",
        ),
        pytest.param(
            f"0::/system.slice/slurmstepd.scope/job_5/step_0/user/task_0/libpod-{ID}.scope",
            "slurm:5", None, ID, "0", id="Podman within Slurm",
        ),
        pytest.param(f"0::/system.slice/docker-{ID}.scope", f"container:{ID}", None, ID, None, id="Docker, systemd"),
        pytest.param(f"0::/docker/{ID}", f"container:{ID}", None, ID, None, id="Docker, cgroupfs"),
        pytest.param(
            f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            f"container:{ID}", None, ID, None, id="rootless Podman",
        ),
        pytest.param("0::/lxc.payload.train/init.scope", "container:train", None, None, None, id="LXC, a name"),
        pytest.param("0::/user.slice/user-1000.slice/session-3.scope", "user:1000", None, None, None, id="a login"),
        pytest.param("0::/system.slice/jupyter.service", "systemd:jupyter.service", None, None, None, id="a service"),
        pytest.param(
            "11:memory:/\n1:name=systemd:/system.slice/train@7.service/workers", "systemd:train@7.service",
            None, None, None, id="a service, version 1",
        ),
        pytest.param(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/train.service", "systemd:1000/train.service",
            None, None, None, id="a user's own service",
        ),
        pytest.param("0::/system.slice/run-r2f.scope", "systemd:run-r2f.scope", None, None, None, id="systemd-run"),
        pytest.param("0::/init.scope", "user:1000", None, None, None, id="systemd itself"),
        pytest.param("0::/system.slice/sshd.service", "user:1000", None, None, None, id="a daemon that logs in"),
        pytest.param(
            "0::/user.slice/user-1000.slice/user@1000.service/init.scope", "user:1000", None, None, None,
            id="a user's manager",
        ),
        pytest.param(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-0b1c.scope", "user:1000",
            None, None, None, id="a terminal's tab",
        ),
        pytest.param("", "user:1000", None, None, None, id="nothing told"),
        pytest.param(
            f"0::/machine.slice/pod{UID}", "user:1000", None, None, None, id="a pod's name outside of kubepods"
        ),
        pytest.param("0::/home/job_17/step_2", "user:1000", None, None, None, id="a job's name outside of Slurm"),
    ],
)  # fmt: skip
def test_a_control_groups_path_names_the_job(path, key, pod, container, step):
    found = identify(path, {}, 1000)
    assert (found.key, found.pod, found.container, found.step) == (key, pod, container, step)
    assert (found.uid, found.rank, found.rendezvous) == (1000, None, None)
    chosen = found.kind == "systemd" or found.id == "train"
    assert found.name == (found.id.rpartition("/")[2] if chosen else None)


TORCHRUN = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param(TORCHRUN, (9, 1, 16, "node1:29500"), id="torchrun"),
        pytest.param(SRUN, (2, 0, 4, None), id="srun"),
        pytest.param(MPI, (3, 3, 8, None), id="mpirun"),
        pytest.param({**SRUN, **TORCHRUN}, (9, 1, 16, "node1:29500"), id="torchrun in srun: the innermost"),
        pytest.param({**SRUN, "RANK": "x", "WORLD_SIZE": "99"}, (2, 0, 4, None), id="families are not mixed"),
        pytest.param({"RANK": "0"}, (0, None, None, None), id="rank 0 alone"),
        pytest.param({"RANK": "-1"}, (None, None, None, None), id="no rank"),
        pytest.param({"RANK": "9" * 40}, (None, None, None, None), id="no number that an int is for"),
        pytest.param({"RANK": "\u0663"}, (None, None, None, None), id="digits of another script"),
    ],
)
def test_the_environment_names_the_rank(environment, expected):
    found = identify("0::/", environment, 0)
    assert (found.rank, found.local_rank, found.world_size, found.rendezvous) == expected


def test_names_come_from_whoever_started_the_job():
    slurm = {"SLURM_JOB_NAME": "llm", "SLURM_JOB_USER": "ada", "SLURM_JOB_ACCOUNT": "lab", "USER": "root"}
    found = identify("0::/system.slice/slurmstepd.scope/job_7/step_0", slurm, 0)
    assert (found.name, found.user, found.account) == ("llm", "ada", "lab")
    pod = {"HOSTNAME": "trainer-0", "POD_NAMESPACE": "team"}
    found = identify(f"0::/kubepods/pod{UID}/{ID}", pod, 0)
    assert (found.name, found.account) == ("trainer-0", "team")


def test_slurm_without_its_own_control_groups_is_known_by_the_environment():
    assert identify("0::/system.slice/slurmd.service", {"SLURM_JOB_ID": "77"}, 5).key == "slurm:77"
    assert identify("0::/system.slice/slurmd.service", {"SLURM_JOB_ID": "77;"}, 5).key == "user:5"


@pytest.mark.parametrize("name", ["a" * 129, "two\nlines", "\x1b[2J", ""], ids=["long", "lines", "escape", "empty"])
def test_what_is_not_a_plain_name_is_not_told(name):
    assert identify("0::/", {"USER": name, "TORCHELASTIC_RUN_ID": name}, 0).user is None


def test_without_owner_and_job_there_is_no_identity():
    assert identify("0::/", {"RANK": "1"}, None) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/a/b\n", "/a/b"),
        ("4:devices:/x\n0::/a", "/a"),
        ("0::/../../a", None),
        ("4:devices:/x", None),
        ("", None),
    ],
    ids=["version 2", "both", "outside of the namespace", "version 1", "nothing"],
)
def test_the_path_in_version_2(text, path):
    assert unified_path(text) == path


def test_of_an_environment_only_what_names_a_job_is_kept(tmp_path):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/environ").write_bytes(b"RANK=3\0AWS_SECRET_ACCESS_KEY=x\0EMPTY\0USER=a=b\0")
    assert jobs.read_environment(Root.below(str(tmp_path)), 7) == {"RANK": "3", "USER": "a=b"}
    with pytest.raises(Absent):
        jobs.read_environment(Root.below(str(tmp_path)), 8)


@given(st.text(), st.dictionaries(st.sampled_from(sorted(jobs.KEYS)), st.text()), st.none() | st.integers(0))
def test_any_text_is_answered(cgroup, environment, uid):
    found = identify(cgroup, environment, uid)
    assert found is None or found.key
    unified_path(cgroup)
