"""The allreduce over MPI for real, on two ranks of this host, into a running exporter. Needs Open MPI and mpi4py."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from support.daemon import Daemon, select, value

FABRIC = "gpuhost_fabric_"
RANKS = 2


@pytest.fixture
def mpirun(environment):
    """Run `gpuhost-exporter allreduce ARGUMENTS` on so many ranks, to its end."""
    if not shutil.which("mpirun") or not importlib.util.find_spec("mpi4py"):
        pytest.skip("NOT TESTED: needs mpirun and mpi4py (apt-get install openmpi-bin; pip install '.[mpi]')")
    # Containers and root, as test machines have them; ranks must not spin each other off few processors.
    allowed = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }

    def run(*arguments, ranks=RANKS):
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "gpuhost_exporter", "allreduce"]
        return subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            env={**environment, **allowed, "PATH": os.environ["PATH"]},
            check=False,
        )

    return run


@pytest.mark.slow
def test_an_allreduce_on_two_ranks_shows_in_the_running_exporter(mpirun, tmp_path):
    with Daemon(tmp_path, "--collector.latency", "--simulate=nogpu", f"--storage.path={tmp_path}/shared") as daemon:
        daemon.ready()
        assert not select(daemon.series(), FABRIC + "round_trip_seconds_count")
        done = mpirun(f"--storage.path={tmp_path}/shared", "--iterations=300")
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        told = re.fullmatch(r"allreduce of 8 bytes, 2 ranks, 1 host: median ([\d.]+) us\n", done.stdout)
        series = daemon.wait_until(lambda seen: select(seen, FABRIC + "round_trip_seconds_count"))
    labels = {"peer": "all", "transport": "mpi"}
    assert value(series, FABRIC + "round_trip_seconds_count", **labels) == 300
    median = value(series, FABRIC + "round_trip_median_seconds", **labels)
    assert median == pytest.approx(float(told[1]) * 1e-6, abs=1e-8)
    assert 1e-7 < median < 0.1
    assert value(series, FABRIC + "collective_ranks") == RANKS
    assert not select(series, FABRIC + "probe_loss_ratio")


@pytest.mark.slow
def test_one_rank_has_nobody_to_reduce_with(mpirun, tmp_path):
    done = mpirun(f"--storage.path={tmp_path}/shared", ranks=1)
    assert done.returncode == 2
    assert "one rank alone has nobody to reduce with" in done.stderr
    assert not (tmp_path / "shared").exists()


@pytest.mark.slow
def test_a_state_directory_that_cannot_be_written_is_told(mpirun, tmp_path):
    (tmp_path / "shared").write_text("no folder")
    done = mpirun(f"--storage.path={tmp_path}/shared")
    assert done.returncode == 1
    assert "not kept: " in done.stdout


@pytest.mark.slow
def test_verify_starts_it_and_takes_one_host_for_no_two(mpirun, run, tmp_path):
    done = run("verify", "--json", f"--peer={socket.gethostname()}", f"--storage.path={tmp_path}/shared")
    (result,) = [each for each in json.loads(done.stdout)["results"] if each["check"] == "MPI all-reduce"]
    assert (result["verdict"], result["why"]) == ("skipped", f"{socket.gethostname()} is this host: name another")
    assert json.loads((tmp_path / "shared" / "collective.json").read_text())["data"]["ranks"] == RANKS


def test_without_mpi4py_it_says_what_to_install(run, tmp_path, environment):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('cannot load MPI library')")
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = run("allreduce")
    assert done.returncode == 2
    assert "pip install 'gpuhost-exporter[mpi]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("count", ["9", "1001", "x"])
def test_iterations_are_bounded(run, count):
    done = run("allreduce", f"--iterations={count}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
