"""A server on a free loopback port, raw clients for it, and throw-away certificates."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from http.client import HTTPResponse

from gpuhost_exporter.web.message import text
from gpuhost_exporter.web.server import Server


def hello(request):
    return text(200, f"{request.method} {request.path} {request.query}")


@contextlib.contextmanager
def serving(handler=hello, web_config_file=None, limits=None, address="127.0.0.1:0"):
    server = Server([address], handler, web_config_file, limits)
    server.start()
    try:
        yield server
    finally:
        server.close()


def port(server):
    return int(server.addresses[0].rpartition(":")[2])


def connect(server, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", port(server)), timeout=5, source_address=(source, 0))


def get(path="/", *headers):
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: test", *headers, "", "")).encode()


def answer(client, method="GET"):
    """Status, headers and body of the next answer on this connection."""
    with contextlib.closing(HTTPResponse(client, method=method)) as response:
        response.begin()
        return response.status, response.headers, response.read()


def rest(client):
    """Everything until the server hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def ask(server, data):
    """What the server sends to a client that sends `data` on a connection of its own."""
    with connect(server) as client:
        client.sendall(data)
        return answer(client)


def wait_for(fact, seconds=3.0):
    """Whether it comes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if fact():
            return True
        time.sleep(0.005)
    return False


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificate(folder, name, issuer=None):
    """NAME.crt and NAME.key for localhost, signed by the issuer's files or by itself."""
    new = ("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}")
    key, certificate_file = folder / f"{name}.key", folder / f"{name}.crt"
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    by = () if issuer is None else ("-CA", folder / f"{issuer}.crt", "-CAkey", folder / f"{issuer}.key")
    openssl(*new, "-x509", "-days", "2", *names, *by, "-keyout", key, "-out", certificate_file)
    return certificate_file, key
