"""What goes with the rules: the operator's form, the runbooks, and Alertmanager's routing and inhibition."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess

import pytest
import yaml
from support.promql import labels_of
from support.promtool import seconds
from support.rules import ALERTS, RULE_FILES, alerts, load, metric

NAMES = {rule.name for rule in alerts()}
CONFIG = load(f"{ALERTS}/alertmanager.yml")
SECTIONS = ["What it costs", "Confirm", "Fix", "Vendor"]
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def script():
    spec = importlib.util.spec_from_file_location("prometheusrule", f"{ALERTS}/prometheusrule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def test_the_operators_form_is_what_the_script_makes():
    made = script().render("https://gpuhost.example/runbooks", "https://gpuhost.example/d")
    assert read(f"{ALERTS}/prometheusrule.yaml") == made, "make alerts"


def test_the_operators_form_holds_the_plain_rules():
    documents = list(yaml.safe_load_all(read(f"{ALERTS}/prometheusrule.yaml")))
    assert [document["spec"] for document in documents] == [load(path) for path in RULE_FILES]
    assert {(document["apiVersion"], document["kind"]) for document in documents} == {
        ("monitoring.coreos.com/v1", "PrometheusRule")
    }
    assert len({document["metadata"]["name"] for document in documents}) == len(RULE_FILES)


def test_links_are_changed_all_at_once():
    made = script().render("https://wiki.example/x", "https://grafana.example/d")
    assert "gpuhost.example" not in made
    assert made.count("runbook_url: https://wiki.example/x/Gpuhost") == len(NAMES)
    assert made.count("dashboard_url: https://grafana.example/d/gpuhost-") == len(NAMES)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule.name)
def test_a_runbook_says_what_it_costs_how_to_confirm_fix_and_whom_to_call(rule):
    text = read(f"{ALERTS}/runbooks/{rule.name}.md")
    title, _, rest = text.partition("\n")
    assert title == f"# {rule.name}"
    parts = re.split(r"^## ", rest, flags=re.MULTILINE)
    assert [part.partition("\n")[0] for part in parts[1:]] == SECTIONS
    assert parts[0].strip()
    assert all(len(part.partition("\n")[2].strip()) > 10 for part in parts[1:])
    commands = [line for line in parts[2].splitlines() if line.startswith("    ")]
    assert commands
    assert any(re.search(r"[-|/=]", command) for command in commands)
    assert set(re.findall(r"\bGpuhost[A-Z]\w+", text)) <= NAMES, "points to a runbook that is not there"


def matchers(entry):
    return {name: (how, value) for name, how, value in (_MATCHER.fullmatch(text).groups() for text in entry)}


def named(value):
    return {name for name in NAMES if re.fullmatch(value, name)}


@pytest.mark.parametrize("rule", CONFIG["inhibit_rules"], ids=lambda rule: str(rule["source_matchers"])[:60])
def test_inhibition_names_alerts_that_exist_and_stays_on_one_host(rule):
    assert {"cluster", "instance"} <= set(rule["equal"])
    for side in ("source_matchers", "target_matchers"):
        for text in rule[side]:
            label, _, value = _MATCHER.fullmatch(text).groups()
            assert label in ("alertname", "component", "gpu")
            if label == "alertname":
                assert all(named(each) for each in value.split("|"))
            if label == "component":
                assert set(value.split("|")) <= {alert.body["labels"]["component"] for alert in alerts()}
    gone = set(rule["equal"]) - {"cluster", "instance"}
    sources = named(matchers(rule["source_matchers"])["alertname"][1])
    assert sources
    # Alertmanager takes a label that both lack for equal: a source without the label would silence what has none.
    targets = matchers(rule["target_matchers"]).get("alertname", ("", ""))
    consequences = (
        named(targets[1]) if targets[0] in ("=", "=~") and "gpu" not in rule["target_matchers"][-1] else set()
    )
    for alert in alerts():
        if alert.name in sources | consequences:
            assert gone <= labels_of(alert.expr, metric).labels, alert.name


# (cause, consequence) that need not come in that order, and why.
_LATER = {
    ("GpuhostCheckpointStalled", "GpuhostCheckpointOverdue"): "overdue is what trains on, and stalls later",
    ("GpuhostJobHung", "GpuhostJobOOMKilled"): "the killed process is what the others then wait for",
    ("GpuhostRDMAPortMissing", "GpuhostRDMATimeouts"): "a port that is gone counts no timeouts",
    ("GpuhostRDMAPortMissing", "GpuhostRDMACompletionErrors"): "nor errors",
}


def test_a_cause_fires_before_its_consequences_are_told_of():
    """Within the time that Alertmanager waits with a new group, or both are told."""
    waits = {alert.name: seconds(alert.body["for"]) for alert in alerts()}
    told = {alert.name for alert in alerts() if alert.body["labels"]["severity"] != "info"}
    late = set()
    for rule in CONFIG["inhibit_rules"]:
        how, targets = matchers(rule["target_matchers"]).get("alertname", ("", ""))
        if how not in ("=", "=~") or targets == "Gpuhost.*":
            continue  # what cannot be read any more does not come up either
        for cause in named(matchers(rule["source_matchers"])["alertname"][1]):
            for consequence in named(targets) & told:
                if waits[cause] > waits[consequence] + seconds(CONFIG["route"]["group_wait"]):
                    late.add((cause, consequence))
    assert late == set(_LATER)


def test_pages_and_tickets_go_somewhere_and_info_nowhere():
    receivers = {receiver["name"] for receiver in CONFIG["receivers"]}
    assert receivers == {"nowhere", "page", "ticket"}
    assert CONFIG["route"]["receiver"] == "nowhere"
    routed = {}
    for route in CONFIG["route"]["routes"]:
        found = matchers(route["matchers"])
        routed.setdefault(found["severity"][1], set()).add(route["receiver"])
    assert routed == {"page": {"page"}, "ticket": {"ticket"}}
    assert {rule.body["labels"]["severity"] for rule in alerts()} == {"page", "ticket", "info"}


@pytest.mark.skipif(
    not shutil.which("amtool"), reason="amtool is not installed: apt-get install prometheus-alertmanager"
)
def test_alertmanager_takes_its_configuration():
    done = subprocess.run(
        ["amtool", "check-config", f"{ALERTS}/alertmanager.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
