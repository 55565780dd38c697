"""Scrapes under attack: clients that idle, stall, drip, flood and break off cost no scraper its answer in time.

Loopback only, a few seconds, everything ends with the test.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.web import certificate, get

pytestmark = pytest.mark.alone

SECONDS = 4.0
ROUND = 0.5  # an attack begins anew at most so often: they are to hold places, not to fill the processor
LATEST = 1.0  # 60 to 180 ms on a quiet machine; a scrape that waits for a stalled client waits for 10 s
EXTRA_MIB = 8.0
TESTS = Path(__file__).parents[1]


def pss_mib(pid):
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("\nPss:")[1].split()[0]) / 1024


class Attackers:
    """Threads that misbehave towards one port until stopped."""

    def __init__(self, port):
        self.port = port
        self.stopping = threading.Event()
        self.rounds = {}
        self.threads = []

    def start(self, *attacks):
        for attack in attacks:
            self.rounds[attack.__name__] = 0
            thread = threading.Thread(target=self.repeat, args=(attack,))
            self.threads.append(thread)
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, attack):
        while not self.stopping.is_set():
            started = time.monotonic()
            with contextlib.suppress(OSError), contextlib.ExitStack() as connections:
                attack(lambda: connections.enter_context(self.connect()))
            self.rounds[attack.__name__] += 1
            self.stopping.wait(started + ROUND - time.monotonic())

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=2)

    def hold(self, connections, seconds):
        """Keep them open, and no longer once the server has hung up on all."""
        until = time.monotonic() + seconds
        open_ones = {connection.fileno(): connection for connection in connections}
        poll = select.poll()
        for descriptor in open_ones:
            poll.register(descriptor, select.POLLRDHUP)
        while open_ones and time.monotonic() < until and not self.stopping.is_set():
            for descriptor, _ in poll.poll(50):
                poll.unregister(descriptor)
                del open_ones[descriptor]

    def idle(self, connect):
        self.hold([connect() for _ in range(200)], 1.0)

    def stalled_readers(self, connect):
        readers = [connect() for _ in range(12)]
        for reader in readers:
            with contextlib.suppress(OSError):
                reader.sendall(get("/metrics"))
        self.hold(readers, 1.0)

    def half_handshakes(self, connect):
        beginning = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(32)
        clients = [connect() for _ in range(50)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(beginning)
        self.hold(clients, 1.0)

    def long_headers(self, connect):
        client = connect()
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(160):
            client.sendall(b"a" * 65536)
        self.hold([client], 0.1)

    def drips(self, connect):
        clients = [connect() for _ in range(20)]
        for byte in get("/metrics"):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(bytes((byte,)))
            if self.stopping.wait(0.05):
                return


class Scraper:
    """Scrapes as Prometheus does: a reused connection that the server has closed is replaced at once."""

    def __init__(self, address, context, *, keep_alive):
        self.address, self.context, self.keep_alive = address, context, keep_alive
        self.connection = None
        self.seconds = []

    def scrape(self):
        started = time.monotonic()
        try:
            body = self.ask()
        except (http.client.HTTPException, OSError):
            if self.connection is None:
                raise
            self.close()
            body = self.ask()
        self.seconds.append(time.monotonic() - started)
        assert body[:2] == b"\x1f\x8b"
        if not self.keep_alive:
            self.close()

    def ask(self):
        reused = self.connection
        connection = reused or self.connect()
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        body = connection.getresponse().read()
        self.connection = connection
        return body

    def connect(self):
        if self.context:
            return http.client.HTTPSConnection(self.address, timeout=5, context=self.context)
        return http.client.HTTPConnection(self.address, timeout=5)

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


@pytest.fixture
def running(tmp_path, request):
    """Address and process of a server, with TLS or without, and the context that trusts it."""
    web_config, context = "", None
    if request.param == "tls":
        trusted, _ = certificate(tmp_path, "server")
        web_config = tmp_path / "web.yml"
        web_config.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
        context = ssl.create_default_context(cafile=str(trusted))
        context.check_hostname = True
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent / 'exporter'}:{TESTS}"}
    command = [sys.executable, "-m", "support.web_main", str(web_config)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process.stdout.readline().strip(), process, context
        finally:
            process.stdin.close()
            print(process.stdout.readline().strip())
            process.wait(5)


@pytest.mark.parametrize("running", ["plain", "tls"], indirect=True)
def test_no_client_delays_a_scrape_or_fills_the_memory(running):
    address, process, context = running
    scrapers = [Scraper(address, context, keep_alive=True), Scraper(address, context, keep_alive=False)]
    attackers = Attackers(int(address.rpartition(":")[2]))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(0.0002)  # the attackers' threads here are not to delay the scrapers' here
        for scraper in scrapers:
            cleanup.callback(scraper.close)
        for _ in range(20):
            for scraper in scrapers:
                scraper.scrape()
        calm = sorted(scrapers[0].seconds + scrapers[1].seconds)
        for scraper in scrapers:
            scraper.seconds.clear()
        base = most = pss_mib(process.pid)
        cleanup.callback(attackers.stop)
        attackers.start(
            attackers.idle,
            attackers.stalled_readers,
            attackers.half_handshakes,
            attackers.long_headers,
            attackers.drips,
        )
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for scraper in scrapers:
                scraper.scrape()
            most = max(most, pss_mib(process.pid))
            time.sleep(0.02)
    for scraper, name in zip(scrapers, ("keep-alive", "new connection"), strict=True):
        seconds = sorted(scraper.seconds)
        print(
            f"{name}: {len(seconds)} scrapes, p50 {seconds[len(seconds) // 2] * 1e3:.1f} ms, slowest "
            f"{seconds[-1] * 1e3:.1f} ms; calm p50 {calm[len(calm) // 2] * 1e3:.1f} ms"
        )
    print(f"memory {base:.1f} -> {most:.1f} MiB PSS; rounds of attack {attackers.rounds}")
    assert all(attackers.rounds.values()), "an attack that never ran proves nothing"
    for scraper in scrapers:
        assert sorted(scraper.seconds)[int(0.99 * len(scraper.seconds)) - 1] < LATEST
    assert most - base < EXTRA_MIB
