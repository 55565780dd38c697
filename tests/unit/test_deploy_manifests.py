"""deploy/kubernetes, compose.yaml and what they mount: held against schemas, the exporter's unit and each other.

No cluster and no container engine is needed: nothing here has been applied to one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from support.kubernetes import Api, serving
from support.web import certificate

from gpuhost_exporter import catalogue, health, nodecondition
from gpuhost_exporter.kubernetes import LEASE
from gpuhost_exporter.nodecondition import Rules, Watch

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
MONITORING = DEPLOY / "kubernetes" / "monitoring"
CONDITION = DEPLOY / "kubernetes" / "node-condition"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
EXPORTER = COMPOSE["services"]["exporter"]


def resources(folder: Path) -> list[dict]:
    """Every object that this kustomization brings, those of its bases included; generated ones are not."""
    found = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("resources", ()):
        path = (folder / name).resolve()
        if path.is_dir():
            found += resources(path)
        else:
            found += [each for each in yaml.safe_load_all(path.read_text()) if each]
    return found


def by_kind(kind: str) -> dict:
    (found,) = (each for each in resources(MONITORING) if each["kind"] == kind)
    return found


def unit_capabilities() -> set[str]:
    unit = (DEPLOY / "systemd" / "gpuhost-exporter.service").read_text()
    found = re.search(r"(?m)^CapabilityBoundingSet=(.*)$", unit)
    assert found
    return {name.removeprefix("CAP_") for name in found[1].split()}


BUILT_IN = [
    each for each in resources(CONDITION) if each["apiVersion"].partition("/")[0] != "monitoring.coreos.com"
]  # with the base


@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", BUILT_IN, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_kubernetes_schema_takes_it(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_refused():
    wrong = {**by_kind("DaemonSet"), "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_monitor_selects_the_service_and_the_service_the_pods():
    monitor, service, pods = by_kind("ServiceMonitor"), by_kind("Service"), by_kind("DaemonSet")["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    (container,) = pods["spec"]["containers"]
    (port,) = container["ports"]
    (told,) = service["spec"]["ports"]
    assert [each["port"] for each in monitor["spec"]["endpoints"]] == [told["name"]]
    assert (told["targetPort"], told["port"]) == (port["name"], port["containerPort"])
    assert f"--web.listen-address=:{port['containerPort']}" in container["args"]


def test_pods_may_do_no_more_than_the_service_of_systemd():
    (container,) = by_kind("DaemonSet")["spec"]["template"]["spec"]["containers"]
    held = container["securityContext"]["capabilities"]
    assert held["drop"] == ["ALL"]
    assert set(held["add"]) <= unit_capabilities()
    assert not container["securityContext"].get("privileged")
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_every_dashboard_is_a_config_map_of_its_own_that_kubectl_can_apply():
    folder = REPOSITORY / "dashboards"
    maps = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(each["files"][0] for each in maps) == sorted(path.name for path in folder.glob("*.json"))
    assert all(len(each["files"]) == 1 for each in maps)
    assert max(path.stat().st_size for path in folder.glob("*.json")) < 256 << 10


def kustomized(folder: Path) -> list[dict]:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kustomizations are NOT built: no kubectl here")


@KUBECTL
def test_kustomize_builds_it_whole():
    built = kustomized(MONITORING)
    assert {each["kind"] for each in built} == {
        "Namespace", "DaemonSet", "Service", "ServiceMonitor", "PrometheusRule", "ConfigMap",
    }  # fmt: skip
    spaces = {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"}
    assert spaces == {"gpuhost-exporter"}
    pages = [each for each in built if each["kind"] == "ConfigMap"]
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in pages)
    rules = [each for each in built if each["kind"] == "PrometheusRule"]
    assert sum(len(group["rules"]) for rule in rules for group in rule["spec"]["groups"]) > 50


@KUBECTL
def test_kustomize_builds_the_condition_with_its_account_in_one_namespace():
    built = kustomized(CONDITION)
    assert sorted(each["kind"] for each in built if "node-condition" in each["metadata"]["name"]) == [
        "ClusterRole", "ClusterRoleBinding", "DaemonSet", "Role", "RoleBinding", "ServiceAccount",
    ]  # fmt: skip
    bindings = [each for each in built if each["kind"].endswith("Binding")]
    assert {subject["namespace"] for each in bindings for subject in each["subjects"]} == {"gpuhost-exporter"}


def named(kind: str, name: str) -> dict:
    (found,) = (each for each in resources(CONDITION) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def allowed() -> set[tuple[str, str, str, str]]:
    """(verb, group, resource, name) of all that the roles grant; an empty name is any."""
    return {
        (verb, group, resource, name)
        for kind in ("ClusterRole", "Role")
        for rule in named(kind, LEASE)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def needed(method: str, path: str) -> tuple[str, str, str, str]:
    """What Kubernetes asks its rules for when it is sent this."""
    words = path.partition("?")[0].strip("/").split("/")
    group, words = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    if words[0] == "namespaces":
        words = words[2:]
    resource, name = "/".join((words[0], *words[2:])), words[1] if len(words) > 1 else ""
    verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}[method]
    return verb, group, resource, name if resource == "leases" else ""


def test_the_conditions_account_may_do_what_it_does_and_nothing_else(tmp_path):
    assert LEASE == "gpuhost-node-condition"
    api = Api("node-0", "node-1")
    says = [("unknown", "no exporter"), ("unfit", "GPU 3: lost"), ("unknown", "no exporter"), ("fit", "well")]
    with serving(api, tmp_path, certificate) as cluster:
        for _ in range(2):  # the lease is created once, and taken anew later
            for word in says:
                rules = Rules(dict.fromkeys(("fit", "unfit", "unknown"), 1), 1.0, "nvidia.com/gpu.present=true")
                Watch("node-0", rules, cluster, lambda word=word: word).round()
    assert {needed(method, path) for method, path, _ in api.asked} == allowed()


def test_the_conditions_pod_holds_the_token_and_the_exporters_does_not():
    pod = named("DaemonSet", "gpuhost-node-condition")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == LEASE
    assert "hostPID" not in pod
    (container,) = pod["containers"]
    held = container["securityContext"]
    assert (held["runAsNonRoot"], held["allowPrivilegeEscalation"], held["capabilities"]) == (
        True, False, {"drop": ["ALL"]},
    )  # fmt: skip
    assert "volumes" not in pod
    assert by_kind("DaemonSet")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        binding = named(kind, LEASE)
        assert binding["roleRef"]["kind"] == kind.removesuffix("Binding")
        assert [subject["name"] for subject in binding["subjects"]] == [pod["serviceAccountName"]]


def test_the_conditions_command_is_one_that_it_takes_and_a_dry_run():
    (container,) = named("DaemonSet", "gpuhost-node-condition")["spec"]["template"]["spec"]["containers"]
    command, *flags = container["args"]
    parser = argparse.ArgumentParser()
    nodecondition.add_arguments(parser)
    options = parser.parse_args(flags)
    assert (command, options.apply, options.url) == ("node-condition", False, health.DEFAULT_URL)
    assert [each["name"] for each in container["env"] if "valueFrom" in each] == ["NODE_NAME"]
    key, _, value = options.selector.partition("=")
    assert named("DaemonSet", LEASE)["spec"]["template"]["spec"]["nodeSelector"] == {key: value}


def test_marks_reach_the_exporter_in_a_container_and_its_state_can_be_written():
    image = (DEPLOY / "container" / "Containerfile").read_text()
    assert "RUNTIME_DIRECTORY=/run/gpuhost-exporter" in image
    folders = ("/var/lib/gpuhost-exporter", "/run/gpuhost-exporter")
    assert {f"{folder}:{folder}" for folder in folders} <= set(EXPORTER["volumes"])
    assert EXPORTER["user"] == "0", "who owns what Docker makes for these"
    assert not [each for each in EXPORTER["tmpfs"] if any(folder.startswith(each) for folder in folders)]
    pod = by_kind("DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {each["mountPath"] for each in container["volumeMounts"]} == set(folders)
    assert {each["hostPath"]["path"] for each in pod["volumes"]} == set(folders)
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["RUNTIME_DIRECTORY"] in folders


def test_what_no_pod_can_read_is_neither_asked_for_nor_a_ticket():
    """/dev/kmsg as a host path is denied by the pod's device rules, whatever its capabilities."""
    (container,) = by_kind("DaemonSet")["spec"]["template"]["spec"]["containers"]
    (endpoint,) = by_kind("ServiceMonitor")["spec"]["endpoints"]
    dropped = [each["regex"] for each in endpoint["metricRelabelings"] if each["action"] == "drop"]
    assert "SYSLOG" not in container["securityContext"]["capabilities"]["add"]
    assert dropped == ["gpuhost_kernel_log_up"]
    assert set(dropped) <= set(catalogue.specs())
    assert "/dev/kmsg" in EXPORTER["devices"], "compose can"


def test_compose_mounts_files_that_are_there_and_volumes_that_it_declares():
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("/"):
                assert source in COMPOSE["volumes"]


def test_compose_pins_every_image_and_opens_no_watcher_to_the_network():
    assert all(re.search(r":v?\d+\.\d+\.\d+$", each["image"]) for each in COMPOSE["services"].values())
    flags = {name: " ".join(each.get("command", ())) for name, each in COMPOSE["services"].items()}
    assert "--web.listen-address=127.0.0.1:9090" in flags["prometheus"]
    assert "--web.listen-address=127.0.0.1:9093" in flags["alertmanager"]
    assert COMPOSE["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_compose_gives_the_exporter_no_more_than_systemd_does():
    assert EXPORTER["cap_drop"] == ["ALL"]
    assert set(EXPORTER["cap_add"]) == unit_capabilities()
    assert EXPORTER["read_only"] is True
    assert "privileged" not in EXPORTER


def test_grafana_finds_the_pages_where_compose_mounts_them():
    grafana = COMPOSE["services"]["grafana"]
    (provider,) = yaml.safe_load((DEPLOY / "compose/grafana/dashboards.yml").read_text())["providers"]
    assert f"../dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (REPOSITORY / "dashboards" / home.name).exists()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="configurations are NOT checked: no promtool here")
@pytest.mark.parametrize(
    ("file", "flags"),
    [("compose/prometheus.yml", ()), ("fleet/prometheus-agent.yml", ("--agent",))],
    ids=["compose", "agent"],
)
def test_prometheus_takes_the_configuration(tmp_path, file, flags):
    text = (DEPLOY / file).read_text().replace("/etc/prometheus/gpuhost", f"{REPOSITORY}/alerts/rules")
    (tmp_path / "prometheus.yml").write_text(text)
    command = ["promtool", "check", "config", *flags, str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_and_the_manifests_are_of_this_version():
    version = re.search(r'(?m)^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text())
    assert version
    (container,) = by_kind("DaemonSet")["spec"]["template"]["spec"]["containers"]
    (beside,) = named("DaemonSet", LEASE)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == beside["image"] == EXPORTER["image"] == f"gpuhost-exporter:{version[1]}"
