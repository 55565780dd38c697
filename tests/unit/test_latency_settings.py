"""The [latency] table: who probes whom, and one line for each mistake."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter import config
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.latency.settings import LatencySettings, Rdma

HOSTS = {name: f"10.0.0.{place}:19401" for place, name in enumerate("abcde", 1)}


def parse(name="b", **given):
    table = {"name": name, "key-file": "key", "hosts": HOSTS, **given}
    table = {key: value for key, value in table.items() if value is not None}
    return config.parse({"latency": table}, "/etc/x/exporter.toml", ("latency",))


def complaint(**given):
    with pytest.raises(ConfigError) as caught:
        parse(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_that_can_be_configured_arrives():
    rdma = {"device": "mlx5_1", "port": 2, "gid-index": 3, "program": "ib_send_lat", "tcp-port": 20000}
    settings = parse(
        **{"listen-address": ":20001", "interval": 60, "messages": 20, "pairs": [["b", "d"]], "rdma": rdma}
    )
    assert settings.latency == LatencySettings(
        name="b",
        listen=("", 20001),
        key_file="/etc/x/key",
        hosts={name: (f"10.0.0.{place}", 19401) for place, name in enumerate("abcde", 1)},
        pairs=(("b", "d"),),
        interval=60.0,
        messages=20,
        rdma=Rdma("mlx5_1", 2, 3, "ib_send_lat", 20000),
    )


def test_without_the_table_nothing_is_probed():
    settings = config.parse({}, "x", ("latency",))
    assert settings.latency is None
    assert "latency" not in settings.collectors


@pytest.mark.parametrize(("section", "enabled"), [({}, True), ({"latency": {"enabled": False}}, False)])
def test_the_table_switches_the_collector_on_unless_it_was_switched_off(section, enabled):
    document = {"latency": {"name": "a", "key-file": "key", "hosts": HOSTS}, "collector": section}
    assert config.parse(document, "x", ("latency",)).collectors["latency"].enabled is enabled


def test_a_host_probes_the_next_of_the_ring_and_its_pairs_and_no_other():
    pairs = [["a", "c"], ["d", "b"], ["a", "c"]]
    probes = {name: parse(name, pairs=pairs).latency.targets() for name in HOSTS}
    assert probes == {"a": ("b", "c"), "b": ("c",), "c": ("d",), "d": ("e", "b"), "e": ("a",)}
    heard = {name: set(parse(name, pairs=pairs).latency.neighbours()) for name in HOSTS}
    assert heard == {
        "a": {"b", "c", "e"},
        "b": {"a", "c", "d"},
        "c": {"a", "b", "d"},
        "d": {"b", "c", "e"},
        "e": {"a", "d"},
    }


def test_of_two_hosts_each_probes_the_other():
    hosts = {"a": "[fd00::1]:19401", "b": "[fd00::2]:19401"}
    settings = [parse(name, hosts=hosts).latency for name in hosts]
    assert [(each.targets(), each.neighbours(), each.listen) for each in settings] == [
        (("b",), ("b",), ("fd00::1", 19401)),
        (("a",), ("a",), ("fd00::2", 19401)),
    ]


@pytest.mark.parametrize("count", [2, 100, 1000])
def test_a_larger_fleet_costs_a_host_no_more(count):
    hosts = {f"h{number}": f"10.1.{number // 250}.{number % 250}:19401" for number in range(count)}
    settings = parse("h1", hosts=hosts).latency
    assert len(settings.targets()) == 1
    assert len(settings.neighbours()) <= 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "z"}, "latency.name: expected one of latency.hosts"),
        ({"hosts": {"b": "10.0.0.1:1"}}, "latency.hosts: expected two hosts or more, each with an address of its own"),
        ({"hosts": {"a": "10.0.0.1:1", "b": "10.0.0.1:1"}}, "latency.hosts: expected two hosts or more"),
        ({"hosts": {"a": "gpu-a:1", "b": "10.0.0.1:1"}}, "latency.hosts.a: expected an address and a port, such as"),
        ({"hosts": {"a": "10.0.0:1", "b": "10.0.0.1:1"}}, "latency.hosts.a: expected an address"),
        ({"hosts": {"a": "10.0.0.2:0", "b": "10.0.0.1:1"}}, "latency.hosts.a: expected an address"),
        ({"hosts": {"a": "10.0.0.2:65536", "b": "10.0.0.1:1"}}, "latency.hosts.a: expected an address"),
        ({"hosts": {"a": ":1", "b": "10.0.0.1:1"}}, "latency.hosts.a: expected an address"),
        ({"hosts": {"a b": "10.0.0.2:1", "b": "10.0.0.1:1"}}, "latency.hosts: expected names of letters"),
        ({"hosts": {"a": "[fd00::1]:1", "b": "10.0.0.1:1"}}, "latency.hosts: expected IPv4 only or IPv6 only"),
        ({"hosts": 3}, "latency.hosts: expected a table, got 3"),
        ({"listen-address": "[::1]:1"}, "latency.hosts: expected IPv4 only or IPv6 only"),
        ({"key-file": None}, "latency.key-file: expected a text, got None"),
        ({"interval": 1}, "latency.interval: expected a number from 5 to 3600, got 1"),
        ({"messages": 1000}, "latency.messages: expected a whole number from 10 to 100, got 1000"),
        ({"messages": 40.5}, "latency.messages: expected a whole number"),
        ({"pairs": "all"}, "latency.pairs: expected a list of pairs"),
        ({"pairs": [["b", "z"]]}, "latency.pairs: expected two different ones of latency.hosts in each pair"),
        ({"pairs": [["b", "b"]]}, "latency.pairs: expected two different ones"),
        ({"pairs": [["a", "b", "c"]]}, "latency.pairs: expected two different ones"),
        ({"rdma": {}}, "latency.rdma.device: expected a text"),
        ({"rdma": {"device": "-h"}}, "latency.rdma.device: expected a device such as mlx5_0"),
        (
            {"rdma": {"device": "mlx5_0", "program": "rm"}},
            "latency.rdma.program: expected one of ib_write_lat, ib_send",
        ),
        ({"rdma": {"device": "mlx5_0", "tcp-port": 22}}, "latency.rdma.tcp-port: expected a whole number from 1024"),
        ({"mesh": True}, "unknown key latency.mesh; known here: name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_one_line(given, said):
    assert f"/etc/x/exporter.toml: {said}" in complaint(**given) or said in complaint(**given)


def test_without_a_name_this_host_goes_by_its_own(monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Names", (), {"nodename": "c"}))
    assert parse(None).latency.name == "c"


@pytest.mark.parametrize(
    ("others", "said"), [(9, "at most 8 hosts that h0 probes"), (0, "at most 16 neighbours of h0")]
)
def test_pairs_do_not_make_a_mesh(others, said):
    hosts = {f"h{number}": f"10.1.0.{number}:19401" for number in range(1, 40)} | {"h0": "10.1.0.100:19401"}
    pairs = [["h0", f"h{number}"] for number in range(2, 2 + others)]
    pairs += [[f"h{number}", "h0"] for number in range(20, 36)]
    assert said in complaint(name="h0", hosts=hosts, pairs=pairs)


def test_the_readmes_table_is_accepted():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"```toml\n(\[latency\].*?)```", text, re.DOTALL)[1]
    table = config.tomllib.loads(example)["latency"]
    settings = config.parse({"latency": {**table, "name": "gpu-a"}}, "x", ("latency",)).latency
    assert settings.targets() == ("gpu-b", "gpu-c")
    assert settings.rdma == Rdma("mlx5_0")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(HOSTS.values()))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "device", "x"]), inner),
    max_leaves=6,
)
keys = st.sampled_from(
    ["name", "listen-address", "key-file", "interval", "messages", "pairs", "hosts", "rdma", "other"]
)


@given(st.dictionaries(keys, values))
def test_no_table_raises_anything_but_a_configuration_error(table):
    with contextlib.suppress(ConfigError):
        parse(**table)
