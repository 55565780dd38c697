"""deploy/web.yml as it is documented: a certificate and a password, or nothing is told."""

from __future__ import annotations

import base64
import http.client
import shutil
import ssl
from pathlib import Path

import pytest
from support.daemon import Daemon
from support.web import certificate

EXAMPLE = Path(__file__).parents[2] / "deploy" / "web.yml"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """(folder with the certificates, port)."""
    if shutil.which("openssl") is None:
        pytest.skip("TLS is NOT tried: no openssl here")
    folder = tmp_path_factory.mktemp("web")
    shutil.copy(EXAMPLE, folder / "web.yml")
    certificate(folder, "ca")
    certificate(folder, "server", issuer="ca")
    certificate(folder, "client", issuer="ca")
    with Daemon(folder, f"--web.config.file={folder / 'web.yml'}", "--simulate=nogpu") as daemon:
        yield folder, daemon.port


def ask(folder, port, *, certificate=True, password="change-me"):
    """The status and the body of /metrics."""
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    if certificate:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    headers = {"Authorization": "Basic " + base64.b64encode(f"prometheus:{password}".encode()).decode()}
    try:
        connection.request("GET", "/metrics", headers=headers if password else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_certificate_and_password_are_let_in(guarded):
    status, body = ask(*guarded)
    assert status == 200
    assert b"gpuhost_exporter_build_info" in body


@pytest.mark.parametrize("password", ["", "wrong"], ids=["none", "a wrong one"])
def test_without_the_password_nothing_is_told(guarded, password):
    status, body = ask(*guarded, password=password)
    assert status == 401
    assert b"gpuhost_" not in body


def test_without_a_certificate_nothing_is_told(guarded):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(*guarded, certificate=False)


def test_plain_http_is_told_nothing(guarded):
    connection = http.client.HTTPConnection("127.0.0.1", guarded[1], timeout=10)
    connection.request("GET", "/metrics")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed_over_http(tmp_path_factory, method):
    with Daemon(tmp_path_factory.mktemp("open"), "--simulate=nogpu") as daemon:
        for path in ("/", "/metrics", "/verdict", "/-/reload", "/-/quit"):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
            connection.request(method, path, body=b"x")
            assert connection.getresponse().status in (404, 405)
            connection.close()
