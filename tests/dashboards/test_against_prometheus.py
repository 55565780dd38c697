"""Every query of every dashboard against a real Prometheus that holds what simulated hosts told: no error, data where
the scenarios have it, and figures of the size that their unit says."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import urllib.parse
import urllib.request

import pytest
from support.boards import FOLDER, boards, panels, queries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus"),
]
sys.path.insert(0, os.path.join(FOLDER, "demo"))

STEP = 30
# The full hour before it, which hourly points are taken at, is no seam of Prometheus' blocks of two hours.
END = 1.7e9 + 3600
# Everything that the pages can show, in one walk; what it ends with is what answers show.
WALK = (
    ("steady", 150.0), ("checkpoint-async", 120.0), ("checkpoint-stall", 180.0), ("data-starved", 120.0),
    ("nvlink-down", 120.0), ("array-slow", 240.0), ("roce-congested", 120.0), ("nccl-hang", 150.0),
    ("checkpoint-sync", 360.0),
)  # fmt: skip
HOST, VIRTUAL = "gpu-host-1", "gpu-vm-1"
JOB = "slurm:90017"
LENGTH = sum(seconds for _, seconds in WALK)

# No data is right here: alerts are not evaluated over the past, nobody asks the exporter or runs verify, or it does not
# happen.
EMPTY = {
    ("exporter", "Clients: connections open"),
    ("exporter", "Clients: refused or failed"),
    ("exporter", "Failed reads"),
    ("exporter", "Readers: stuck"),
    ("fleet", "What is wrong"),
    ("host", "What is wrong"),
    ("host", "Against its sisters"),
    ("host", "What the last verify measured"),
    ("metal", "Busy inference endpoints"),
}
# (board, panel) or with the query's letter: what the largest value must lie between.
SIZES = {
    ("exporter", "Collectors", "B"): (0, 120),
    ("exporter", "A scrape: rendering"): (1e-4, 0.5),
    ("fabric", "Latency, worst peer"): (0.6, 1),
    ("fabric", "Latency over RDMA and MPI", "A"): (5e-6, 20e-6),
    ("fabric", "Latency over TCP, against its past", "A"): (0.8, 1.3),
    ("fabric", "Ports: sent", "A"): (5e9, 50e9),
    ("fabric", "Ports: sent", "B"): (50e9, 50e9),
    ("fabric", "Ports: sent", "C"): (12.5e9, 12.5e9),
    ("fabric", "Ports", "C"): (400e9, 400e9),
    ("fabric", "Told to pause"): (0, 0.2),
    ("fabric", "1. The network marks (ECN)"): (1e4, 1e6),
    ("fleet", "Costs an hour"): (47, 49),
    ("fleet", "Hosts"): (2, 2),
    ("fleet", "Hosts that tell"): (1, 1),
    ("fleet", "GPUs that answer"): (1, 1),
    ("gpu-time", "Last checkpoints", "A"): (130e9, 150e9),
    ("gpu-time", "Last checkpoints", "D"): (15e9, 25e9),
    ("gpu-time", "Speed of the last checkpoint", "A"): (15e9, 25e9),
    ("gpu-time", "Lost to checkpoints", "A"): (0.05, 0.4),
    ("gpu-time", "Where the money goes", "A"): (18, 24.1),
    ("host", "Costs an hour"): (24, 24),
    ("host", "Kept busy"): (0.6, 1),
    ("host", "Busy", "A"): (0.9, 1),
    ("host", "Memory bandwidth", "A"): (1.5e12, 2.3e12),
    ("host", "Memory bandwidth", "B"): (3.35e12, 3.35e12),
    ("host", "Power", "A"): (550, 720),
    ("host", "Tensor cores"): (0.4, 0.6),
    ("host", "Of the dense peak"): (0.35, 0.6),
    ("host", "Limits: used of them", "A"): (0.3, 2.4),
    ("host", "GPUs", "I"): (10, 60),
    ("job", "GPUs"): (16, 16),
    ("job", "Hosts"): (2, 2),
    ("job", "Costs an hour"): (47, 49),
    ("job", "Cost in this time"): (15, 17),
    ("job", "NVLink, of the product's full bandwidth", "A"): (1, 1),
    ("job", "Of the peak of its GPUs", "A"): (0.2, 0.6),
    ("metal", "Good begins at"): (0.9, 0.9),
    ("nvlink", "Usable, worst GPU"): (1, 1),
    ("nvlink", "Achieved and usable", "A"): (100e9, 320e9),
    ("nvlink", "Achieved and usable", "C"): (900e9, 900e9),
    ("nvlink", "Links not active"): (1, 1),
    ("storage", "Arrays: written", "A"): (2e9, 22e9),
    ("storage", "Write demand met"): (0.1, 1.1),
    ("storage", "Members: latency against siblings"): (0.9, 3),
    ("storage", "Drives", "C"): (20, 70),
    ("storage", "Waiting to be written", "A"): (20e9, 200e9),
}
# What a unit cannot be more than on any such host; ratios that are drawn as percent least of all.
MOST = {"percentunit": 5, "Bps": 4e12, "bps": 1e12, "celsius": 110, "watt": 800, "hertz": 4e9, "currencyUSD": 1e4}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    import stack
    from history import record

    folder = tmp_path_factory.mktemp("prometheus")
    processes = stack.Processes(folder)
    walks = {HOST: ("h100x8", WALK, 2), VIRTUAL: ("vm", (("steady", LENGTH),), 10)}
    hosts = {}
    for instance, (kind, stops, step) in walks.items():
        told = record(stops, host=kind, wall=END - LENGTH, every=STEP, step=step, end=int(LENGTH), names=_names(stack))
        hosts[instance] = [(END - LENGTH + at, f"{text}up 1\n") for at, text in told]
    server = stack.Prometheus(processes, {})
    stack.write_openmetrics(folder / "history.om", hosts)
    try:
        server.backfill(folder / "history.om")
        server.backfill_rules(END - LENGTH, END, STEP)
        server.start()
        yield server.url
    finally:
        processes.stop()


def _names(stack):
    text = "\n".join([query.expression for query in queries()] + [file.read_text() for file in stack.RULES])
    found = stack.names_in(text)
    return found | {name.rpartition("_")[0] for name in found if name.endswith(("_bucket", "_sum", "_count"))}


def ask(url, path, **parameters):
    body = urllib.parse.urlencode(parameters).encode() or None
    try:
        with urllib.request.urlopen(f"{url}{path}", body, timeout=60) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    assert found["status"] == "success", found.get("error")
    return found["data"]


def sent(expression):
    """As Grafana would, for the last 20 minutes."""
    variables = {
        "cluster": ".*", "instance": HOST, "work": JOB,
        "__rate_interval": "2m", "__range": "20m", "__interval": f"{STEP}s",
    }  # fmt: skip
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found.group(1), found.group()), expression)


def answered(url, query):
    last = END - STEP
    if query.instant:
        result = ask(url, "/api/v1/query", query=sent(query.expression), time=last)["result"]
        return [float(series["value"][1]) for series in result]
    result = ask(
        url, "/api/v1/query_range", query=sent(query.expression), start=last - LENGTH + 300, end=last, step=STEP
    )["result"]
    return [float(value) for series in result for _, value in series["values"]]


def test_every_query_is_answered_with_figures_of_its_size(prometheus):
    """One test for all: what is asked is cheap, what has to be there before is not."""
    units = {
        (name, panel["title"]): panel["fieldConfig"]["defaults"]["unit"]
        for name, board in boards()
        for panel in panels(board)
        if panel["type"] not in ("table", "text")
    }
    wrong, drawn, checked = [], {}, set()
    for query in queries():
        try:
            values = answered(prometheus, query)
        except AssertionError as error:
            wrong.append(f"{query}: {error}")
            continue
        place = (query.board, query.panel)
        drawn[place] = drawn.get(place, False) or bool(values)
        finite = [value for value in values if math.isfinite(value)]
        if finite and max(finite) > MOST.get(units.get(place, ""), math.inf):
            wrong.append(f"{query}: {max(finite)} as {units[place]}")
        for key in (place, (*place, query.letter)):
            if key in SIZES:
                checked.add(key)
                low, high = SIZES[key]
                if not finite or not low * 0.999 <= max(finite) <= high * 1.001:
                    wrong.append(f"{query}: {max(finite, default=None)}, not {low} to {high}")
    silent = {place for place, any_data in drawn.items() if not any_data and not place[1].startswith("annotation")}
    wrong += [f"{name}: {title}: no data" for name, title in sorted(silent - EMPTY)]
    wrong += [f"{name}: {title}: data, and listed as empty" for name, title in sorted(EMPTY & drawn.keys() - silent)]
    wrong += [f"{key}: no such panel or query" for key in sorted(SIZES.keys() - checked)]
    assert not wrong, "\n".join(wrong)


def test_every_variable_has_values(prometheus):
    for name, board in boards():
        for variable in board["templating"]["list"][1:]:
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            parameters = {"match[]": sent(metric), "start": END - 1200, "end": END}
            found = ask(prometheus, f"/api/v1/label/{label}/values?{urllib.parse.urlencode(parameters)}")
            assert found, f"{name}: {variable['name']}"
