"""Listen addresses: what is accepted, and one clear line for what is not."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.web.listen import bound_address, listen, parse_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:19400", ("127.0.0.1", 19400)),
        (":19400", ("", 19400)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("gpu-host.example:65535", ("gpu-host.example", 65535)),
    ],
)
def test_an_address_is_host_and_port(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", "19400", "127.0.0.1", "127.0.0.1:", "::1:19400", "[::1]", "host:65536", "host:-1", "a b:1"]
)
def test_what_is_no_address_is_named_in_one_line(address):
    with pytest.raises(ConfigError) as caught:
        parse_address(address)
    assert repr(address) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_a_configuration_error(text):
    with contextlib.suppress(ConfigError):
        host, port = parse_address(text)
        assert 0 <= port <= 65535
        assert "\n" not in host


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_port_zero_takes_a_free_one_and_tells_it(address):
    with listen(address) as listener:
        port = int(bound_address(listener).rpartition(":")[2])
        assert port > 0
        assert bound_address(listener).startswith("[::1]:" if "::1" in address else "127.0.0.1:")


def test_without_a_host_both_families_are_served():
    with listen(":0") as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("no-such-host.invalid:1", "cannot listen"),
        ("a" * 300 + ":1", "cannot listen"),
        ("\udce4:1", "not a host name"),
    ],
    ids=["not ours", "unknown name", "too long", "no name"],
)
def test_an_address_that_cannot_be_taken_is_a_configuration_error(address, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        listen(address)
    assert address in str(caught.value)


def test_a_port_in_use_is_a_configuration_error():
    with listen("127.0.0.1:0") as first, pytest.raises(ConfigError, match="Address already in use"):
        listen(bound_address(first))
