"""A small Kubernetes API over HTTPS: nodes with conditions, leases with versions, a token that must be right."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from gpuhost_exporter.kubernetes import Cluster

TOKEN = "the-token"
NAMESPACE = "gpuhost"


class Api:
    """`nodes`: name -> conditions by type. `leases`: name -> object. `asked`: method, path and content type."""

    def __init__(self, *nodes):
        self.nodes = {name: {} for name in nodes}
        self.labels = dict.fromkeys(nodes, "nvidia.com/gpu.present=true")
        self.leases = {}
        self.asked = []
        self.version = 0
        self.refuse = {}  # a part of the path -> HTTP status
        self.before = {}  # method -> called before it is done
        self.page = 1000  # nodes in an answer at most, whatever is asked for
        self.lock = threading.Lock()

    def unfit(self):
        return {
            name
            for name, conditions in self.nodes.items()
            if conditions.get("GPUHostUnfit", {}).get("status") == "True"
        }

    def answer(self, method, path, body):
        parts = urlsplit(path)
        for part, status in self.refuse.items():
            if part in path:
                return status, {"kind": "Status", "code": status}
        if parts.path == "/api/v1/nodes" and method == "GET":
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            wanted, start = query.get("labelSelector", ""), int(query.get("continue", "0"))
            names = [name for name, label in self.labels.items() if wanted in ("", label)]
            end = start + min(int(query["limit"]), self.page)
            left = {"continue": str(end), "remainingItemCount": len(names) - end} if end < len(names) else {}
            return 200, {"metadata": left, "items": [self.node(name) for name in names[start:end]]}
        node = re.fullmatch(r"/api/v1/nodes/([^/]+)", parts.path)
        if node and method == "GET":
            return 200, self.node(node[1])
        node = re.fullmatch(r"/api/v1/nodes/([^/]+)/status", parts.path)
        if node and method == "PATCH":
            for entry in body["status"]["conditions"]:
                self.nodes[node[1]].setdefault(entry["type"], {}).update(entry)
            return 200, self.node(node[1])
        lease = re.fullmatch(rf"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases(?:/([^/]+))?", parts.path)
        if lease:
            return self.lease(method, lease[1], body)
        return 404, {"kind": "Status", "code": 404}

    def node(self, name):
        return {"metadata": {"name": name}, "status": {"conditions": list(self.nodes[name].values())}}

    def lease(self, method, name, body):
        if method == "GET":
            return (200, copy.deepcopy(self.leases[name])) if name in self.leases else (404, {})
        name = name or body["metadata"]["name"]
        known = self.leases.get(name)
        if (method == "POST") == (known is not None):
            return 409, {}
        if known and known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            return 409, {}
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.leases[name] = body
        return 200, copy.deepcopy(body)


@contextlib.contextmanager
def serving(api, folder, certificate):
    """Yields the Cluster that talks to it, its service account in `folder`."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if self.command in api.before:
                api.before[self.command](self.path)
            with api.lock:
                api.asked.append((self.command, self.path, self.headers.get("Content-Type")))
                right = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                status, document = api.answer(self.command, self.path, body) if right else (401, {})
            block = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(block)))
            self.end_headers()
            self.wfile.write(block)

        do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815 -- the base class's names

        def log_message(self, *_):
            """Nothing: the test says what it wants to know."""

    certificate(folder, "ca")
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text(NAMESPACE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "ca.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield Cluster("127.0.0.1", server.server_address[1], str(folder))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
