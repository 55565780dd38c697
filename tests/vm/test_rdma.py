"""Soft-RoCE in the guest: ports, what perftest sends, what a bad wire costs, held against the kernel's own files. And
whether the guest knows that it is one.
"""

from __future__ import annotations

import shlex
import statistics

import pytest
from support.daemon import select, value

from gpuhost_exporter.latency.settings import Rdma
from gpuhost_exporter.sources.latency import perftest
from gpuhost_exporter.verify.wire import parse_perftest

_COUNTERS = "/sys/class/infiniband/rxe0/ports/1/hw_counters"


def of_port(series, name, **labels):
    return value(series, f"gpuhost_rdma_{name}", device="rxe0", port="1", **labels)


def sent(machine):
    return float(machine.run(f"cat {_COUNTERS}/sent_pkts"))


def ib_write_lat(machine, messages):
    machine.run(
        f"ib_write_lat -d rxe1 -n {messages} >/dev/null 2>&1 & sleep 2; "
        f"ib_write_lat -d rxe0 -n {messages} 192.168.77.2; wait",
        90,
    )


def test_a_port_is_told_as_the_kernel_tells_it(wire):
    (info,) = map(dict, select(wire.series(), "gpuhost_rdma_port_info", device="rxe0"))
    assert (info["link_layer"], info["interface"], info["address"]) == ("Ethernet", "up0", "")
    series = wire.series()
    assert of_port(series, "port_rate_bytes_per_second") == 10e9 / 8
    assert of_port(series, "port_mtu_bytes") == 1500
    assert of_port(series, "port_roce_v2") == 1
    assert not select(series, "gpuhost_rdma_port_bytes_total"), "rxe counts packets only"


def test_a_port_goes_down_and_comes_up_again(wire):
    downs = of_port(wire.series(), "port_errors_total", type="link_downed")
    wire.run("ip link set up0 down")
    series = wire.wait_until(lambda found: of_port(found, "port_up") == 0)
    assert of_port(series, "port_physical_up") == 0
    assert of_port(series, "port_rate_bytes_per_second") is None
    assert of_port(series, "port_errors_total", type="link_downed") == downs + 1
    wire.run("ip link set up0 up; ip route add 192.168.77.2 dev up0 src 192.168.77.1 table 50")
    series = wire.wait_until(lambda found: of_port(found, "port_up") == 1)
    assert of_port(series, "port_physical_up") == 1


def test_what_ib_write_lat_sends_is_counted_to_the_packet(wire):
    before = sent(wire)
    ib_write_lat(wire, 100)
    after = sent(wire)
    assert after >= before + 200, "a message and an acknowledgement each"
    wire.wait_until(lambda series: of_port(series, "port_packets_total", direction="tx") == after)


def test_the_probes_own_command_line_is_understood_and_its_list_agrees_with_perftests_table(wire):
    """tests/support/recorded/ib_write_lat-unsorted.txt is what it printed when told -n 45."""
    server, client = (
        shlex.join(perftest.command(Rdma(device), 45, peer))
        for device, peer in (("rxe1", None), ("rxe0", "192.168.77.2"))
    )
    for _ in range(6):  # in emulation it sometimes cannot tell the processor's clock: every figure is inf
        output = wire.run(f"{server} >/dev/null 2>&1 & sleep 2; {client} 2>&1; wait", 90)
        if "inf" not in output.split():
            break
    seconds = perftest.parse(output, 0)
    assert len(seconds) == 45
    assert 1e6 * statistics.median(seconds) / 2 == pytest.approx(parse_perftest(output, "t_typical"), rel=0.05)


def test_a_wire_that_loses_packets_shows_as_retransmissions(wire):
    def retransmissions(series):
        return of_port(series, "congestion_events_total", type="retransmission")

    before = retransmissions(wire.series())
    wire.run("tc qdisc add dev up0 root netem delay 1ms loss 5%")
    try:
        ib_write_lat(wire, 100)
    finally:
        wire.run("tc qdisc del dev up0 root")
    counted = float(wire.run(f"cat {_COUNTERS}/completer_retry_err"))
    assert counted > before
    wire.wait_until(lambda series: retransmissions(series) == counted)


def test_the_machine_calls_itself_what_systemd_calls_it(machine):
    """Software emulation: qemu, and no stolen time that could prove it."""
    series = machine.wait_until(lambda found: select(found, "gpuhost_virtualized"), 70)
    detected = machine.run("systemd-detect-virt --vm").strip()
    assert select(series, "gpuhost_virtualized") == {(("hypervisor", detected),): 1}
    evidence = {
        dict(key)["source"]: speaks for key, speaks in select(series, "gpuhost_virtualization_evidence").items()
    }
    machine.run("modprobe dmi_sysfs")
    extension = int(machine.run("od -An -tu1 -j19 -N1 /sys/firmware/dmi/entries/0-0/raw"))
    assert evidence == {"cpuid": 1, "dmi": 1, "smbios": extension >> 4 & 1}
    assert value(series, "gpuhost_container", runtime="none") == 0
    assert value(series, "gpuhost_iommu_mode", mode="off") == 1


def test_a_process_killed_for_lack_of_memory_is_counted(machine):
    before = value(machine.series(), "gpuhost_oom_kills_total")
    machine.run(
        "systemd-run --quiet --wait --property=MemoryMax=32M --property=MemorySwapMax=0 "
        "python3 -c 'bytearray(200 << 20)'; true"
    )
    assert int(machine.run("awk '/^oom_kill / {print $2}' /proc/vmstat")) > before
    machine.wait_until(lambda series: value(series, "gpuhost_oom_kills_total") == before + 1)


def test_waits_for_a_cpu_are_measured_in_a_machine_with_too_little_of_it(machine):
    def waited(series):
        return value(series, "gpuhost_cpu_run_queue_delay_seconds_sum") or 0.0

    before = machine.wait_until(waited)
    # Two that are favoured: among equals who has slept runs at once.
    load = machine.start("timeout 40 nice -n -10 sh -c 'for n in 1 2; do while :; do :; done & done; wait'; true")
    machine.wait_until(lambda series: waited(series) - waited(before) > 0.05, 35)
    load.result(80)
