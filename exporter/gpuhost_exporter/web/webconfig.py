"""TLS and basic authentication, by the web configuration file that Prometheus' exporters share.

    tls_server_config:
      cert_file: server.crt          # relative to this file
      key_file: server.key
      client_ca_file: clients.crt
      client_auth_type: RequireAndVerifyClientCert   # or NoClientCert, VerifyClientCertIfGiven
      min_version: TLS12
      max_version: TLS13
      cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
    http_server_config:
      http2: false                   # HTTP/1.1 is spoken, and nothing else
      headers: {X-Frame-Options: deny}
    basic_auth_users:
      prometheus: $2y$10$...         # bcrypt

The file and those that it names are read again when they change; a bad new one is logged, and the last good
one stays in force.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

import yaml

from gpuhost_exporter.errors import ConfigError, SourceError
from gpuhost_exporter.sources.files import read_text
from gpuhost_exporter.web.auth import Authenticator
from gpuhost_exporter.web.message import Request, Response

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOOK_SECONDS = 1.0

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users")
_TLS_KEYS = (
    "cert_file",
    "key_file",
    "client_ca_file",
    "client_auth_type",
    "min_version",
    "max_version",
    "cipher_suites",
)
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# As the file names them (IANA) and as OpenSSL does. Those of TLS 1.3 cannot be chosen and are always on.
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_HEADERS: Mapping[str, Sequence[str]] = {  # and the values that are allowed, any where none is listed
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_BCRYPT = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}\Z")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")


@dataclass(frozen=True, slots=True)
class Policy:
    """One good reading of the file."""

    tls: ssl.SSLContext | None
    headers: tuple[tuple[str, str], ...]
    authenticator: Authenticator | None
    files: tuple[str, ...]  # what it was made from

    def refusal(self, request: Request) -> Response | None:
        return self.authenticator.refusal(request) if self.authenticator else None

    def with_headers(self, response: Response) -> Response:
        """The file's headers in place of the page's own."""
        if not self.headers:
            return response
        replaced = {name.lower() for name, _ in self.headers}
        own = tuple(header for header in response.headers if header[0].lower() not in replaced)
        return replace(response, headers=(*own, *self.headers))


class WebConfig:
    """The policy in force."""

    def __init__(self, path: str, policy: Policy) -> None:
        self._path = path
        self._policy = policy
        self._seen = _signature(policy.files)
        self._fault = ""
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str) -> WebConfig:
        """Raises ConfigError, one line that names file and key."""
        return cls(path, read_policy(path))

    def current(self) -> Policy:
        """Cheap: looks at the files at most once a second."""
        if time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
                self._look_at = time.monotonic() + _LOOK_SECONDS
            finally:
                self._lock.release()
        return self._policy

    def _look(self) -> None:
        seen = _signature(self._policy.files)
        if seen == self._seen and not self._fault:
            return
        try:
            policy = read_policy(self._path)
        except ConfigError as error:
            if self._fault != str(error):
                self._fault = str(error)
                log.error("the last good web configuration stays in force: %s", error)  # noqa: TRY400
            return
        self._seen = seen if policy.files == self._policy.files else _signature(policy.files)
        self._policy = policy
        self._fault = ""
        log.info("%s: web configuration read again", self._path)


def read_policy(path: str) -> Policy:
    try:
        document = yaml.load(read_text(path), yaml.BaseLoader)  # noqa: S506 -- makes strings, lists and dicts only
    except SourceError as error:
        raise ConfigError(f"web configuration {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    sections = _Section(path, "", document or {}, _SECTIONS)
    http = sections.below("http_server_config", ("http2", "headers"))
    if http.text("http2", "false").lower() not in ("false", "no", "off"):
        raise http.bad("http2", "only false: HTTP/1.1 is spoken here, which every scraper speaks too")
    tls = sections.below("tls_server_config", _TLS_KEYS)
    context, files = (None, ()) if tls.empty() else _context(tls)
    return Policy(context, _headers(http), _authenticator(sections), (path, *files))


class _Section:
    """One mapping of the file, which knows how to complain about itself."""

    def __init__(self, path: str, name: str, value: object, known: Sequence[str] | None) -> None:
        self.path = path
        self._name = name
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {name or 'the file'}: expected keys and values")
        self.values: dict[str, object] = value
        for key in value:
            if known is not None and key not in known:
                raise self.bad(key, f"not supported; supported are {', '.join(known)}")

    def bad(self, key: str, reason: str) -> ConfigError:
        shown = key if key.isprintable() else repr(key)
        return ConfigError(f"{self.path}: {self._name}{'.' if self._name else ''}{shown}: {reason}")

    def empty(self) -> bool:
        return not self.values

    def below(self, key: str, known: Sequence[str] | None) -> _Section:
        name = f"{self._name}.{key}" if self._name else key
        return _Section(self.path, name, self.values.get(key) or {}, known)

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, "expected one value")
        return value

    def choice(self, key: str, default: str, choices: Mapping[str, T], why: str = "") -> T:
        value = self.text(key, default)
        if value not in choices:
            raise self.bad(key, f"{value!r} is not supported{why}; supported are {', '.join(choices)}")
        return choices[value]

    def file(self, key: str, marker: str) -> str:
        """The path of a PEM file that can be read and holds what `marker` says; relative to the file."""
        path = os.path.join(os.path.dirname(self.path), self.text(key, ""))
        try:
            text = read_text(path)
        except SourceError as error:
            raise self.bad(key, str(error)) from error
        if f"{marker}-----" not in text:
            raise self.bad(key, f"{path}: no PEM {marker.lower()} in it")
        return path


def _context(tls: _Section) -> tuple[ssl.SSLContext, tuple[str, ...]]:
    for key in ("cert_file", "key_file"):
        if not tls.text(key, ""):
            raise tls.bad(key, "missing; TLS needs cert_file and key_file")
    certificate, key = tls.file("cert_file", "CERTIFICATE"), tls.file("key_file", "PRIVATE KEY")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = tls.choice("min_version", "TLS12", _VERSIONS)
    context.maximum_version = tls.choice("max_version", "TLS13", _VERSIONS)
    if context.minimum_version > context.maximum_version:
        raise tls.bad("min_version", "above max_version")

    def encrypted() -> NoReturn:
        raise tls.bad("key_file", f"{key}: encrypted; nobody is there to type a pass phrase")

    try:
        context.load_cert_chain(certificate, key, encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise tls.bad("key_file", f"{key} is not the key of {certificate}") from error
        raise tls.bad("cert_file", f"{certificate} with {key}: {error.reason or error}") from error
    _choose_ciphers(tls, context)
    return context, (certificate, key, *_client_certificates(tls, context))


def _choose_ciphers(tls: _Section, context: ssl.SSLContext) -> None:
    names = tls.values.get("cipher_suites") or []
    if not isinstance(names, list):
        raise tls.bad("cipher_suites", "expected a list")
    for name in names:
        if name not in _CIPHERS:
            raise tls.bad("cipher_suites", f"{name!r} is not supported; supported are {', '.join(_CIPHERS)}")
    if names:
        context.set_ciphers(":".join(_CIPHERS[name] for name in names))


def _client_certificates(tls: _Section, context: ssl.SSLContext) -> tuple[str, ...]:
    why = " (a certificate that is asked for is also verified here)"
    verify = tls.choice("client_auth_type", "NoClientCert", _CLIENT_AUTH, why)
    if not tls.text("client_ca_file", ""):
        if verify != ssl.CERT_NONE:
            raise tls.bad("client_ca_file", "missing; client certificates are verified against it")
        return ()
    if verify == ssl.CERT_NONE:
        raise tls.bad("client_auth_type", "missing, though client_ca_file is given; set RequireAndVerifyClientCert")
    authorities = tls.file("client_ca_file", "CERTIFICATE")
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise tls.bad("client_ca_file", f"{authorities}: {error.reason or error}") from error
    context.verify_mode = verify
    return (authorities,)


def _headers(http: _Section) -> tuple[tuple[str, str], ...]:
    section = http.below("headers", tuple(_HEADERS))
    headers = tuple((name, section.text(name, "")) for name in section.values)
    for name, value in headers:
        allowed = _HEADERS[name]
        if value and allowed and value.lower() not in allowed:
            raise section.bad(name, f"{value!r}: expected {' or '.join(allowed)}")
        if value and not _HEADER_VALUE.match(value):
            raise section.bad(name, "expected one line of printable ASCII")
    return tuple((name, value) for name, value in headers if value)


def _authenticator(sections: _Section) -> Authenticator | None:
    section = sections.below("basic_auth_users", None)
    users = {user: section.text(user, "") for user in section.values}
    for user, hashed in users.items():
        if not _BCRYPT.match(hashed):
            raise section.bad(user, "not a bcrypt hash; make one with: htpasswd -nBC 10 USER")
        if not user or ":" in user:
            raise section.bad(repr(user), "not a user name")
    return Authenticator(users) if users else None


def _signature(files: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Changes when a file is written, replaced or removed."""
    signature: list[tuple[int, ...]] = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError as error:
            signature.append((error.errno or 0,))
        else:
            signature.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(signature)
