"""The rule files: what they name exists, joins cannot be ambiguous, thresholds are metrics, every alert is whole."""

from __future__ import annotations

import os
import re

import promql_parser as tree
import pytest
from support.promql import SCRAPED, Wrong, labels_of, names_in, walk
from support.rules import ALERTS, OTHERS, RULE_FILES, alerts, metric, queries, recordings, rules

from gpuhost_exporter.targets import Targets, read_data

_LABEL = re.compile(r"\$labels\.(\w+)")
_OF_RESULT = re.compile(r"\.Labels\.(\w+)")
_SEVERITIES = {"page", "ticket", "info"}
# They speak when the host says nothing, or nothing true: no boot time to wait for. Or they page nobody.
_WITHOUT_GATE = {
    "GpuhostExporterDown",
    "GpuhostHostVanished",
    "GpuhostSimulatedData",
    "GpuhostJobHostBroken",
    "GpuhostFreshFault",
}
BASE = "https://gpuhost.example"


def of(*found):
    return pytest.mark.parametrize("rule", found, ids=[f"{rule.name}" for rule in found])


def numbers(rule):
    found = []
    walk(rule.expr, lambda node: found.append(node.val) if isinstance(node, tree.NumberLiteral) else None)
    return found


@of(*rules())
def test_every_name_and_label_exists_and_no_join_is_ambiguous(rule):
    assert labels_of(rule.expr, metric) is not None


@of(*alerts())
def test_what_an_annotation_asks_and_fills_in_exists(rule):
    labels = labels_of(rule.expr, metric).labels | rule.body["labels"].keys()
    asked = set()
    for text in rule.body["annotations"].values():
        assert set(_LABEL.findall(text)) <= labels
        assert len(queries(text)) == text.count("| query"), "a query that this test does not see"
        for query in queries(text):
            asked |= labels_of(query, metric).labels
        assert set(_OF_RESULT.findall(text)) <= asked


@of(*recordings())
def test_a_recorded_name_says_whose_labels_are_left(rule):
    level, name, operation = rule.name.split(":")
    assert re.fullmatch("gpuhost_[a-z0-9_]+", name)
    assert re.fullmatch("[a-z0-9_]+", operation)
    own = {
        "gpu": ({*SCRAPED, "gpu", "uuid"}, set()),
        "host": (SCRAPED, {"gpu", "uuid", "device"}),
        "device": ({*SCRAPED, "device"}, {"gpu"}),
        "endpoint": (SCRAPED, {"gpu"}),
        "job": ({"cluster", "work"}, {"instance", "gpu"}),
        "fleet": ({"cluster"}, {"instance", "gpu", "job"}),
    }
    needed, foreign = own[level]
    labels = labels_of(rule.expr, metric).labels
    assert needed <= labels
    assert not foreign & labels


def test_every_recorded_name_is_made_in_one_file_and_only_the_fleets_spans_hosts():
    files = {}
    for rule in recordings():
        assert files.setdefault(rule.name, rule.file) == rule.file
        level = rule.name.partition(":")[0]
        if level in ("job", "fleet", "endpoint"):
            assert rule.file == "recording-fleet.yml"


def test_no_alert_holds_a_figure_of_the_guide_or_of_a_product():
    figures = {entry["value"] for entry in read_data("guide.toml").values()} - {10}  # 10 is many things
    for product in Targets.load({}).products.values():
        figures |= {product.nvlink_bandwidth_bytes_per_second, product.memory_bandwidth_bytes_per_second}
    held = {rule.name: sorted(figures & set(numbers(rule))) for rule in rules() if figures & set(numbers(rule))}
    assert held == {}


def test_the_readme_counts_the_alerts_and_those_with_a_figure_of_their_own():
    with open(f"{ALERTS}/README.md", encoding="utf-8") as file:
        text = file.read()
    assert re.search(r"^(\d+) alerts and", text, re.MULTILINE)[1] == str(len(alerts()))
    assert re.search(r"(\d+) alerts hold a figure", text)[1] == str(
        sum(bool(set(numbers(rule)) - {0, 1}) for rule in alerts())
    )


@of(*alerts())
def test_an_alert_has_all_that_somebody_woken_needs(rule):
    body = rule.body
    assert re.fullmatch("Gpuhost[A-Za-z]+", rule.name)
    assert body["labels"]["severity"] in _SEVERITIES
    assert body["labels"]["component"]
    assert body["for"]
    assert set(body["annotations"]) == {"summary", "dashboard_url", "runbook_url"}
    assert body["annotations"]["runbook_url"] == f"{BASE}/runbooks/{rule.name}.md"
    assert re.fullmatch(
        re.escape(f"{BASE}/d/gpuhost-")
        + r"[a-z]+"
        + re.escape("?{{ with $labels.cluster }}var-cluster={{ . }}&{{ end }}var-instance={{ $labels.instance }}"),
        body["annotations"]["dashboard_url"],
    )


@of(*alerts())
def test_the_summary_names_the_host_and_the_gpu(rule):
    summary = rule.body["annotations"]["summary"]
    assert "$labels.instance" in summary
    if "gpu" in labels_of(rule.expr, metric).labels:
        assert "GPU {{ $labels.gpu }}" in summary
        assert "GPU {{ $labels.uuid }}" not in summary


@of(*(rule for rule in alerts() if rule.body["labels"]["severity"] == "page"))
def test_a_page_names_the_job(rule):
    assert "exported_job" in rule.body["annotations"]["summary"]


@of(*alerts())
def test_a_summary_does_not_mix_clusters(rule):
    for query in queries(rule.body["annotations"]["summary"]):
        assert query.count("instance='x'") == query.count("cluster='x',instance='x'")


@of(*alerts())
def test_an_alert_keeps_quiet_after_boot_and_those_on_gpus_during_a_release(rule):
    gated = "host:gpuhost_quiet:bool" in names_in(rule.expr)
    assert gated == (rule.name not in _WITHOUT_GATE)
    if {"gpu", "uuid"} <= labels_of(rule.expr, metric).labels and rule.name != "GpuhostJobOOMKilled":
        assert 'host:gpuhost_quiet:bool{reason="boot"}' not in rule.expr


def test_alerts_have_one_name_and_one_runbook_each():
    names = [rule.name for rule in alerts()]
    assert len(set(names)) == len(names)
    runbooks = {name.removesuffix(".md") for name in os.listdir(f"{ALERTS}/runbooks")}
    assert runbooks == set(names)


def test_groups_have_one_name_each_and_others_metrics_are_really_read():
    groups = {(rule.file, rule.group) for rule in rules()}
    assert len({group for _, group in groups}) == len(groups)
    assert len(RULE_FILES) == len({file for file, _ in groups})
    assert OTHERS.keys() <= {name for rule in rules() for name in names_in(rule.expr)}


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("gpuhost_nvlink_usable_bytes_per_secnd < 1", "is neither in the catalogue nor recorded"),
        ('gpuhost_gpu_state{stat="lost"}', "no label stat"),
        ("sum by (device) (gpuhost_gpu_up)", "no label device to aggregate by"),
        ("gpuhost_gpu_up == gpuhost_gpus_on_bus", "never matches"),
        ("gpuhost_gpu_up * on (instance) group_left () gpuhost_gpu_ecc_enabled", "differ by"),
        ("gpuhost_gpu_up * on (instance, gpu, link) gpuhost_nvlink_up", "are not on both sides"),
        ("gpuhost_gpu_up - ignoring (uuid) gpuhost_gpu_state", "never matches"),
        ("gpuhost_gpu_up * on (cluster, job, instance, gpu, uuid) group_left (mount) gpuhost_gpu_job_info", "no label"),
        ('label_replace(gpuhost_gpu_up, "a", "$1", "mount", "(.*)")', "no label mount"),
        ("gpuhost_checkpoint_size_bytes > 1", "is a histogram"),
        ("count by (instance, name) (gpuhost_gpu_job_info) * on (instance) gpuhost_gpus_on_bus", "differ by"),
    ],
)
def test_an_expression_that_cannot_work_is_noticed(expr, message):
    with pytest.raises(Wrong, match=message):
        labels_of(expr, metric)


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("gpuhost_gpu_job_info", {"exported_job", "name", "gpu"}),
        ("gpuhost_checkpoint_size_bytes_bucket", {"mount", "mode", "le"}),
        ("gpuhost_cpu_run_queue_delay_seconds_count", set()),
        ("sum without (gpu, uuid) (gpuhost_gpu_up)", set()),
        ("max by (instance) (gpuhost_gpu_state) or gpuhost_gpus_on_bus", set()),
        ('label_replace(gpuhost_gpus_on_bus, "part", "fan", "", "")', {"part"}),
        ("time() - gpuhost_boot_time_seconds", set()),
        ("rate(gpuhost_nvlink_bytes_total[5m])", {"gpu", "link", "direction"}),
        (
            "gpuhost_gpus_on_bus * on (instance) group_left () topk by (instance) (1, gpuhost_boot_time_seconds)",
            set(),
        ),
    ],
)
def test_labels_are_told_as_prometheus_makes_them(expr, labels):
    assert labels <= labels_of(expr, metric).labels <= labels | SCRAPED | specs_labels(expr)


def specs_labels(expr):
    return (
        {"uuid", "project", "pod", "container", "user", "run", "rank"} if "gpuhost_gpu_job_info" in expr else {"uuid"}
    )
