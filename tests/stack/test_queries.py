"""What the dashboards ask, of Prometheus and of VictoriaMetrics that it writes to: the same series in both answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from support.boards import filled_in, queries
from support.fleet import REPOSITORY, SERIAL, Fleet, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SETTLING = 75  # seconds of history, so that rates over a minute have samples


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(port of Prometheus, port of the store, a time of which both know)."""
    if why := missing():
        pytest.skip(f"the queries are NOT compared: {why}")
    rules = f"{REPOSITORY}/alerts/rules/recording-*.yml"
    with Fleet(tmp_path_factory.mktemp("both"), hosts=3, seconds=2, rules=rules) as running:
        running.wait_for(lambda: min(running.replay.served.values(), default=0) * 2 >= SETTLING, 200)
        at = time.time() - 5
        running.wait_for(lambda: all(len(each) > 30 for each in running.stored(SERIAL).values()), 60)
        yield running.agent.port, running.store.port, at


def ask(port, expression, at):
    """The labels of each series of the answer; the error's text where there is one."""
    text = urllib.parse.urlencode({"query": expression, "time": f"{at:.3f}", "nocache": "1"})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{text}", timeout=60) as answer:
            found = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        return error.read().decode()
    if found["resultType"] != "vector":
        return set()
    return {
        tuple(sorted((name, text) for name, text in each["metric"].items() if name != "__name__"))
        for each in found["result"]
        if each["value"][1] != "NaN"
    }


def test_every_query_has_the_same_series_in_both(both):
    prometheus, store, at = both
    asked, answered, wrong = 0, 0, []
    for query in queries():
        expression = filled_in(query.expression, cluster=".*", instance="gpu-0001", work="slurm:90017")
        here, there = ask(prometheus, expression, at), ask(store, expression, at)
        asked += 1
        answered += bool(here)
        if "topk" in expression and len(here) == len(there):
            continue  # the recorded hosts are equals: which of them are on top is anybody's choice
        if here != there:
            wrong.append(f"{query}: {expression}\n  Prometheus {here}\n  store      {there}")
    assert not wrong, f"{len(wrong)} of {asked}:\n" + "\n".join(each[:900] for each in wrong)
    assert answered > asked / 3
