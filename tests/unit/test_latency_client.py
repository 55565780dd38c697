"""The exporter's side of the prober: sockets that reach the neighbours only, and no trust in what the prober tells."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Malformed, Transient
from gpuhost_exporter.latency.settings import LatencySettings
from gpuhost_exporter.sources.latency.client import open_sockets, parse
from gpuhost_exporter.sources.latency.results import Rejections, Results, Round, Skipped

ROUND = {"peer": "b", "seconds": [1e-4, 2e-4], "sent": 8, "lost": 1}


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (ROUND, Round("b", "tcp", (1e-4, 2e-4), 8, 1, 5.0)),
        ({"peer": "b", "transport": "rdma", "skipped": "peer_refused"}, Skipped("b", "rdma", "peer_refused")),
        ({"peer": "b", "rejected": "forged", "count": 3}, Rejections("b", "forged", 3)),
    ],
    ids=["round", "skipped", "rejected"],
)
def test_what_the_prober_tells_arrives(message, found):
    assert parse(message, 5.0) == found


@pytest.mark.parametrize(
    "message",
    [
        {"peer": "b"},
        {**ROUND, "lost": 9},
        {**ROUND, "lost": -1},
        {**ROUND, "sent": 10**9},
        {**ROUND, "sent": 1},
        {**ROUND, "seconds": [float("nan")]},
        {**ROUND, "seconds": [-1.0]},
        {**ROUND, "seconds": [1e9]},
        {**ROUND, "seconds": ["1"]},
        {"peer": "b", "transport": "tcp", "skipped": "made up"},
        {"peer": "b", "transport": "made up", "skipped": "failed"},
        {"peer": "b", "rejected": "made up", "count": 1},
        {"peer": "b", "rejected": "forged", "count": 0},
    ],
    ids=str,
)
def test_what_a_prober_out_of_its_mind_tells_becomes_no_series(message):
    with pytest.raises(Malformed):
        parse(message, 5.0)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats() | st.integers())
names = st.sampled_from(["seconds", "sent", "lost", "transport", "skipped", "rejected", "count"])


@given(st.dictionaries(names, scalars))
def test_no_message_raises_anything_but_malformed(message):
    with contextlib.suppress(Malformed):
        parse(message, 5.0)


def test_what_nobody_takes_does_not_pile_up():
    results = Results()
    for number in range(5000):
        results.put(Rejections("b", "forged", number))
    taken = results.take()
    assert len(taken) == 1000
    assert taken[-1].count == 4999
    assert results.take() == ()


@pytest.fixture
def ports():
    """Numbers of ports that were free a moment ago."""
    found = []
    for _ in range(4):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            found.append(sock.getsockname()[1])
    return found


def settings_of(own, *others):
    hosts = {"own": ("127.0.0.1", own), **{f"h{place}": ("127.0.0.1", port) for place, port in enumerate(others)}}
    pairs = tuple(("own", name) for name in hosts if name != "own")
    return LatencySettings("own", hosts["own"], "key", hosts, pairs)


def test_each_socket_hears_its_neighbour_and_no_stranger(ports):
    own, first, second, stranger = ports
    sockets = open_sockets(settings_of(own, first, second))
    outside = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    try:
        for sock, port in zip(outside, (first, second, stranger), strict=True):
            sock.bind(("127.0.0.1", port))
            sock.sendto(str(port).encode(), ("127.0.0.1", own))
        for sock, port in zip(sockets, (first, second), strict=True):
            sock.settimeout(5)
            assert sock.recv(100) == str(port).encode()
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            assert sock.send(b"x") == 1
        assert [sock.recv(9) for sock in outside[:2]] == [b"x", b"x"]
        outside[2].setblocking(False)
        with pytest.raises(BlockingIOError):
            outside[2].recv(9)
    finally:
        for sock in (*sockets, *outside):
            sock.close()


def test_a_port_that_another_exporter_has_is_an_error_not_shared_unnoticed(ports):
    settings = settings_of(ports[0], ports[1])
    sockets = open_sockets(settings)
    with pytest.raises(Transient, match=rf"127\.0\.0\.1 port {ports[0]}: Address already in use"):
        open_sockets(settings)
    for sock in sockets:
        sock.close()
    for sock in open_sockets(settings):
        sock.close()
