"""`health`: the running exporter's verdict as an exit code, 0 fit, 1 unfit, 2 not known, with its one reason.

    $ gpuhost-exporter health
    fit: All 8 GPUs deliver

Schedulers wait for it before each job, so it imports nothing of the exporter, and of the library no more than it needs.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gpuhost_exporter.arguments import Parser, positive_seconds, text
from gpuhost_exporter.errors import ConfigError

if TYPE_CHECKING:
    import ssl

CODES = {"fit": 0, "unfit": 1, "unknown": 2}
DOES = "The running exporter's verdict: 0 fit, 1 unfit, 2 not known, and one reason."
DEFAULT_URL = "http://127.0.0.1:19400"

_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/@\[\]]+))(?::(?P<port>\d{1,5}))?/?\Z"
)
_ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")
_WORDS = re.compile(r"(fit|unfit|unknown): (.+)\Z")
_MOST_BYTES = 65536


class Exporter(NamedTuple):
    """Where it listens, and what it asks of a client. `user` is NAME:PASSWORD."""

    secure: bool
    host: str
    port: int
    user: str = ""
    authorities: str | None = None
    certificate: str | None = None
    key: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"the exporter's address: http[s]://HOST[:PORT] (default {DEFAULT_URL})"
    )
    parser.add_argument(
        "--timeout", default="1s", metavar="DURATION", help="how long to wait for a hung exporter (default 1s)"
    )
    parser.add_argument(
        "--user-file", type=text, metavar="FILE", help="NAME:PASSWORD for basic auth, in its first line"
    )
    parser.add_argument("--ca-file", type=text, metavar="FILE", help="who signed the exporter's certificate")
    parser.add_argument("--cert-file", type=text, metavar="FILE", help="client certificate")
    parser.add_argument("--key-file", type=text, metavar="FILE", help="its key")


def main(arguments: Sequence[str]) -> int:
    formatter = partial(argparse.HelpFormatter, width=100)  # the default asks shutil, which loads every compressor
    parser = Parser(prog="gpuhost-exporter health", description=DOES, formatter_class=formatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except ConfigError as error:
        print(f"gpuhost-exporter: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # help has been printed
        return 0


def run(options: argparse.Namespace) -> int:
    word, reason = ask(exporter(options), positive_seconds(options.timeout))
    try:
        print(f"{word}: {reason}", flush=True)
    except OSError:  # nobody reads it, or its disk is full: the exit code is the answer
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter fails at its end, on what is buffered
    return CODES[word]


def exporter(options: argparse.Namespace) -> Exporter:
    """Raises ConfigError."""
    match = _URL.match(options.url)
    if not match or int(match["port"] or 0) > 65535:
        raise ConfigError(f"--url {options.url!r}: expected http[s]://HOST[:PORT]")
    secure = match["scheme"] == "https"
    port = int(match["port"] or (443 if secure else 80))
    user = _first_line(options.user_file) if options.user_file else ""
    if options.user_file and ":" not in user:
        raise ConfigError(f"--user-file {options.user_file}: expected NAME:PASSWORD")
    host = match["six"] or match["host"]
    return Exporter(secure, host, port, user, options.ca_file, options.cert_file, options.key_file)


def ask(exporter: Exporter, seconds: float) -> tuple[str, str]:
    """Word and reason; "unknown" whatever stands in the way of a plain answer. Raises ConfigError."""
    until = time.monotonic() + seconds
    context = _context(exporter) if exporter.secure else None
    try:
        with _connect(exporter, until) as plain:
            stream = context.wrap_socket(plain, server_hostname=exporter.host) if context else plain
            with stream:
                stream.sendall(_request(exporter))
                status, body = _answer(stream, until)
    except TimeoutError:
        return "unknown", f"the exporter gave no answer within {seconds:g} s"
    except (OSError, UnicodeError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else "not a host name"
        return "unknown", f"no exporter at {exporter.host}:{exporter.port}: {reason}"
    except ValueError:
        return "unknown", f"what listens at {exporter.host}:{exporter.port} is no exporter"
    said = _WORDS.match(body.strip())
    if said and (status == 200) == (said[1] == "fit"):
        return said[1], " ".join(said[2].split())
    refused = {401: "it asks for a user: --user-file", 404: "it is older than this command: no /verdict"}
    return "unknown", f"the exporter gave no verdict, but {refused.get(status, f'HTTP status {status}')}"


def _connect(exporter: Exporter, until: float) -> socket.socket:
    # As bytes: a text would load the tables for international names.
    name = exporter.host.encode("ascii" if exporter.host.isascii() else "idna")
    found = socket.getaddrinfo(name, exporter.port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(found, 1):
        stream = socket.socket(family, kind, protocol)
        try:
            stream.settimeout(max(0.001, until - time.monotonic()))
            stream.connect(address)
        except OSError:
            stream.close()
            if place == len(found):
                raise
        else:
            return stream
    raise OSError("no address")


def _request(exporter: Exporter) -> bytes:
    lines = ["GET /verdict HTTP/1.1", f"Host: {exporter.host}", "Connection: close"]
    if exporter.user:
        from binascii import b2a_base64

        lines.append(f"Authorization: Basic {b2a_base64(exporter.user.encode(), newline=False).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(stream: socket.socket, until: float) -> tuple[int, str]:
    """Status and body. Raises OSError, and ValueError where it is no HTTP."""
    block = b""
    while len(block) < _MOST_BYTES:
        stream.settimeout(max(0.001, until - time.monotonic()))  # a peer that drips is as late as one that is silent
        part = stream.recv(_MOST_BYTES)
        if not part:
            break
        block += part
    head, _, body = block.partition(b"\r\n\r\n")
    match = _ANSWER.match(head + b"\r\n")
    if not match:
        raise ValueError("no HTTP")
    return int(match[1]), body.decode("utf-8", "replace")


def _context(exporter: Exporter) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=exporter.authorities)
        if exporter.certificate:
            context.load_cert_chain(exporter.certificate, exporter.key, "")
    except OSError as error:
        named = exporter.certificate or exporter.authorities
        raise ConfigError(f"{named}: {error.strerror or error}") from error
    return context


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
