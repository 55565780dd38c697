"""Whose work a GPU does, one series a GPU, and how little of names is shown where a site wants it so."""

from __future__ import annotations

import pytest

from gpuhost_exporter import config
from gpuhost_exporter.collectors.jobs import INFO, TENANTS, Jobs
from gpuhost_exporter.config import JobNames
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sources.evidence import Evidence, HostIo, JobIdentity
from gpuhost_exporter.sources.jobs import identify
from gpuhost_exporter.sources.nvml.readings import Process

GPU = ("0", "GPU-0")
PLAIN = JobNames()
SLURM = JobIdentity(
    "slurm", "90017", uid=1007, user="ada", name="llama-70b", account="nlp", rank=3, rendezvous="n1:29500"
)
POD_UID = "0b1c2d3e-1111-2222-3333-444455556666"
POD = JobIdentity("kubernetes", POD_UID, pod=POD_UID, container="c" * 64, name="train-0", account="team-a", uid=0)


def evidence(*identities):
    """Process ids from 100 on hold GPUs for them."""
    holders = tuple((100 + place, place) for place in range(len(identities)))
    return Evidence(0.0, 1.0, (), identities, holders, (), HostIo(None, None, None), (), frozenset())


def told(processes, window, names=PLAIN):
    found = list(Jobs(names).samples(GPU, processes, window))
    rows = [dict(zip(INFO.labels, sample.labels, strict=True)) for sample in found if sample.spec is INFO]
    counts = [sample.value for sample in found if sample.spec is TENANTS]
    return rows, counts


def test_a_slurm_job_is_named_with_its_project_and_its_rank_on_all_hosts():
    (row,), (count,) = told((Process(100, None),), evidence(SLURM))
    assert row == {
        "gpu": "0",
        "uuid": "GPU-0",
        "job": "slurm:90017",
        "name": "llama-70b",
        "project": "nlp",
        "pod": "",
        "container": "",
        "user": "",
        "run": "n1:29500",
        "rank": "3",
    }
    assert count == 1


def test_a_pod_has_its_uid_its_namespace_and_a_short_container_id():
    (row,), _ = told((Process(100, None),), evidence(POD))
    assert (row["job"], row["pod"], row["project"]) == (f"kubernetes:{POD_UID}", POD_UID, "team-a")
    assert (row["name"], row["container"], row["rank"]) == ("train-0", "c" * 12, "")


@pytest.mark.parametrize("address", ["localhost", "localhost.localdomain", "127.0.0.1", "::1", "[::1]", "0.0.0.0"])
@pytest.mark.parametrize("how", ["plain", "hash"])
def test_ranks_that_meet_on_a_loopback_address_have_no_run_in_common_with_other_hosts(address, how):
    job = POD._replace(rendezvous=f"{address}:29500")
    (row,), _ = told((Process(100, None),), evidence(job), JobNames(how, how))
    assert row["run"] == ""


@pytest.mark.parametrize(
    ("names", "name", "user"),
    [
        (JobNames(), "llama-70b", ""),
        (JobNames(users="plain"), "llama-70b", "ada"),
        (JobNames("off", "off"), "", ""),
    ],
    ids=["as shipped", "users shown", "nothing shown"],
)
def test_no_user_is_named_unless_the_site_says_so(names, name, user):
    (row,), _ = told((Process(100, None),), evidence(SLURM), names)
    assert (row["name"], row["user"], row["job"]) == (name, user, "slurm:90017")
    assert bool(row["run"]) == bool(name)


@pytest.mark.parametrize("how", ["hash", "off"])
@pytest.mark.parametrize(
    "cgroup", ["/system.slice/secret-llm.service", "/lxc.payload.secret-llm/x"], ids=["a unit", "an LXC container"]
)
def test_a_name_that_somebody_chose_is_shown_only_where_names_are(how, cgroup):
    window = evidence(identify(f"0::{cgroup}", {}, 1000), identify(f"0::{cgroup.replace('secret', 'other')}", {}, 1000))
    kind, name = window.jobs[0].kind, window.jobs[0].name
    (row,), _ = told((Process(100, None),), window)
    assert (row["job"], row["name"]) == (f"{kind}:{name}", name)
    assert "secret-llm" in name
    (row,), _ = told((Process(100, None),), window, JobNames(how, how))
    assert row["job"].startswith(f"{kind}:")
    assert "secret" not in "".join(row.values())
    (other,), _ = told((Process(101, None),), window, JobNames(how, how))
    assert other["job"] != row["job"]


def test_a_hash_is_the_same_everywhere_and_shows_nothing():
    hashed = JobNames("hash", "hash")
    (row,), _ = told((Process(100, None),), evidence(SLURM), hashed)
    (again,), _ = told((Process(100, None),), evidence(SLURM), hashed)
    assert row == again
    assert {len(row[label]) for label in ("name", "project", "user", "run")} == {12}
    assert not {"llama-70b", "nlp", "ada", "n1:29500"} & set(row.values())
    assert len({row[label] for label in ("name", "project", "user", "run")}) == 4


def test_of_several_jobs_the_one_with_most_memory_is_shown_and_all_are_counted():
    processes = (Process(100, 2 << 30), Process(101, 3 << 30), Process(102, 2 << 30))
    rows, counts = told(processes, evidence(SLURM, POD, SLURM))
    assert [row["job"] for row in rows] == ["slurm:90017"], "4 GiB in two processes"
    assert counts == [2]


def test_a_gpu_that_nobody_has_is_of_no_job():
    assert told((), evidence(SLURM)) == ([], [0.0])


def test_holders_that_cannot_be_seen_are_not_told():
    assert told((Process(7, None),), evidence(SLURM)) == ([], [])


def test_the_configuration_says_what_is_shown():
    assert config.parse({"job": {"users": "hash"}}, "x.toml", ()).job == JobNames("plain", "hash")
    assert config.parse({}, "x.toml", ()).job == JobNames("plain", "off")


@pytest.mark.parametrize("document", [{"users": "yes"}, {"users": []}, {"names": True}, {"hosts": "off"}])
def test_what_it_may_not_say_is_refused(document):
    with pytest.raises(ConfigError, match=r"x.toml: (unknown key )?job"):
        config.parse({"job": document}, "x.toml", ())
