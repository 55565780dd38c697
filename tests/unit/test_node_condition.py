"""The node's condition: not at once, not on too many nodes, not by two at a time, and nothing at all in a dry run."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from support.kubernetes import Api, serving
from support.web import certificate

from gpuhost_exporter.errors import ConfigError, Denied, SourceError
from gpuhost_exporter.kubernetes import LEASE, Cluster
from gpuhost_exporter.nodecondition import KIND, Rules, Steady, Watch

NODES = tuple(f"node-{number}" for number in range(10))
AFTER = {"fit": 3, "unfit": 2, "unknown": 2}
UNFIT = ("unfit", "GPU 3: lost: it fell off the bus")
FIT = ("fit", "All 8 GPUs deliver")


@pytest.fixture
def api():
    return Api(*NODES)


@pytest.fixture
def cluster(api, tmp_path):
    with serving(api, tmp_path, certificate) as found:
        yield found


class Host:
    """What its exporter says, and its watch."""

    def __init__(self, cluster, node=NODES[0], *, share=0.1, selector="nvidia.com/gpu.present=true"):
        self.says = FIT
        self.watch = Watch(node, Rules(AFTER, share, selector), cluster, lambda: self.says)

    def rounds(self, says, count):
        self.says = says
        for _ in range(count):
            self.watch.round()


def condition(api, node=NODES[0]):
    return api.nodes[node].get(KIND, {})


def test_a_verdict_is_told_once_it_has_held(api, cluster):
    host = Host(cluster)
    host.rounds(UNFIT, 1)
    assert condition(api) == {}
    host.rounds(UNFIT, 1)
    told = condition(api)
    assert {key: told[key] for key in ("type", "status", "reason", "message")} == {
        "type": "GPUHostUnfit",
        "status": "True",
        "reason": "FindingDrains",
        "message": UNFIT[1],
    }
    assert told["lastTransitionTime"] == told["lastHeartbeatTime"]
    host.rounds(FIT, 2)
    assert condition(api)["status"] == "True", "well again, but not for long enough"
    host.rounds(FIT, 1)
    assert (condition(api)["status"], condition(api)["message"]) == ("False", FIT[1])


def test_a_host_that_flaps_keeps_the_condition_it_has(api, cluster):
    host = Host(cluster)
    host.rounds(FIT, 3)
    for _ in range(4):
        host.rounds(UNFIT, 1)
        host.rounds(FIT, 1)
    assert condition(api)["status"] == "False"
    assert sum(method == "PATCH" for method, _, _ in api.asked) == 1


def test_an_exporter_that_nobody_vouches_for_makes_the_condition_unknown(api, cluster):
    Host(cluster).rounds(("unknown", "no exporter"), 2)
    assert (condition(api)["status"], condition(api)["reason"]) == ("Unknown", "NotVouchedFor")
    assert not api.leases, "takes no host away, and asks nobody"


def test_an_unfit_node_whose_exporter_dies_stays_unfit_and_keeps_its_place(api, cluster):
    host, other = Host(cluster), Host(cluster, NODES[1])
    host.rounds(UNFIT, 2)
    since = condition(api)["lastTransitionTime"]
    time.sleep(1.1)
    host.rounds(("unknown", "no exporter"), 20)
    told = condition(api)
    assert (told["status"], told["reason"], told["lastTransitionTime"]) == ("True", "NotVouchedFor", since)
    assert told["message"] == "unfit when last vouched for; since then: no exporter"
    assert told["lastHeartbeatTime"] > since
    other.rounds(UNFIT, 4)
    assert api.unfit() == {"node-0"}, "one of ten may be"
    anew = Host(cluster)  # a watch that has told nothing yet
    anew.rounds(("unknown", "no exporter"), 2)
    assert (api.unfit(), condition(api)["lastTransitionTime"]) == ({"node-0"}, since)
    anew.rounds(UNFIT, 2)
    assert (condition(api)["message"], condition(api)["lastTransitionTime"]) == (UNFIT[1], since)
    anew.rounds(FIT, 3)
    assert condition(api)["status"] == "False"
    other.rounds(UNFIT, 1)
    assert api.unfit() == {"node-1"}


def test_what_does_not_change_is_said_again_only_now_and_then(api, cluster):
    host = Host(cluster)
    host.rounds(FIT, 3)
    before = dict(condition(api))
    host.rounds(FIT, 9)
    assert len(api.asked) == 1
    host.rounds(FIT, 1)
    assert len(api.asked) == 2
    assert condition(api)["lastTransitionTime"] == before["lastTransitionTime"]


def test_no_more_than_the_share_of_the_nodes_become_unfit(api, cluster, caplog):
    hosts = [Host(cluster, node, share=0.25) for node in NODES[:4]]
    with caplog.at_level(logging.WARNING):
        for host in hosts:
            host.rounds(UNFIT, 2)
    assert api.unfit() == {"node-0", "node-1"}
    assert "held back: 2 of 10 nodes are unfit and 2 may be; this one: GPU 3" in caplog.text
    hosts[0].rounds(FIT, 3)
    hosts[3].rounds(UNFIT, 1)
    assert api.unfit() == {"node-1", "node-3"}, "what is held back is tried again"


def test_every_page_of_the_nodes_counts(api, cluster):
    api.page = 3
    assert cluster.statuses(KIND, "nvidia.com/gpu.present=true") == dict.fromkeys(NODES, "")
    asked = [path for method, path, _ in api.asked if method == "GET"]
    assert len(asked) == 4
    assert all("limit=" in path and "labelSelector=nvidia.com%2Fgpu.present%3Dtrue" in path for path in asked)
    for host in [Host(cluster, node, share=0.25) for node in NODES[7:]]:
        host.rounds(UNFIT, 2)
    assert api.unfit() == {"node-7", "node-8"}, "a quarter of ten, of which no page has more than three"


def test_an_answer_without_end_is_not_read_whole(api, cluster, monkeypatch):
    from gpuhost_exporter import kubernetes

    monkeypatch.setattr(kubernetes, "_MOST_BYTES", 500)
    with pytest.raises(SourceError, match="/api/v1/nodes: the answer is longer than 500 bytes"):
        cluster.statuses(KIND, "")


def test_nodes_that_do_not_count_do_not_widen_the_share(api, cluster):
    for node in NODES[1:]:
        api.labels[node] = "other=true"
    Host(cluster, share=0.5).rounds(UNFIT, 2)
    assert api.unfit() == set()
    Host(cluster, share=0.5, selector="").rounds(UNFIT, 2)
    assert api.unfit() == {"node-0"}


def test_a_node_that_the_selector_does_not_find_is_held_back(api, cluster, caplog):
    Host(cluster, "stranger", share=1.0).rounds(UNFIT, 2)
    assert api.unfit() == set()
    assert "stranger is not among the nodes" in caplog.text


def test_many_nodes_at_once_still_keep_the_share(api, cluster):
    """Each counts while the others do: without the lease several would be the last one allowed."""
    api.before["PATCH"] = lambda _path: time.sleep(0.05)
    hosts = [Host(cluster, node, share=0.2) for node in NODES]
    most = [0]

    def fall(host):
        tries = 0
        while tries < 6 or (max(most) < 2 and tries < 200):  # who finds the lease taken waits for its next round
            host.rounds(UNFIT, 1)
            most.append(len(api.unfit()))
            tries += 1

    threads = [threading.Thread(target=fall, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    assert api.leases[LEASE]["spec"]["holderIdentity"] == ""


def test_a_lease_that_was_not_given_back_is_waited_for_and_then_taken(api, cluster):
    assert cluster.take_lease("node-9")
    host = Host(cluster)
    host.rounds(UNFIT, 3)
    assert api.unfit() == set()
    api.leases[LEASE]["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    host.rounds(UNFIT, 1)
    assert api.unfit() == {"node-0"}


def test_a_watch_that_starts_anew_on_an_unfit_node_takes_no_second_place(api, cluster):
    Host(cluster).rounds(UNFIT, 2)
    since = condition(api)["lastTransitionTime"]
    time.sleep(1.1)
    Host(cluster).rounds(UNFIT, 2)
    assert (api.unfit(), condition(api)["lastTransitionTime"]) == ({"node-0"}, since)


def test_a_dry_run_asks_the_api_for_nothing(api, cluster, caplog):
    host = Host(None)
    with caplog.at_level(logging.INFO):
        host.rounds(UNFIT, 5)
    assert api.asked == []
    assert [record.message for record in caplog.records] == [
        "dry run: GPUHostUnfit of node-0 would be True: GPU 3: lost: it fell off the bus"
    ]


@pytest.mark.parametrize(("part", "status"), [("/leases", 403), ("/nodes?", 403), ("/status", 500), ("/nodes?", 410)])
def test_what_the_api_refuses_is_logged_and_tried_again(api, cluster, caplog, part, status):
    api.refuse = {part: status}
    host = Host(cluster)
    host.rounds(UNFIT, 3)
    assert api.unfit() == set()
    assert f"HTTP status {status}" in caplog.text
    api.refuse = {}
    host.rounds(UNFIT, 1)
    assert api.unfit() == {"node-0"}


def test_the_token_is_read_anew_for_each_call(api, cluster, tmp_path):
    (tmp_path / "token").write_text("of yesterday")
    with pytest.raises(Denied):
        cluster.statuses(KIND, "")
    (tmp_path / "token").write_text("the-token\n")
    assert cluster.statuses(KIND, "") == dict.fromkeys(NODES, "")


def test_an_api_with_another_certificate_is_told_nothing(api, cluster, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "ca")
    (tmp_path / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
        cluster.statuses(KIND, "")
    assert api.asked == []


@pytest.mark.parametrize("environment", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "tcp"}])
def test_outside_a_pod_there_is_no_cluster(environment):
    with pytest.raises(ConfigError, match="not in a pod"):
        Cluster.from_environment(environment)


def test_steadiness_counts_each_word_anew():
    steady = Steady(AFTER)
    words = ["unfit", "fit", "unfit", "unfit", "fit", "fit", "fit"]
    seen = []
    for word in words:
        steady.see(word)
        seen.append(steady.word)
    assert seen == [None, None, None, "unfit", "unfit", "unfit", "fit"]
