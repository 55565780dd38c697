"""`serve --compat dcgm` on a simulated host, over HTTP."""

from __future__ import annotations

import pytest
from support.daemon import Daemon, select
from support.simulated import arguments


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compat")
    with Daemon(folder, *arguments(folder, "h100x8", "steady", elapsed=60), "--compat=dcgm") as running:
        running.ready()
        yield running


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("DCGM_FI_DEV_GPU_TEMP", 30, 90),
        ("DCGM_FI_DEV_POWER_USAGE", 400, 720),
        ("DCGM_FI_DEV_SM_CLOCK", 1500, 2000),
        ("DCGM_FI_DEV_GPU_UTIL", 85, 100),
        ("DCGM_FI_DEV_FB_USED", 60_000, 81_559),
        ("DCGM_FI_DEV_ENC_UTIL", 0, 0),
        ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 0.3, 0.6),
        ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", 100_000, 900_000),
    ],
)
def test_what_nvidias_dashboard_asks_for_is_there_for_every_gpu_in_dcgms_units(daemon, name, least, most):
    if name == "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL":
        name += "_total"  # the parser's addition, for it is typed a counter
    series = daemon.wait_until(lambda found: len(select(found, name)) == 8)
    values = select(series, name).values()
    assert min(values) >= least
    assert max(values) <= most


def test_what_is_listed_as_not_given_is_absent_and_our_own_names_stay(daemon):
    names = {name for name, _ in daemon.series()}
    assert "DCGM_FI_DEV_VGPU_LICENSE_STATUS" not in names
    assert "gpuhost_gpu_up" in names


def test_a_mig_gpu_shows_its_instances_with_profile_and_number(tmp_path):
    with Daemon(tmp_path, *arguments(tmp_path, "mig", "steady", elapsed=60), "--compat=dcgm") as daemon:
        daemon.ready()
        for name in ("DCGM_FI_DEV_FB_USED", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"):
            found = daemon.wait_until(lambda series, name=name: select(series, name), 60)
            rows = [dict(labels) for labels in select(found, name)]
            parts = [row for row in rows if "GPU_I_ID" in row]
            instances = [dict(labels) for labels in select(found, "gpuhost_mig_instance_info")]
            assert len(parts) == len(instances) > 1, name
            for theirs, ours in (("UUID", "uuid"), ("GPU_I_ID", "gpu_instance"), ("GPU_I_PROFILE", "profile")):
                assert {row[theirs] for row in parts} == {labels[ours] for labels in instances}
            whole = {row["UUID"] for row in rows if "GPU_I_ID" not in row}
            assert not whole & {row["UUID"] for row in parts}, "a sum would count these twice"


def test_another_exporters_name_is_refused_in_one_line(tmp_path):
    with Daemon(tmp_path, "--simulate=nogpu") as plain:
        plain.ready()
        assert not [name for name, _ in plain.series() if name.startswith("DCGM_")]
        refused = plain.command("serve", "--compat=nvml", "--simulate=nogpu")
    assert refused.returncode == 2
    assert refused.stderr.startswith("gpuhost-exporter: argument --compat: invalid choice: 'nvml'")
    assert len(refused.stderr.splitlines()) == 1
