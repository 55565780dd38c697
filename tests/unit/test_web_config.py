"""The web configuration file: what is taken, what is refused and how, and what follows a change on disk."""

from __future__ import annotations

import logging
import ssl

import bcrypt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.web import answer, certificate, connect, get, openssl, rest, serving, wait_for

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.web import webconfig
from gpuhost_exporter.web.connection import Limits
from gpuhost_exporter.web.message import text
from gpuhost_exporter.web.webconfig import WebConfig, read_policy

HASH = bcrypt.hashpw(b"right", b"$2b$04$" + b"e" * 22).decode()  # a fixed salt: it stands in test names
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
MUTUAL = TLS + "  client_ca_file: ca.crt\n  client_auth_type: "


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Certificates, made once."""
    folder = tmp_path_factory.mktemp("certificates")
    certificate(folder, "server")
    certificate(folder, "ca")
    certificate(folder, "client", issuer="ca")
    certificate(folder, "stranger")
    openssl("pkey", "-in", folder / "server.key", "-aes256", "-passout", "pass:x", "-out", folder / "locked.key")
    (folder / "empty.crt").write_text("nothing\n")
    (folder / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return folder


@pytest.fixture
def web(made):
    """Writes the file beside the certificates and returns its path."""

    def write(content):
        (made / "web.yml").write_text(content, encoding="utf-8")
        return str(made / "web.yml")

    return write


@pytest.fixture
def at_once(monkeypatch):
    """Looks at the files at every request."""
    monkeypatch.setattr(webconfig, "_LOOK_SECONDS", 0.0)


def secure(server, folder, certificate_of=None, **versions):
    """A client connection that has shaken hands, trusting the server's certificate."""
    context = ssl.create_default_context(cafile=str(folder / "server.crt"))
    for name, value in versions.items():
        setattr(context, name, value)
    if certificate_of:
        context.load_cert_chain(folder / f"{certificate_of}.crt", folder / f"{certificate_of}.key")
    return context.wrap_socket(connect(server), server_hostname="localhost")


def status(server, folder, certificate_of=None, **versions):
    with secure(server, folder, certificate_of, **versions) as client:
        client.sendall(get())
        return answer(client)[0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "tls_server_config:\nbasic_auth_users:\n",
        "http_server_config: {http2: false}",
        "http_server_config: {headers: {X-Frame-Options: ''}}",
        TLS,
        TLS + "  min_version: TLS13\n",
        TLS + "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n",
        MUTUAL + "RequireAndVerifyClientCert",
        f"basic_auth_users: {{alice: {HASH}, 123: {HASH}}}",
    ],
)
def test_what_exporters_share_is_taken(web, content):
    WebConfig.load(web(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "not YAML"),
        ("a: b: c", "not YAML"),
        ("- a", "the file: expected keys and values"),
        ("tls: {}", "tls: not supported; supported are tls_server_config, http_server_config, basic_auth_users"),
        ("rate_limit: {burst: 2}", "rate_limit: not supported"),
        ("basic_auth_users: [a]", "basic_auth_users: expected keys and values"),
        ("basic_auth_users: {alice: secret}", "basic_auth_users.alice: not a bcrypt hash"),
        ("basic_auth_users: {alice: $2y$99$" + "a" * 53 + "}", "basic_auth_users.alice: not a bcrypt hash"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "basic_auth_users.'a:b': not a user name"),
        ("http_server_config: {http2: true}", "http_server_config.http2: only false"),
        ("http_server_config: {headers: {Server: x}}", "headers.Server: not supported; supported are Content-"),
        ("http_server_config: {headers: {X-Frame-Options: maybe}}", "expected deny or sameorigin"),
        ('http_server_config: {headers: {X-XSS-Protection: "1\\n2"}}', "expected one line"),
        ("tls_server_config: {key_file: server.key}", "tls_server_config.cert_file: missing"),
        ("tls_server_config: {cert_file: server.crt}", "tls_server_config.key_file: missing"),
        ("tls_server_config: {cert_file: [a], key_file: b}", "tls_server_config.cert_file: expected one value"),
        (TLS.replace("server.crt", "none.crt"), "none.crt: No such file"),
        (TLS.replace("server.crt", "empty.crt"), "empty.crt: no PEM certificate in it"),
        (TLS.replace("server.crt", "broken.crt"), "tls_server_config.cert_file: "),
        (TLS.replace("server.key", "server.crt"), "server.crt: no PEM private key in it"),
        (TLS.replace("server.key", "ca.key"), "ca.key is not the key of"),
        (TLS.replace("server.key", "locked.key"), "locked.key: encrypted"),
        (TLS + "  min_version: TLS10\n", "'TLS10' is not supported; supported are TLS12, TLS13"),
        (TLS + "  min_version: TLS13\n  max_version: TLS12\n", "min_version: above max_version"),
        (TLS + "  cipher_suites: TLS_RSA\n", "cipher_suites: expected a list"),
        (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", "'TLS_RSA_WITH_RC4_128_SHA' is not supported"),
        (TLS + "  client_allowed_sans: [a]\n", "client_allowed_sans: not supported; supported are cert_file"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert\n", "client_ca_file: missing"),
        (TLS + "  client_ca_file: ca.crt\n", "client_auth_type: missing"),
        (MUTUAL + "RequireAnyClientCert\n", "'RequireAnyClientCert' is not supported"),
        (MUTUAL.replace("ca.crt", "broken.crt") + "RequireAndVerifyClientCert", "tls_server_config.client_ca_file: "),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(web, content, said):
    path = web(content)
    with pytest.raises(ConfigError) as caught:
        WebConfig.load(path)
    assert said in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"/no/web\.yml: No such file"):
        WebConfig.load("/no/web.yml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.text() | st.sampled_from(["[" * 2000, "a: &a [*a]", "? {a: b}\n: c", "!!int ''", "<<: {}", '"a\\nb": c']))
def test_any_text_is_a_policy_or_a_configuration_error(web, content):
    complaint = ""
    try:
        read_policy(web(content))
    except ConfigError as error:
        complaint = str(error)
    assert "\n" not in complaint


def test_headers_of_the_file_replace_the_page_s(web):
    path = web("http_server_config: {headers: {X-Content-Type-Options: nosniff, X-Frame-Options: deny}}")
    policy = read_policy(path)
    headers = policy.with_headers(text(200, "x", ("x-frame-options", "sameorigin"))).headers
    assert [value for name, value in headers if name.lower() == "x-frame-options"] == ["deny"]
    assert ("Cache-Control", "no-store") in headers


def test_basic_auth_guards_every_path(web):
    with serving(web_config_file=web(f"basic_auth_users: {{alice: {HASH}}}")) as server, connect(server) as client:
        for path, header, expected in (
            ("/metrics", "X: y", 401),
            ("/nowhere", "X: y", 401),
            ("/metrics", "Authorization: Basic YWxpY2U6cmlnaHQ=", 200),  # alice:right
            ("/metrics", "Authorization: Basic YWxpY2U6d3Jvbmc=", 401),
        ):
            client.sendall(get(path, header))
            assert answer(client)[0] == expected


def test_tls_is_served_and_nothing_below_its_minimum(web, made):
    with serving(web_config_file=web(TLS + "  min_version: TLS13\n")) as server:
        assert status(server, made) == 200
        with pytest.raises(ssl.SSLError):
            status(server, made, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_only_the_chosen_cipher_is_spoken(web, made):
    suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    path = web(TLS + f"  max_version: TLS12\n  cipher_suites: [{suite}]\n")
    with serving(web_config_file=path) as server, secure(server, made) as client:
        assert client.cipher()[:2] == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("RequireAndVerifyClientCert", {None: False, "client": True, "stranger": False}),
        ("VerifyClientCertIfGiven", {None: True, "client": True, "stranger": False}),
    ],
)
def test_client_certificates_are_verified(web, made, kind, expected):
    def passes(server, who):
        try:
            return status(server, made, who) == 200
        except OSError:
            return False

    with serving(web_config_file=web(MUTUAL + kind)) as server:
        assert {who: passes(server, who) for who in expected} == expected


def test_plain_http_on_the_tls_port_is_told_so(web):
    with serving(web_config_file=web(TLS)) as server, connect(server) as client:
        client.sendall(get())
        assert b"speaks HTTPS" in rest(client)
        assert server.counts().requests == {}


def test_a_handshake_that_stops_half_way_is_ended_and_delays_nobody(web, made):
    limits = Limits(head_seconds=0.5)
    with serving(web_config_file=web(TLS), limits=limits) as server, connect(server) as silent, connect(server) as half:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert status(server, made) == 200
        assert rest(silent) == rest(half) == b""
        assert wait_for(lambda: server.counts().timed_out == 2)


def test_a_renewed_certificate_serves_the_next_connection(web, made, tmp_path, at_once):
    for name in ("server.crt", "server.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "web.yml").write_text(TLS)
    with serving(web_config_file=str(tmp_path / "web.yml")) as server:
        assert status(server, made) == 200
        certificate(tmp_path, "server")
        with pytest.raises(ssl.SSLCertVerificationError):
            status(server, made)
        assert status(server, tmp_path) == 200


def test_a_bad_renewal_changes_nothing_and_is_logged_once(web, made, tmp_path, at_once, caplog):
    for name in ("server.crt", "server.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "web.yml").write_text(TLS)
    with serving(web_config_file=str(tmp_path / "web.yml")) as server, caplog.at_level(logging.INFO):
        (tmp_path / "server.key").write_bytes((made / "ca.key").read_bytes())
        assert [status(server, made) for _ in range(3)] == [200, 200, 200]
        (tmp_path / "server.key").write_bytes((made / "server.key").read_bytes())
        assert status(server, made) == 200
    messages = [record.getMessage() for record in caplog.records]
    assert [("stays in force" in message, "read again" in message) for message in messages] == [
        (True, False),
        (False, True),
    ]


def test_a_removed_user_is_refused_on_an_open_connection(web, at_once):
    header = "Authorization: Basic YWxpY2U6cmlnaHQ="  # alice:right
    path = web(f"basic_auth_users: {{alice: {HASH}}}")
    with serving(web_config_file=path) as server, connect(server) as client:
        client.sendall(get("/", header))
        assert answer(client)[0] == 200
        web(f"basic_auth_users: {{bob: {HASH}}}")
        client.sendall(get("/", header))
        assert answer(client)[0] == 401
