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
PAGES = {rule.name for rule in alerts() if rule.body["labels"]["severity"] == "page"}
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
def test_inhibition_names_alerts_that_exist_and_stays_on_one_host_or_job(rule):
    assert "cluster" in rule["equal"]
    assert {"instance", "exported_job"} & set(rule["equal"])
    for side in ("source_matchers", "target_matchers"):
        for text in rule[side]:
            label, _, value = _MATCHER.fullmatch(text).groups()
            assert label in ("alertname", "fault", "component", "gpu", "collector", "kind", "exported_job")
            if label in ("alertname", "fault"):
                assert all(named(each) for each in value.split("|"))
            if label == "fault":
                assert set(value.split("|")) <= PAGES, "GpuhostFreshFault tells of pages only"
            if label == "component":
                assert set(value.split("|")) <= {alert.body["labels"]["component"] for alert in alerts()}
    gone = set(rule["equal"]) - {"cluster", "instance"}
    if "instance" in rule["equal"]:
        gone -= {"exported_job"}  # one host's: what names no job may be of any
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


def firing(text, instance="gpu-7", job="slurm:1", **more):
    """`Alert Alert:label=value ...` as Alertmanager has them; those that know their job carry it."""
    found = []
    for word in text.split():
        name, *labels = word.split(":")
        alert = next(alert for alert in alerts() if alert.name == f"Gpuhost{name}")
        own = {"alertname": alert.name, "instance": instance, **alert.body["labels"], **more}
        if "exported_job" in labels_of(alert.expr, metric).labels:
            own["exported_job"] = job
        found.append(own | dict(label.split("=") for label in labels))
    return found


def fresh(told):
    """With what GpuhostFreshFault says of them in their first hour."""
    kept = ("instance", "gpu", "device", "exported_job")
    found = [
        {label: alert[label] for label in kept if label in alert} | {"fault": alert["alertname"]}
        for alert in told
        if alert["severity"] == "page"
    ]
    return told + [{"alertname": "GpuhostFreshFault", "severity": "info"} | labels for labels in found]


def holds(entry, alert):
    tried = {
        "=": str.__eq__,
        "!=": str.__ne__,
        "=~": lambda a, b: re.fullmatch(b, a),
        "!~": lambda a, b: not re.fullmatch(b, a),
    }
    return all(
        tried[how](alert.get(name, ""), value)
        for name, how, value in (_MATCHER.fullmatch(text).groups() for text in entry)
    )


def messages(told):
    """Who is told of what, each message once: (receiver, labels grouped by) -> alerts, without what is inhibited."""
    found = {}
    for alert in told:
        inhibited = any(
            holds(rule["target_matchers"], alert)
            and holds(rule["source_matchers"], source)
            and all(source.get(name, "") == alert.get(name, "") for name in rule["equal"])
            for rule in CONFIG["inhibit_rules"]
            for source in told
            if source is not alert
        )
        route = next((route for route in CONFIG["route"]["routes"] if holds(route["matchers"], alert)), CONFIG["route"])
        if not inhibited and route["receiver"] != "nowhere":
            by = route.get("group_by", CONFIG["route"]["group_by"])
            key = (route["receiver"], *(alert.get(name, "") for name in by))
            found.setdefault(key, set()).add(alert["alertname"].removeprefix("Gpuhost"))
    return found


_OF_THE_DRIVER = " ".join(
    [
        *(f"CollectorDown:collector={name}" for name in ("gpu", "gpu_health", "nvlink", "fabric", "xid")),
        *(f"InventoryUnreadable:kind={kind}" for kind in ("gpus", "links")),
    ]
)


@pytest.mark.parametrize(
    ("cause", "consequences"),
    [
        ("StoragePoor:device=md0", "CheckpointStalled CheckpointOverdue CheckpointShareHigh"),
        ("CheckpointDoesNotFit", "CheckpointStalled CheckpointOverdue"),
        ("NVLinkBelowTarget:gpu=3 JobHostBroken", "JobHung CheckpointStalled CheckpointOverdue"),
        ("NVLinkBelowTarget:gpu=3", "JobHung:exported_job= Straggler:gpu=5"),
        ("GPULost:gpu=3 JobHostBroken", "JobHung GPUsStarvedByData"),
        ("NVLinkFallback:gpu=3 JobHostBroken", "JobHung NVLinkBelowTarget:gpu=3"),
        ("GPUMemoryUncorrected:gpu=3 JobHostBroken", "JobHung"),
        ("GPURecoveryAction:gpu=3 JobHostBroken", "JobHung XidCritical:gpu=3 GPUMemoryUncorrected:gpu=3"),
        ("FabricManagerDown", "JobHung NVLinkBelowTarget:gpu=3 DeviceCountLow:kind=links"),
        ("RDMATimeouts:device=mlx5_0", "JobHung"),
        ("RDMACompletionErrors:device=mlx5_0", "JobHung RDMATimeouts:device=mlx5_0"),
        ("RDMAPortMissing:device=mlx5_0", "JobHung RDMAPortCountLow:kind=ports"),
        ("RDMAPortDown:device=mlx5_7", "JobHung RDMATimeouts:device=mlx5_7"),
        ("RDMAPortMissing:device=mlx5_7/1", "JobHung RDMATimeouts:device=mlx5_7"),
        ("ArrayBroken:device=md0", "DriveFailing:device=nvme1 CheckpointStalled StoragePoor:device=md0"),
        ("NVLinkBelowTarget:gpu=3", "XidCritical:gpu=3 GPURecoveryAction:gpu=3 SXidFatal NVLinkFlapping:gpu=3"),
        ("GPULost:gpu=3", "SXidFatal XidCritical:gpu=3"),
        ("GPUMissing", "GPUCountLow:kind=gpus"),
        ("DriverMismatch", _OF_THE_DRIVER),
    ],
)
def test_one_cause_is_one_message(cause, consequences):
    told = messages(fresh(firing(cause)) + firing(consequences))
    assert list(told.values()) == [{cause.partition(":")[0]}]
    for word in consequences.split():
        (alone,) = messages(firing(word)).values()
        assert alone == {word.partition(":")[0]}


@pytest.mark.parametrize(
    ("standing", "comes_up"),
    [
        ("NVLinkBelowTarget:gpu=3", "JobHung XidCritical:gpu=3 GPURecoveryAction:gpu=3 SXidFatal"),
        ("GPULost:gpu=3", "JobHung CheckpointStalled SXidFatal GPUMissing:uuid=GPU-5"),
        ("GPUMissing", "JobHung CheckpointOverdue"),
        ("GPURecoveryAction:gpu=3", "JobHung CheckpointStalled XidCritical:gpu=3 GPUMemoryUncorrected:gpu=3"),
        ("StoragePoor:device=md1", "CheckpointStalled CheckpointOverdue CheckpointShareHigh"),
        ("ArrayBroken:device=md1", "JobHung DriveNotAnswering:device=nvme1 StoragePoor:device=md0"),
        ("RDMAPortMissing:device=mlx5_7/1", "JobHung RDMATimeouts:device=mlx5_0"),
        ("RDMATimeouts:device=mlx5_0", "JobHung CheckpointOverdue"),
    ],
)
def test_what_stands_for_hours_hides_nothing_that_comes_up(standing, comes_up):
    for word in comes_up.split():
        told = messages(firing(f"{standing} {word}"))
        assert set().union(*told.values()) == {standing.partition(":")[0], word.partition(":")[0]}


def test_a_port_that_is_down_hides_no_others_timeouts():
    told = messages(fresh(firing("RDMAPortDown:device=mlx5_7")) + firing("RDMATimeouts:device=mlx5_0"))
    assert set().union(*told.values()) == {"RDMAPortDown", "RDMATimeouts"}


@pytest.mark.parametrize("cause", ["JobHung", "CheckpointDoesNotFit", "CheckpointStalled"])
def test_one_jobs_trouble_hides_its_own_and_nothing_of_another_on_its_host(cause):
    named = firing(cause, exported_job="slurm:1")
    other = messages(named + firing("CheckpointOverdue", job="slurm:2"))
    assert set().union(*other.values()) == {cause, "CheckpointOverdue"}
    assert list(messages(named + firing("CheckpointOverdue")).values()) == [{cause}]


@pytest.mark.parametrize("cause", ["GPULost:gpu=3", "GPUMemoryUncorrected:gpu=3", "NVLinkBelowTarget:gpu=3"])
@pytest.mark.parametrize("consequence", ["JobHung", "CheckpointStalled", "CheckpointOverdue", "GPUsStarvedByData"])
def test_a_gpu_takes_its_own_job_along_and_no_other_of_its_host(cause, consequence):
    name = cause.partition(":")[0]
    broken = fresh(firing(f"{cause} JobHostBroken", job="slurm:1"))
    assert list(messages(broken + firing(consequence, job="slurm:1")).values()) == [{name}]
    told = messages(broken + firing(consequence, job="slurm:2"))
    assert set().union(*told.values()) == {name, consequence}


def test_a_fault_of_a_gpu_is_one_to_the_rule_that_tells_its_job_and_to_the_inhibition():
    (broken,) = (alert for alert in alerts() if alert.name == "GpuhostJobHostBroken")
    (inhibition,) = (
        matchers(rule["source_matchers"])
        for rule in CONFIG["inhibit_rules"]
        if matchers(rule["target_matchers"]).get("exported_job") == ("=", "")
        and "fault" in matchers(rule["source_matchers"])
    )
    assert re.findall(r'fault=~"(.+?)"', broken.expr) == [inhibition["fault"][1]]


@pytest.mark.parametrize("cause", ["RDMATimeouts:device=mlx5_0", "GPULost:gpu=3 JobHostBroken"])
def test_equal_units_of_systemd_on_two_hosts_are_two_jobs(cause):
    unit = {"job": "systemd:train.service"}
    broken, name = fresh(firing(cause, **unit)), cause.partition(":")[0]
    assert list(messages(broken + firing("JobHung", **unit)).values()) == [{name}]
    told = messages(broken + firing("JobHung", "gpu-8", **unit))
    assert set().union(*told.values()) == {name, "JobHung"}


def test_two_causes_on_a_host_and_two_jobs_hangs_are_messages_of_their_own():
    told = messages(firing("GPULost:gpu=3 GPUHardwareSlowdown:gpu=5 JobHung") + firing("JobHung", "gpu-8", "slurm:2"))
    assert told == {
        ("page", "", "gpu-7", "GpuhostGPULost"): {"GPULost"},
        ("page", "", "gpu-7", "GpuhostGPUHardwareSlowdown"): {"GPUHardwareSlowdown"},
        ("page", "", "GpuhostJobHung", "slurm:1"): {"JobHung"},
        ("page", "", "GpuhostJobHung", "slurm:2"): {"JobHung"},
    }


def test_a_driver_mismatch_hides_nothing_of_drives():
    told = messages(firing("DriverMismatch CollectorDown:collector=nvme InventoryUnreadable:kind=drives"))
    assert set().union(*told.values()) == {"DriverMismatch", "CollectorDown", "InventoryUnreadable"}


_OF_A_JOB = "JobHung RDMATimeouts:device=mlx5_0 RDMACompletionErrors:device=mlx5_1 CheckpointOverdue"


@pytest.mark.parametrize("cause", ["ExporterDown", "GPULost:gpu=3"])
def test_a_host_that_breaks_a_job_of_sixteen_is_one_page(cause):
    survivors = [alert for number in range(15) for alert in firing(_OF_A_JOB, instance=f"gpu-1{number}")]
    told = messages(firing(f"{cause} JobHostBroken") + survivors)
    name = cause.partition(":")[0]
    assert told == {("page", "", "gpu-7", f"Gpuhost{name}"): {name}}


def test_another_job_is_told_of_all_the_same():
    other = firing("JobHung", instance="gpu-9", job="slurm:2") + firing("RDMATimeouts:device=mlx5_0", "gpu-8", "")
    told = messages(firing("ExporterDown JobHostBroken") + other)
    assert set().union(*told.values()) == {"ExporterDown", "JobHung", "RDMATimeouts"}


def test_what_befalls_a_job_on_sixteen_hosts_is_one_page():
    told = messages([alert for number in range(16) for alert in firing("RDMATimeouts:device=mlx5_0", f"gpu-{number}")])
    assert told == {("page", "", "GpuhostRDMATimeouts", "slurm:1"): {"RDMATimeouts"}}


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
