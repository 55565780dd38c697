"""The server over real sockets: HTTP as clients speak it, and what those get who do not."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time

import pytest
from support.web import answer, ask, connect, get, hello, port, rest, serving, wait_for

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.web.connection import Limits
from gpuhost_exporter.web.message import Response, text
from gpuhost_exporter.web.server import Server

BIG = Response(200, (), bytes(8 << 20))  # more than the kernel buffers for a client that does not read


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def clients():
    """Keeps connections open until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda server, source="127.0.0.1": stack.enter_context(connect(server, source))


def test_a_get_is_answered_with_length_and_date(server):
    status, headers, body = ask(server, get("/metrics?a=b"))
    assert (status, body) == (200, b"GET /metrics a=b\n")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Date"].endswith(" GMT")
    assert "Server" not in headers


def test_head_tells_the_length_and_sends_no_body(server, clients):
    client = clients(server)
    client.sendall(get("/x").replace(b"GET", b"HEAD"))
    status, headers, body = answer(client, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "9", b"")
    client.sendall(get("/next"))
    assert answer(client)[2] == b"GET /next \n"


def test_a_connection_is_reused(server, clients):
    client = clients(server)
    for path in ("/1", "/2", "/3"):
        client.sendall(get(path))
        assert answer(client)[2] == f"GET {path} \n".encode()
    assert server.counts().accepted == 1
    assert server.counts().requests == {200: 3}


def test_pipelined_requests_are_answered_in_order(server, clients):
    client = clients(server)
    client.sendall(get("/1") + get("/2") + get("/3", "Connection: close"))
    assert [line for line in rest(client).split(b"\n") if line.startswith(b"GET")] == [
        b"GET /1 ",
        b"GET /2 ",
        b"GET /3 ",
    ]


def test_http_1_0_is_answered_and_closed(server, clients):
    client = clients(server)
    client.sendall(b"GET /old HTTP/1.0\r\n\r\n")
    assert rest(client).endswith(b"\r\n\r\nGET /old \n")


def test_a_client_that_stops_sending_after_its_request_is_answered(server, clients):
    client = clients(server)
    client.sendall(get("/half"))
    client.shutdown(socket.SHUT_WR)
    assert rest(client).endswith(b"GET /half \n")


def test_a_proxy_s_form_of_target_is_the_same_path(server):
    assert ask(server, get("http://test:19400/metrics?x"))[2] == b"GET /metrics x\n"
    assert ask(server, get("http://test"))[2] == b"GET / \n"


def test_repeated_headers_are_joined():
    with serving(lambda request: text(200, request.headers["accept"])) as server:
        assert ask(server, get("/", "Accept: a", "ACCEPT: b"))[2] == b"a, b\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 5_000 + b"\r\n", 431),
    ],
    ids=["garbage", "no host", "bad header", "tls", "http2", "post", "delete", "length", "long path", "headers"],
)
def test_a_bad_request_is_refused_and_hung_up_on(server, clients, data, status):
    client = clients(server)
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    received = rest(client)
    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert received.count(b"HTTP/1.1 ") == 1
    assert ask(server, get())[0] == 200
    assert server.counts().requests == {status: 1, 200: 1}


def test_405_says_what_is_allowed(server):
    assert ask(server, get().replace(b"GET", b"PUT"))[1]["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "framing",
    [
        (f"Content-Length: {len(get('/smuggled'))}", get("/smuggled")),
        ("Transfer-Encoding: chunked", b"5\r\nGET /\r\n0\r\n\r\n" + get("/smuggled")),
    ],
    ids=["length", "chunked"],
)
def test_a_body_is_never_taken_for_a_request(server, clients, framing):
    header, body = framing
    client = clients(server)
    client.sendall(get("/first", header) + body)
    client.shutdown(socket.SHUT_WR)
    received = rest(client)
    assert received.endswith(b"GET /first \n")
    assert b"Connection: close" in received
    assert b"smuggled" not in received


def test_a_client_that_sends_ten_megabytes_of_header_reads_its_431(server, clients):
    client = clients(server)
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    for _ in range(160):
        client.sendall(b"a" * 65536)
    assert answer(client)[0] == 431


def test_a_failing_handler_costs_one_answer_and_one_log_line_per_change(caplog):
    def failing(request):
        if request.path == "/good":
            return hello(request)
        raise RuntimeError(f"secret of {request.path}")

    with serving(failing) as server, caplog.at_level(logging.ERROR):
        answers = [ask(server, get(path)) for path in ("/a", "/a", "/good", "/a", "/b")]
    assert [status for status, _, _ in answers] == [500, 500, 200, 500, 500]
    assert not any(b"secret" in body for _, _, body in answers)
    assert [record.getMessage() for record in caplog.records] == [
        "web: /a: RuntimeError: secret of /a",
        "web: /b: RuntimeError: secret of /b",
    ]


def test_clients_that_say_nothing_cost_no_thread_and_give_way_beyond_their_own_cap(clients):
    with serving(limits=Limits(newcomers=4)) as server:
        before = threading.active_count()
        silent = [clients(server) for _ in range(12)]
        assert wait_for(lambda: server.counts().evicted == 8)
        assert threading.active_count() == before
        assert rest(silent[0]) == b""  # the one that had waited longest
        assert ask(server, get())[0] == 200
        assert server.counts().evicted == 9


def test_clients_that_do_not_finish_give_way_at_the_cap(clients):
    with serving(limits=Limits(connections=4)) as server:
        unfinished = [clients(server) for _ in range(12)]
        for client in unfinished:
            client.sendall(b"GET / HT")
        assert ask(server, get())[0] == 200
        assert server.counts().evicted == 9
        assert rest(unfinished[0]) == b""  # the one that had waited longest


def test_a_request_being_answered_is_never_evicted(clients):
    entered, leave = threading.Event(), threading.Event()

    def slow(request):
        if request.path == "/slow":
            entered.set()
            leave.wait(5)
        return hello(request)

    with serving(slow, limits=Limits(connections=3)) as server:
        client = clients(server)
        client.sendall(get("/slow"))
        assert entered.wait(5)
        for _ in range(8):
            clients(server).sendall(b"GET / HT")
        assert ask(server, get("/fast"))[0] == 200
        assert server.counts().evicted > 0
        leave.set()
        assert answer(client)[2] == b"GET /slow \n"


def test_a_flood_from_one_address_leaves_another_address_s_connection_alone(clients):
    with serving(limits=Limits(connections=6)) as server:
        scraper = clients(server, "127.0.0.2")
        scraper.sendall(get())
        assert answer(scraper)[0] == 200
        for _ in range(20):
            clients(server).sendall(b"GET / HT")
        assert wait_for(lambda: server.counts().evicted == 15)
        scraper.sendall(get("/again"))
        assert answer(scraper)[2] == b"GET /again \n"


def test_clients_that_do_not_read_give_way_at_the_cap(clients):
    with serving(lambda _: BIG, limits=Limits(connections=3)) as server:
        for _ in range(3):
            clients(server).sendall(get())
        assert wait_for(lambda: server.counts().requests.get(200) == 3)
        assert len(ask(server, get())[2]) == len(BIG.body)
        assert server.counts().evicted == 1


def test_answers_that_nobody_reads_are_bounded_together(clients):
    with serving(lambda _: BIG, limits=Limits(answers=2)) as server:
        for _ in range(5):
            clients(server).sendall(get())
        assert wait_for(lambda: server.counts().requests.get(200) == 5)
        assert server.counts().evicted == 3
        assert wait_for(lambda: server.counts().open == 2)


def test_a_head_that_comes_drop_by_drop_is_ended_in_time(clients):
    with serving(limits=Limits(head_seconds=0.4)) as server:
        client = clients(server)
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in get("/" + "a" * 1000):
                client.sendall(bytes((byte,)))
                time.sleep(0.02)
        assert 0.35 < time.monotonic() - started < 1.0
        assert wait_for(lambda: server.counts().timed_out == 1)
        assert server.counts().requests == {}


def test_the_head_s_time_starts_anew_with_each_request(clients):
    with serving(limits=Limits(head_seconds=0.4, idle_seconds=5)) as server:
        client = clients(server)
        client.sendall(get())
        assert answer(client)[0] == 200
        time.sleep(0.6)  # idle for longer than a head may take
        client.sendall(get())
        assert answer(client)[0] == 200
        client.sendall(b"GET / HT")
        assert rest(client) == b""
        assert wait_for(lambda: server.counts().timed_out == 1)


def test_an_idle_connection_is_ended_without_counting_as_too_slow(clients):
    with serving(limits=Limits(head_seconds=1, idle_seconds=0.3)) as server:
        client = clients(server)
        client.sendall(get())
        assert answer(client)[0] == 200
        assert rest(client) == b""
        assert server.counts().timed_out == 0


def test_a_client_that_does_not_read_is_ended_in_time(clients):
    with serving(lambda _: BIG, limits=Limits(write_seconds=0.4)) as server:
        client = clients(server)
        client.sendall(get())
        assert wait_for(lambda: server.counts().timed_out == 1)
        assert wait_for(lambda: server.counts().open == 0)
        assert len(rest(client)) < len(BIG.body)


def test_close_is_prompt_whatever_clients_do(clients):
    entered, leave = threading.Event(), threading.Event()

    def handler(request):
        if request.path == "/stuck":
            entered.set()
            leave.wait(10)
        return BIG

    with serving(handler) as server:
        idle, half, stalled, stuck = (clients(server) for _ in range(4))
        half.sendall(b"GET / HT")
        stalled.sendall(get())
        stuck.sendall(get("/stuck"))
        assert entered.wait(5)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    leave.set()
    assert [rest(client) for client in (idle, half, stuck)] == [b"", b"", b""]
    assert len(rest(stalled)) < len(BIG.body)
    assert server.addresses == ()


def test_an_answer_under_way_is_finished_on_close(clients):
    def slow(request):
        time.sleep(0.2)
        return hello(request)

    with serving(slow) as server:
        client = clients(server)
        client.sendall(get())
        assert wait_for(lambda: server.counts().open == 1)
        time.sleep(0.05)
    assert answer(client)[0] == 200


def test_threads_of_others_keep_their_stack_size(server):
    before = threading.stack_size()
    assert ask(server, get())[0] == 200
    assert wait_for(lambda: threading.stack_size() == before)


def test_a_port_in_use_leaves_nothing_open(server):
    second = Server(["127.0.0.1:0", f"127.0.0.1:{port(server)}"], hello)
    with pytest.raises(ConfigError, match="already in use"):
        second.start()
    assert second.addresses == ()
