"""The few calls to the Kubernetes API that a node's condition needs, as a pod's service account, over plain HTTPS.

GET   /api/v1/nodes?labelSelector=…&limit=…&continue=…   who is there, and whose condition says what, page by page
GET   /api/v1/nodes/NAME                                 what this one's says
PATCH /api/v1/nodes/NAME/status                          (strategic merge: conditions by type)
GET, POST, PUT /apis/coordination.k8s.io/v1/namespaces/NAMESPACE/leases/NAME

/var/run/secrets/kubernetes.io/serviceaccount/token, ca.crt, namespace     the token is exchanged now and then
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from gpuhost_exporter.errors import ConfigError, Denied, Malformed, SourceError, Transient
from gpuhost_exporter.nodecondition import Condition
from gpuhost_exporter.sources.files import read_text

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
LEASE = "gpuhost-node-condition"
_PATIENCE = 10.0
_PAGE = 100  # nodes at a time: with their lists of images some 30 kB each
_MOST_BYTES = 32 << 20
_LEASE_SECONDS = 60


class Conflict(Transient):
    """Somebody else has changed it meanwhile."""

    kind = "conflict"


class Missing(Transient):
    """The API has no such object."""

    kind = "missing"


class Cluster:
    """`folder`: the service account's. Every call raises SourceError where the API does not do it."""

    def __init__(self, host: str, port: int, folder: str = ACCOUNT) -> None:
        self._host = host
        self._port = port
        self._folder = folder

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], folder: str = ACCOUNT) -> Cluster:
        """As Kubernetes tells its pods. Raises ConfigError."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdecimal():
            raise ConfigError("KUBERNETES_SERVICE_HOST and _PORT are not set: not in a pod")
        return cls(host, int(port), folder)

    def statuses(self, kind: str, selector: str) -> dict[str, str]:
        """The condition's status by node; "" for a node that does not have it."""
        found: dict[str, str] = {}
        told = ""
        while True:
            query = urlencode({"limit": _PAGE, **_given(labelSelector=selector), **_given(**{"continue": told})})
            page = self._call("GET", f"/api/v1/nodes?{query}")
            try:
                found |= {node["metadata"]["name"]: _status(node, kind) for node in page.get("items") or ()}
                told = page.get("metadata", {}).get("continue") or ""
            except (AttributeError, KeyError, TypeError) as error:
                raise Malformed(f"nodes: expected a list of nodes, lacks {error}") from error
            if not told:
                return found

    def status(self, node: str, kind: str) -> str:
        """Of one node; "" where it does not have the condition."""
        return _status(self._call("GET", f"/api/v1/nodes/{quote(node)}"), kind)

    def set_condition(self, node: str, condition: Condition, *, changed: bool) -> None:
        now = _now()
        entry = {
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
        }
        if changed:
            entry["lastTransitionTime"] = now
        body = {"status": {"conditions": [entry]}}
        path = f"/api/v1/nodes/{quote(node)}/status"
        self._call("PATCH", path, body, "application/strategic-merge-patch+json")

    def take_lease(self, holder: str) -> dict[str, Any] | None:
        """The lease, now the holder's; None while another has it. One that was not given back can be taken later."""
        path = self._leases()
        try:
            lease = self._call("GET", f"{path}/{LEASE}")
        except Missing:
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}}
        told = lease.get("spec")
        spec: dict[str, Any] = told if isinstance(told, dict) else {}
        if spec.get("holderIdentity") not in (None, "", holder) and not _expired(spec):
            return None
        lease["spec"] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": _now(micro=True),
        }
        try:
            if "resourceVersion" in lease["metadata"]:
                return self._call("PUT", f"{path}/{LEASE}", lease)
            return self._call("POST", path, lease)
        except Conflict:
            return None

    def give_lease_back(self, lease: dict[str, Any]) -> None:
        self._call("PUT", f"{self._leases()}/{LEASE}", lease | {"spec": {"holderIdentity": ""}})

    def _leases(self) -> str:
        namespace = quote(read_text(f"{self._folder}/namespace"))
        return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    def _call(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {read_text(f'{self._folder}/token')}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            context = ssl.create_default_context(cafile=f"{self._folder}/ca.crt")
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=_PATIENCE, context=context)
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                block = answer.read(_MOST_BYTES + 1)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise Transient(f"Kubernetes API at {self._host}:{self._port}: {error}") from error
        if answer.status >= 300:
            raise _refused(method, path, answer.status)
        if len(block) > _MOST_BYTES:
            raise Malformed(f"{method} {path.partition('?')[0]}: the answer is longer than {_MOST_BYTES} bytes")
        try:
            document = json.loads(block)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"{method} {path}: no JSON") from error
        if not isinstance(document, dict):
            raise Malformed(f"{method} {path}: expected an object")
        return document


def _given(**fields: str) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}


def _refused(method: str, path: str, status: int) -> SourceError:
    kinds: dict[int, type[SourceError]] = {401: Denied, 403: Denied, 404: Missing, 409: Conflict}
    return kinds.get(status, Transient)(f"Kubernetes API: {method} {path.partition('?')[0]}: HTTP status {status}")


def _status(node: Mapping[str, Any], kind: str) -> str:
    conditions = node.get("status", {}).get("conditions") or ()
    return next((str(entry.get("status", "")) for entry in conditions if entry.get("type") == kind), "")


def _expired(spec: Mapping[str, Any]) -> bool:
    try:
        renewed = datetime.strptime(spec["renewTime"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except (KeyError, TypeError, ValueError):
        return True
    return (datetime.now(timezone.utc) - renewed).total_seconds() > _LEASE_SECONDS


def _now(*, micro: bool = False) -> str:
    """Conditions have whole seconds, leases microseconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
