"""NVIDIA's own dashboard for dcgm-exporter (Grafana's number 12239), of a Prometheus that scrapes `--compat dcgm`."""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.parse
import urllib.request

import pytest
from support.boards import FOLDER
from support.daemon import Daemon
from support.simulated import arguments

sys.path.insert(0, f"{FOLDER}/demo")
from stack import Processes, Prometheus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus"),
]
HOST = "gpu-host-1"
GPUS = [str(index) for index in range(8)]
# Its variables, each as label_values(metric, label).
VARIABLES = {"instance": "DCGM_FI_DEV_GPU_TEMP", "gpu": "DCGM_FI_DEV_GPU_TEMP"}
# Its panels: the query, what each of its series must lie between here, and whether there is one for each GPU.
SELECTOR = '{instance=~"$instance", gpu=~"$gpu"}'
PANELS = {
    "GPU Temperature": (f"DCGM_FI_DEV_GPU_TEMP{SELECTOR}", 30, 90, True),
    "GPU Avg. Temp": (f"avg(DCGM_FI_DEV_GPU_TEMP{SELECTOR})", 30, 90, False),
    "GPU Power Usage": (f"DCGM_FI_DEV_POWER_USAGE{SELECTOR}", 400, 720, True),
    "GPU Power Total": (f"sum(DCGM_FI_DEV_POWER_USAGE{SELECTOR})", 400, 8 * 720, False),
    "GPU SM Clocks": (f"DCGM_FI_DEV_SM_CLOCK{SELECTOR} * 1000000", 1.5e9, 2e9, True),
    "GPU Utilization": (f"DCGM_FI_DEV_GPU_UTIL{SELECTOR}", 85, 100, True),
    "GPU Framebuffer Mem Used": (f"DCGM_FI_DEV_FB_USED{SELECTOR}", 60_000, 81_559, True),
    "Tensor Core Utilization": (f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{SELECTOR}", 0.3, 0.6, True),
}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Asks Prometheus' API once it has scraped everything."""
    folder = tmp_path_factory.mktemp("dcgm")
    processes = Processes(folder)
    try:
        with Daemon(folder, *arguments(folder, "h100x8", "steady", elapsed=60), "--compat=dcgm") as daemon:
            daemon.ready()
            prometheus = Prometheus(processes, {HOST: daemon.port}, rules=(), every=1)
            prometheus.start()

            def answer(path, **parameters):
                text = urllib.parse.urlencode(parameters)
                with urllib.request.urlopen(f"{prometheus.url}/api/v1/{path}?{text}", timeout=10) as told:
                    return json.load(told)["data"]

            deadline = time.monotonic() + 40
            while len(answer("query", query="DCGM_FI_PROF_PIPE_TENSOR_ACTIVE")["result"]) < len(GPUS):
                assert time.monotonic() < deadline, processes.log("prometheus")
                time.sleep(0.5)
            yield answer
    finally:
        processes.stop()


@pytest.fixture(scope="module")
def variables(ask):
    return {label: ask(f"label/{label}/values", **{"match[]": metric}) for label, metric in VARIABLES.items()}


def test_its_variables_offer_the_host_and_each_gpu(variables):
    assert variables == {"instance": [HOST], "gpu": GPUS}


@pytest.mark.parametrize("chosen", [GPUS, ["3"]], ids=["all GPUs", "one GPU"])
@pytest.mark.parametrize("panel", PANELS)
def test_each_panel_has_data_of_the_size_that_its_unit_says(ask, variables, panel, chosen):
    expression, least, most, for_each = PANELS[panel]
    # As Grafana fills in a variable with several values, "All" being each of them.
    for name, values in {**variables, "gpu": chosen}.items():
        expression = expression.replace(f"${name}", f"({'|'.join(values)})")
    found = ask("query", query=expression)["result"]
    labels = [each["metric"].get("gpu") for each in found]
    assert sorted(labels) == chosen if for_each else labels == [None], "legend: GPU {{gpu}}"
    for each in found:
        assert least <= float(each["value"][1]) <= most
