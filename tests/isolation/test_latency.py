"""Real probers on real sockets: through a relay, against hosts that misbehave, and with perftest's part played."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.daemon import Daemon, value
from support.daemon import select as chosen
from support.perftest import output
from support.relay import Relay

from gpuhost_exporter.averages import median
from gpuhost_exporter.sources.latency import keys, reader
from gpuhost_exporter.sources.latency.message import SIZE, Keyring, Kind, Message
from gpuhost_exporter.sources.latency.plan import WARM_UP, Plan
from gpuhost_exporter.sources.latency.reader import Reader
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_request

KEY = f"k1 {secrets.token_hex(32)}\n"
QUIET = ("--no-collector.nvme", "--no-collector.storage", "--no-collector.block")
HELLO = Message(Kind.HELLO, 1, b"n" * 16)
FABRIC = "gpuhost_fabric_"


def free_ports(count):
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    found = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return found


class Side:
    """A prober in a thread of this process, with sockets of its own."""

    def __init__(self, folder, name, port, peers, key=KEY, **plan):
        self.key = folder / f"{name}.key"
        if key:
            self.key.write_text(key)
            self.key.chmod(0o600)
        plan = {"targets": (), "interval": 3600.0, "messages": 40, **plan}
        plan = Plan(name, neighbours=tuple(peers), **plan)
        self.sockets = {}
        for peer, address in peers.items():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", port))
            sock.connect(("127.0.0.1", address))
            self.sockets[peer] = sock
        ours, theirs = pair()
        self.pipe, self._theirs = Pipe(ours), theirs
        self.reader = Reader(Pipe(theirs), self.sockets, plan, str(self.key))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with contextlib.suppress(Exception):  # ends when the pipe does
            self.reader.run()

    def round(self, seconds=30.0):
        """The next round's message."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.pipe.holds() or select.select([self.pipe], [], [], 1.0)[0]:
                message = recv_request(self.pipe)
                if "seconds" in message:
                    return message
        raise AssertionError("no round in time")

    def close(self):
        self.pipe.close()
        self._thread.join(5)
        for sock in (*self.sockets.values(), self._theirs):
            sock.close()


@pytest.fixture
def relayed(tmp_path, monkeypatch):
    """`relayed(**plan)`: host a that probes host b through a relay."""
    made = []

    def start(interval=3600.0, **plan):
        left, right = free_ports(2)
        relay = Relay(left, right)
        made.append(relay.__exit__)
        b = Side(tmp_path, "b", right, {"a": relay.ports["right"]}, interval=interval, messages=plan["messages"])
        a = Side(tmp_path, "a", left, {"b": relay.ports["left"]}, interval=interval, targets=("b",), **plan)
        made.extend([lambda *_: a.close(), lambda *_: b.close()])
        return a, b, relay

    yield start
    for close in reversed(made):
        close()


@pytest.fixture
def undisturbed():
    """Threads that are started from now on run before what else the machine does, where root may say so."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@dataclass
class Medians:
    told: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)


@pytest.mark.alone
def test_a_millisecond_in_the_relay_is_a_millisecond_in_the_median_within_five_percent(undisturbed, relayed):
    """Rounds with and without it in turn, held against what the relay itself saw: it may oversleep.

    Both wait in the relay: within half a millisecond a processor goes to sleep, and waking it is no part of the 1 ms.
    """
    a, _, relay = relayed(interval=0.7, messages=100, gap=0.002)
    without, delayed = Medians(), Medians()
    for turn in range(16):
        relay.delay, medians = ((0.0005, without), (0.001, delayed))[turn % 2]
        a.round()  # it may have begun before
        relay.held.clear()
        medians.told.append(median(a.round()["seconds"]))
        medians.held.append(2 * median(relay.held))
    told = median(delayed.told) - median(without.told)
    added = median(delayed.held) - median(without.held)
    print(f"medians {median(without.told) * 1e6:.0f} and {median(delayed.told) * 1e6:.0f} us, by {added * 1e6:.0f} us")
    assert added == pytest.approx(1e-3, rel=0.2)
    assert told == pytest.approx(added, abs=0.05e-3)


@pytest.mark.alone
def test_one_percent_lost_in_the_relay_is_one_percent_told(undisturbed, relayed):
    a, _, relay = relayed(messages=2500, gap=0.0, patience=0.2)
    relay.drop = lambda count: secrets.randbelow(100) == 0
    told = a.round(60)
    print(f"{relay.dropped} of {told['sent']} messages dropped, {told['lost']} told as lost")
    assert told["sent"] >= 2500 + WARM_UP
    # A message that a busy machine holds up for 200 ms is lost too, and has to be rare.
    assert relay.dropped <= told["lost"] <= relay.dropped + 3
    deviation = (0.01 * 0.99 / told["sent"]) ** 0.5
    assert told["lost"] / told["sent"] == pytest.approx(0.01, abs=4 * deviation + 3 / told["sent"])


@pytest.mark.parametrize("hinder", [{"silent": True}, {"delay": 0.15}], ids=["down", "slow"])
def test_a_peer_that_does_not_answer_in_time_is_loss_and_no_latency(relayed, hinder):
    a, _, relay = relayed(messages=40, patience=0.2)
    for name, state in hinder.items():
        setattr(relay, name, state)
    told = a.round()
    assert (told["seconds"], told["sent"], told["lost"]) == ([], 3, 3)


def test_garbage_and_replays_on_the_wire_change_no_figure_and_get_no_answer(relayed):
    a, _, relay = relayed(interval=3.0, messages=40)
    first = a.round()
    recorded, passed = list(relay.recorded), dict(relay.passed)
    assert first["lost"] == 0
    for to, datagram in recorded:
        relay.send(to, datagram)
        relay.send(to, secrets.token_bytes(len(datagram)))
    time.sleep(0.5)
    answers = relay.passed["left"] - passed["left"]
    assert answers <= 1, "a greeting to the replayed greeting, as long as that, and nothing else"
    second = a.round()
    assert (len(second["seconds"]), second["lost"]) == (40, 0)


@pytest.mark.parametrize("key", [None, "k1 " + "00" * 32], ids=["none", "another"])
def test_a_peer_without_the_key_gets_no_answer(tmp_path, key):
    left, right = free_ports(2)
    b = Side(tmp_path, "b", right, {"a": left})
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.bind(("127.0.0.1", left))
    stranger.connect(("127.0.0.1", right))
    try:
        ring = keys.parse(key, "key") if key else Keyring("k1", {"k1": b""})
        stranger.settimeout(0.5)
        stranger.send(ring.seal(HELLO, "a", "b"))
        with pytest.raises(TimeoutError):
            stranger.recv(100)
        ring = keys.parse(KEY, "key")
        stranger.send(ring.seal(HELLO, "a", "b"))
        assert ring.open(stranger.recv(100), "b", "a").kind is Kind.WELCOME
    finally:
        stranger.close()
        b.close()


def test_a_host_without_its_key_says_so_and_begins_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_KEYS_SECONDS", 0.1)
    left, right = free_ports(2)
    a = Side(tmp_path, "a", left, {"b": right}, key=None, targets=("b",), patience=0.1)
    try:
        told = recv_request(a.pipe)
        assert told == {"state": "absent", "message": f"{a.key}: No such file or directory"}
        a.key.write_text(KEY)
        assert recv_request(a.pipe)["state"] == "denied", "world-readable, as the umask has it"
        a.key.chmod(0o600)
        assert recv_request(a.pipe) == {"state": "ok", "message": ""}
        assert a.round()["sent"] == 3
        a.key.write_text("k2 rubbish")
        assert recv_request(a.pipe)["state"] == "malformed"
        assert a.reader._prober.keys.current == "k1", "a file that is being edited does not end the probing"
    finally:
        a.close()


def configure(folder, name, hosts, **more):
    folder.mkdir(exist_ok=True)
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o600)
    lines = [
        f"[collector.latency]\ninterval = 1\n[latency]\nname = '{name}'\nkey-file = 'key'\ninterval = 5\nmessages = 40"
    ]
    for section, table in {**more, "hosts": hosts}.items():
        lines += [f"[latency.{section}]", *(f"{key} = {value!r}" for key, value in table.items())]
    (folder / "exporter.toml").write_text("\n".join(lines))
    return f"--config.file={folder}/exporter.toml"


def prober(daemon):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [pid for pid, name in daemon.descendants().items() if name == "gpuhost-latency"]
        if found:
            return found[0]
        time.sleep(0.02)
    raise AssertionError(daemon.log())


def on_cpu(pid):
    """Seconds that the process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


class Capture:
    """Every UDP datagram that leaves by any interface, the loopback among them: (from port, to address, to port)."""

    def __init__(self):
        self.seen = []
        everything = 0x0003  # ETH_P_ALL: others get no outgoing packets
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(everything))
        self._socket.settimeout(0.1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                packet, (_, protocol, kind, *_) = self._socket.recvfrom(2048)
                if (kind, protocol) == (socket.PACKET_OUTGOING, 0x0800) and packet[9] == socket.IPPROTO_UDP:
                    source, target = struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
                    self.seen.append((source, socket.inet_ntoa(packet[16:20]), target))

    def close(self):
        self._stopping.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def capture():
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: capturing packets needs root")
    capture = Capture()
    yield capture
    capture.close()


def round_trips(series, peer="b", transport="tcp"):
    return value(series, FABRIC + "round_trip_seconds_count", peer=peer, transport=transport) or 0


def test_never_a_packet_to_a_host_that_was_not_configured(tmp_path, capture):
    """Of five hosts a probes b, and is probed by e; c and d, a stranger and everybody else hear nothing."""
    ports = dict(zip(["a", "b", "c", "d", "e", "stranger"], free_ports(6), strict=True))
    hosts = {name: f"127.0.0.{place}:{ports[name]}" for place, name in enumerate("abcde", 1)}
    arguments = [configure(tmp_path / name, name, hosts) for name in "ab"]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        Daemon(tmp_path / "a", arguments[0], *QUIET) as a,
        Daemon(tmp_path / "b", arguments[1], *QUIET) as b,
    ):
        stranger.bind(("127.0.0.77", ports["stranger"]))
        stranger.setblocking(False)
        before = on_cpu(prober(a)), on_cpu(prober(b))
        a.wait_until(round_trips)
        ring = keys.parse(KEY, "key")
        for datagram in (b"noise", ring.seal(HELLO, "e", "a"), ring.seal(HELLO, "stranger", "a")):
            for _ in range(50):
                stranger.sendto(datagram, ("127.0.0.1", ports["a"]))
        series = a.wait_until(lambda seen: round_trips(seen) >= 80)
        cpu = [on_cpu(prober(each)) - start for each, start in zip((a, b), before, strict=True)]
        statuses = [Path(f"/proc/{prober(each)}/status").read_text() for each in (a, b)]
        with pytest.raises(BlockingIOError):
            stranger.recv(100)
    for status in statuses:
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^Seccomp_filters:\t2$", status, re.MULTILINE), "the launcher's and its own"
    sent = Counter((source, f"{host}:{target}") for source, host, target in capture.seen)
    told = {way for way in sent if way[0] in (ports["a"], ports["b"])}
    assert (ports["a"], hosts["b"]) in told
    neighbours = {"a": "be", "b": "ac"}
    assert told <= {(ports[name], hosts[peer]) for name, peers in neighbours.items() for peer in peers}
    assert not chosen(series, FABRIC + "probe_rejected_total"), "a stranger's datagrams do not reach the prober"
    rounds = round_trips(series) / 40
    packets = sent[ports["a"], hosts["b"]]
    assert packets <= (rounds + 1) * (40 + WARM_UP + 1)
    print(
        f"{rounds:.0f} rounds of 40 + {WARM_UP} messages: {packets / rounds:.0f} datagrams of {SIZE} bytes each way, "
        f"{cpu[0] / rounds * 1e3:.1f} + {cpu[1] / rounds * 1e3:.1f} ms of CPU a round, asker and answerer"
    )


_CONFINED = """
import os, socket
from gpuhost_exporter.sources import linux
stranger, peer, own = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
for sock in (stranger, peer, own):
    sock.bind(("127.0.0.1", 0))
own.connect(peer.getsockname())
pipe, end = socket.socketpair()
assert linux.keep_connections()
own.send(b"x"), pipe.sendall(b"y")
assert (peer.recv(9), end.recv(9)) == (b"x", b"y")
there = stranger.getsockname()
for call in (
    lambda: own.sendto(b"x", there),
    lambda: peer.sendto(b"x", there),
    lambda: own.sendmsg([b"x"], [], 0, there),
    lambda: own.connect(there),
    lambda: own.bind(("127.0.0.1", 0)),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    lambda: socket.socket(socket.AF_UNIX),
    lambda: os.execv("/bin/true", ["true"]),
):
    try:
        call()
    except PermissionError:
        continue
    raise SystemExit("allowed")
stranger.setblocking(False)
try:
    raise SystemExit(stranger.recv(9))
except BlockingIOError:
    print("confined")
"""


def test_the_prober_can_reach_nobody_but_whom_it_is_connected_to(environment):
    done = subprocess.run(
        [sys.executable, "-c", _CONFINED], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == ("confined\n", "")


def test_a_look_at_the_host_probes_nobody(run, tmp_path):
    ports = free_ports(2)
    argument = configure(tmp_path / "x", "a", {"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", ports[1]))
        told = run("doctor", argument)
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
    assert re.search(r"^latency +on ", told.stdout, re.MULTILINE)
    assert "only the running exporter (serve) makes rounds" in told.stdout


def test_a_prober_that_dies_is_started_again_and_nothing_else_notices(tmp_path):
    ports = free_ports(2)
    hosts = {"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"}
    with Daemon(tmp_path, configure(tmp_path / "a", "a", hosts), *QUIET) as daemon:
        first = prober(daemon)
        daemon.ready()
        others = set(daemon.descendants()) - {first}
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while first in daemon.descendants() or prober(daemon) == first:
            assert time.monotonic() < deadline
        assert set(daemon.descendants()) - {prober(daemon)} == others
        down = daemon.wait_until(lambda seen: value(seen, FABRIC + "probe_loss_ratio", peer="b", transport="tcp"))
    assert value(down, FABRIC + "probe_loss_ratio", peer="b", transport="tcp") == 1.0
    assert not chosen(down, FABRIC + "round_trip_median_seconds")
    assert value(down, "gpuhost_collector_up", collector="latency") == 1


_PERFTEST = """#!{python}
import socket, sys, time
arguments = sys.argv[1:]
with open("{folder}/told", "a") as file:
    file.write(" ".join(["ib_write_lat", *arguments]) + "\\n")
port = int(arguments[arguments.index("-p") + 1])
if arguments[-1] == "-U":
    time.sleep(0.5)  # opening a device takes its time
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(5)
        server.accept()
else:
    try:
        socket.create_connection((arguments[-1], port), timeout=5)
    except OSError:
        print("Couldn't connect to " + arguments[-1])
        sys.exit(1)
    print(open("{folder}/output").read())
"""


def test_perftest_runs_at_both_ends_and_its_figures_are_shown_as_round_trips(tmp_path):
    """Its part is played by a program that prints its format."""
    first, second, tcp_port = free_ports(3)
    hosts = {"a": f"127.0.0.1:{first}", "b": f"127.0.0.1:{second}"}
    played = tmp_path / "bin" / "ib_write_lat"
    played.parent.mkdir()
    played.write_text(_PERFTEST.format(python=sys.executable, folder=tmp_path))
    played.chmod(0o755)
    (tmp_path / "output").write_text(output([30.0] * WARM_UP + [1.25] * 40))
    environment = {"PATH": f"{played.parent}:{os.environ['PATH']}"}
    rdma = {"device": "mlx5_0", "gid-index": 3, "tcp-port": tcp_port}
    arguments = [configure(tmp_path / name, name, hosts, rdma=rdma) for name in "ab"]
    with (
        Daemon(tmp_path / "a", arguments[0], *QUIET, environment=environment) as a,
        Daemon(tmp_path / "b", arguments[1], *QUIET, environment=environment),
    ):
        series = a.wait_until(lambda seen: round_trips(seen, transport="rdma"), 40)
        # The next round may have begun: between two nothing of it is there.
        left, until = True, time.monotonic() + 20.0
        while left and time.monotonic() < until:
            left = [name for name in a.descendants().values() if name in ("timeout", "ib_write_lat")]
    assert value(series, FABRIC + "round_trip_median_seconds", peer="b", transport="rdma") == pytest.approx(2.5e-6)
    count = round_trips(series, transport="rdma")
    assert value(series, FABRIC + "round_trip_seconds_bucket", peer="b", transport="rdma", le="3e-06") == count
    assert count % 40 == 0
    assert value(series, FABRIC + "round_trip_seconds_bucket", peer="b", transport="rdma", le="2e-06") == 0
    assert value(series, "gpuhost_target_collective_latency_seconds") == 5e-6
    assert not chosen(series, FABRIC + "probe_loss_ratio", transport="rdma")
    assert not left
    common = f"ib_write_lat -d mlx5_0 -i 1 -p {tcp_port} -n 46 -s 8 -x 3 -F -U"
    assert set((tmp_path / "told").read_text().splitlines()) == {common, f"{common} 127.0.0.1"}


def test_a_host_without_perftest_has_its_other_figures_and_says_why(tmp_path):
    ports = free_ports(3)
    hosts = {"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"}
    rdma = {"device": "none0", "program": "ib_send_lat", "tcp-port": ports[2]}
    empty = tmp_path / "bin"
    empty.mkdir()
    for program in ("timeout", "sh"):
        (empty / program).symlink_to(shutil.which(program))
    arguments = [configure(tmp_path / name, name, hosts, rdma=rdma) for name in "ab"]
    with (
        Daemon(tmp_path / "a", arguments[0], *QUIET, environment={"PATH": str(empty)}) as a,
        Daemon(tmp_path / "b", arguments[1], *QUIET, environment={"PATH": str(empty)}),
    ):
        series = a.wait_until(lambda seen: chosen(seen, FABRIC + "probe_skipped_total", transport="rdma"), 40)
    assert value(series, FABRIC + "probe_skipped_total", peer="b", transport="rdma", reason="failed") == 1
    assert round_trips(series) >= 40
    assert not round_trips(series, transport="rdma")


def test_check_config_reads_the_keys_and_names_who_is_probed(run, tmp_path):
    argument = configure(tmp_path / "x", "a", {"a": "10.0.0.1:1", "b": "10.0.0.2:1", "c": "10.0.0.3:1"})
    good = run("check-config", argument)
    assert good.returncode == 0, good.stderr
    assert "hosts whose latency is probed: b\n" in good.stdout
    (tmp_path / "x" / "key").chmod(0o644)
    bad = run("check-config", argument)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("gpuhost-exporter: latency.key-file: ")
    assert bad.stderr.count("\n") == 1
    (tmp_path / "x" / "key").unlink()
    assert "No such file" in run("check-config", argument).stderr


def test_doctor_says_that_it_is_off_and_what_switches_it_on(run):
    told = run("doctor")
    assert re.search(r"^latency +off +switched on with a \[latency\] table", told.stdout, re.MULTILINE)


def test_a_simulated_host_probes_nobody(tmp_path):
    ports = free_ports(2)
    hosts = {"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"}
    with Daemon(tmp_path, configure(tmp_path / "a", "a", hosts), "--simulate=nogpu") as daemon:
        daemon.ready()
        assert "gpuhost-latency" not in daemon.descendants().values()
        assert value(daemon.series(), "gpuhost_collector_up", collector="latency") == 1
        # Nobody is at b's port; what the simulation tells has come from no network.
        series = daemon.wait_until(round_trips)
        assert value(series, f"{FABRIC}probe_loss_ratio", peer="b", transport="tcp") == 0
