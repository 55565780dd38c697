"""The .deb as an administrator meets it: installed, sandboxed, killed, starved, upgraded, removed, purged.

In the order of the file: each test finds the package installed and serving, and leaves it so, but for the last.
"""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from support.daemon import select, value
from vm import image
from vm.machine import UNIT, GuestError

CAPABILITIES = {2: "CAP_DAC_READ_SEARCH", 19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN", 34: "CAP_SYSLOG"}
LAUNCHER = "gpuhost-launche"  # the kernel keeps 15 bytes; it holds what it hands on
CONFIG = f"/etc/{UNIT}/config.toml"
DROP_INS = f"/etc/systemd/system/{UNIT}.service.d"
CGROUP = f"/sys/fs/cgroup/system.slice/{UNIT}.service/cgroup.procs"


@pytest.fixture(scope="module")
def as_root(machine):
    """What it says as root and without a sandbox, with the same capabilities, and no memory of earlier hardware."""
    machine.run(f"systemctl stop {UNIT}; rm -rf /var/lib/{UNIT}")
    machine.serve(properties=("CapabilityBoundingSet=CAP_SYSLOG CAP_SYS_PTRACE CAP_DAC_READ_SEARCH",))
    time.sleep(20)  # what needs two readings has had them
    return machine.series()


@pytest.fixture(scope="module")
def host(machine, as_root):
    """The machine with the package installed in place of what the other tests serve."""
    machine.run(f"systemctl stop {UNIT}; rm -rf /var/lib/{UNIT} {DROP_INS}")
    deb = image.package()
    machine.put(f"/root/{deb.name}", deb.read_bytes())
    machine.run(f"dpkg --install /root/{deb.name}", 300)
    machine.wait_until_ready()
    yield machine
    machine.run(f"dpkg --purge {UNIT}", 120)
    machine.serve()


def show(host, name):
    return host.run(f"systemctl show --value --property={name} {UNIT}").strip()


def processes(host):
    """(pid, name, user, capabilities) of the service's processes; none between two starts."""
    found = host.run(
        f"for pid in $(cat {CGROUP}); do echo pid $pid; grep -E '^(Name|Uid|CapEff)' /proc/$pid/status; done "
        "2>/dev/null; true"
    )
    told = re.findall(r"pid (\d+)\nName:\t(.*)\nUid:\t(\d+).*\nCapEff:\t([0-9a-f]+)", found)
    return [
        (int(pid), name, int(uid), {CAPABILITIES.get(bit, str(bit)) for bit in range(64) if int(mask, 16) >> bit & 1})
        for pid, name, uid, mask in told
    ]


def drop_in(host, text):
    host.run(f"mkdir -p {DROP_INS}")
    host.put(f"{DROP_INS}/test.conf", f"[Service]\n{text}\n".encode())
    host.run(f"systemctl daemon-reload && systemctl restart {UNIT}", 120)
    host.wait_until_ready()


@pytest.fixture
def no_drop_in(host):
    yield
    host.run(f"rm -rf {DROP_INS}; systemctl daemon-reload; systemctl restart {UNIT}", 120)
    host.wait_until_ready()


def wait(host, holds, seconds, what):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise GuestError(f"{what}, not within {seconds} s:\n{host.log()}")
        time.sleep(1)


def kinds(series):
    """Names of the metrics, those of the exporter itself left out: they come as things happen."""
    return {name for name, _ in series if not name.startswith(("gpuhost_exporter_", "gpuhost_collector_errors"))}


def collectors(series):
    """Whether each is up."""
    return {dict(labels)["collector"]: up for labels, up in select(series, "gpuhost_collector_up").items()}


def test_it_serves_as_its_own_user_and_only_readers_hold_capabilities(host):
    assert (show(host, "ActiveState"), show(host, "SubState")) == ("active", "running")
    assert host.run(f"systemctl is-enabled {UNIT}").strip() == "enabled"
    assert "listening on" in show(host, "StatusText")
    user = int(host.run(f"id -u {UNIT}"))
    assert 0 < user < 1000
    main = int(show(host, "MainPID"))
    found = processes(host)
    assert {uid for _, _, uid, _ in found} == {user}
    assert [held for pid, _, _, held in found if pid == main] == [set()]
    holding = [held for _, name, _, held in found if held and name != LAUNCHER]
    assert holding == [{"CAP_SYSLOG", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}]


def test_who_answers_http_sees_whose_a_process_is_and_nothing_in_it(host):
    """As gpuhost_gpu_users needs it: in the service's own view of /proc, without its readers' capabilities."""
    seen = f"nsenter --target {show(host, 'MainPID')} --mount setpriv --reuid={UNIT} --regid={UNIT} --clear-groups"
    assert host.run(f"{seen} stat --format=%U /proc/1").strip() == "root"
    for file in ("comm", "cmdline", "status", "environ"):
        with pytest.raises(GuestError, match=r"Operation not permitted|Permission denied"):
            host.run(f"{seen} cat /proc/1/{file}")
    host.run(f"{seen} cat /proc/self/comm")


def test_the_sandbox_costs_no_collector_and_no_metric(host, as_root):
    series = host.wait_until(lambda series: kinds(as_root) <= kinds(series), 60)
    assert collectors(series) == collectors(as_root)
    assert {"block", "filesystem", "machine", "platform", "pressure", "xid", "ledger"} <= {
        name for name, up in collectors(series).items() if up
    }


def test_nvidias_devices_are_allowed_though_their_driver_came_later_and_others_are_not(host):
    """Nothing answers to major 195 here: who may open it is told so (ENXIO), who may not hears EPERM."""
    nodes = {"/dev/nvidia0": "c 195 0", "/dev/nvidiactl": "c 195 255", "/dev/other": "c 10 200"}
    for path, node in nodes.items():
        host.run(f"mknod -m 666 {path} {node}")
    try:
        said = {path: host.run(f"(echo $BASHPID >{CGROUP} && exec head -c1 {path}) || true") for path in nodes}
    finally:
        host.run(f"rm {' '.join(nodes)}")
    assert "No such device or address" in said["/dev/nvidia0"]
    assert "No such device or address" in said["/dev/nvidiactl"]
    assert "Operation not permitted" in said["/dev/other"]


def test_commands_of_a_root_shell_find_the_service_its_settings_and_its_state(host):
    shell = f"unset STATE_DIRECTORY RUNTIME_DIRECTORY; export HOME=/root XDG_RUNTIME_DIR=/run/user/0; umask 077; {UNIT}"
    main = show(host, "MainPID")
    assert f"({main})" in host.run(f"{shell} release --for 5m")
    wait(host, lambda: "releasing NVML for 300 s" in host.log(), 20, "released")
    assert f"({main})" in host.run(f"{shell} resume")
    wait(host, lambda: "taking NVML up again" in host.log(), 20, "taken up")
    assert "no running" in host.run(f"systemctl stop {UNIT}; {shell} resume || true; systemctl start {UNIT}", 120)
    host.wait_until_ready()
    host.run(f"printf '[log]\\nlevel = \"warning\"\\n' >>{CONFIG}")
    try:
        said = host.run(f"{shell} check-config")
    finally:
        host.run(f"sed -i '/^.log.$/,$d' {CONFIG}")
    assert f"storage path: /var/lib/{UNIT}" in said
    assert "log level: warning" in said
    host.run(f"{shell} verify --json >/root/verify.json || true", 300)
    kept = host.run(f"stat --format='%n %U' /var/lib/{UNIT}/verify*").split()
    assert len(kept) >= 2
    assert set(kept[1::2]) == {UNIT}, "or the service could not read it"
    assert "verify" not in host.run("ls /root/.local/state 2>/dev/null; true")


def test_file_systems_below_home_are_told_though_mounted_later(host, drives):
    drive = drives("home")
    host.run(f"mkdir -p /home/scratch && mke2fs -q -t ext4 {drive.path} && mount {drive.path} /home/scratch")
    try:
        size = float(host.run("echo $(($(stat --file-system --format='%S * %b' /home/scratch)))"))
        for _ in range(2):  # then as one that was there before the service
            host.wait_until(
                lambda series: value(series, "gpuhost_filesystem_size_bytes", mountpoint="/home/scratch") == size, 90
            )
            host.run(f"systemctl restart {UNIT}", 120)
            host.wait_until_ready()
        seen = f"nsenter --target {show(host, 'MainPID')} --mount"
        assert "Read-only file system" in host.run(f"{seen} touch /home/x || true")
        assert host.run(f"touch /root/secret; {seen} ls -A /root").split() == []
    finally:
        host.run("umount /home/scratch; rmdir /home/scratch; rm -f /root/secret")


def test_a_container_that_has_the_marks_folder_mounted_keeps_it_over_a_restart(host):
    """A bind mount goes on showing the folder that was there when it was made."""
    host.run(f"mkdir -p /mnt/marker && mount --bind /run/{UNIT}/marker /mnt/marker")
    try:
        for how in ("systemctl restart", "systemctl stop {0}; systemctl start"):
            host.run(f"{how.format(UNIT)} {UNIT}", 120)
            host.wait_until_ready()
            here, there = (
                host.run(f"stat --format='%i %F' {folder}/socket") for folder in (f"/run/{UNIT}/marker", "/mnt/marker")
            )
            assert here == there
            assert "socket" in here
    finally:
        host.run("umount /mnt/marker; rmdir /mnt/marker")


def test_it_is_a_good_neighbour_and_keeps_off_the_jobs_cores_when_told(host, no_drop_in):
    assert (show(host, "CPUWeight"), show(host, "MemoryMax")) == ("20", str(128 << 20))
    drop_in(host, "CPUAffinity=1")
    pids = [pid for pid, _, _, _ in processes(host)]
    assert len(pids) >= 3  # itself, the launcher, a reader
    for pid in pids:
        assert host.run(f"ps -o ni= -p {pid}").strip() == "5"
        assert host.run(f"sed -n 's/^Cpus_allowed_list:\\t//p' /proc/{pid}/status").strip() == "1"


def test_a_main_process_that_is_killed_is_started_anew_and_no_reader_outlives_it(host):
    before = processes(host)
    host.run(f"kill -KILL {show(host, 'MainPID')}")
    wait(host, lambda: not {each[0] for each in before} & {each[0] for each in processes(host)}, 30, "all gone")
    wait(host, lambda: show(host, "SubState") == "running", 60, "started anew")
    host.wait_until_ready()
    assert show(host, "NRestarts") == "1"


def test_readers_that_are_killed_are_replaced_below_the_same_main_process(host):
    main = show(host, "MainPID")
    readers = {pid for pid, _, _, held in processes(host) if "CAP_SYSLOG" in held}
    launcher = {pid for pid, name, _, _ in processes(host) if name == LAUNCHER}
    victims = readers - launcher
    assert len(victims) == 1
    host.run(f"kill -KILL {victims.pop()}")
    wait(
        host,
        lambda: {pid for pid, _, _, held in processes(host) if "CAP_SYSLOG" in held} - launcher - readers,
        60,
        "a new privileged reader",
    )
    host.wait_until(lambda series: value(series, "gpuhost_collector_up", collector="xid") == 1, 60)
    assert show(host, "MainPID") == main


def test_a_service_that_has_run_out_of_memory_is_started_anew(host, no_drop_in):
    restarts = int(show(host, "NRestarts"))
    host.run(f"systemctl set-property --runtime {UNIT} MemoryHigh=infinity MemoryMax=8M MemorySwapMax=0; true")
    wait(host, lambda: "OOM" in host.log() or "oom-kill" in host.log(), 60, "killed for memory")
    host.run(f"systemctl set-property --runtime {UNIT} MemoryHigh=96M MemoryMax=128M")
    wait(host, lambda: int(show(host, "NRestarts")) > restarts, 60, "started anew")
    host.wait_until_ready()
    host.run(f"rm -rf /run/systemd/system.control/{UNIT}.service.d; systemctl daemon-reload")


def test_a_main_process_that_stands_still_is_ended_by_the_watchdog(host, no_drop_in):
    drop_in(host, "WatchdogSec=20")
    main = show(host, "MainPID")
    time.sleep(25)
    assert show(host, "MainPID") == main  # who makes progress is left alone
    host.run(f"kill -STOP {main}")
    wait(host, lambda: show(host, "MainPID") not in (main, "0"), 90, "ended and started anew")
    assert "Watchdog timeout" in host.log()
    host.wait_until_ready()


def test_the_drop_in_for_smart_makes_drives_health_readable(host, drives, no_drop_in):
    drive = drives("smart")
    host.wait_until(lambda series: value(series, "gpuhost_nvme_up", device=drive.controller) == 1, 20)
    host.wait_until(lambda series: value(series, "gpuhost_nvme_health_readable", device=drive.controller) == 0, 90)
    host.run(f"mkdir -p {DROP_INS} && cp /usr/share/{UNIT}/smart.conf {DROP_INS}")
    host.run(f"systemctl daemon-reload && systemctl restart {UNIT}", 120)
    host.wait_until_ready()
    host.wait_until(lambda series: value(series, "gpuhost_nvme_health_readable", device=drive.controller) == 1, 90)
    main = int(show(host, "MainPID"))
    assert [held for pid, _, _, held in processes(host) if pid == main] == [set()]


def test_the_hardened_drop_in_leaves_the_kernel_log_and_no_other_capability(host, as_root, no_drop_in):
    host.run(f"mkdir -p {DROP_INS} && cp /usr/share/{UNIT}/hardened.conf {DROP_INS}")
    host.run(f"systemctl daemon-reload && systemctl restart {UNIT}", 120)
    host.wait_until_ready()
    assert set().union(*(held for _, _, _, held in processes(host))) == {"CAP_SYSLOG"}
    host.wait_until(lambda series: collectors(series) == collectors(as_root), 60)


def test_an_upgrade_keeps_the_configuration_and_serves_the_new_version(host, tmp_path):
    deb = image.package()
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tmp_path / "new"], check=True)
    control = tmp_path / "new/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", "Version: 9.0.0-1", control.read_text()))
    with (tmp_path / f"new{CONFIG}").open("a") as file:
        file.write("# what a new version says here\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tmp_path / "new", tmp_path / "new.deb"], check=True)
    host.put("/root/new.deb", (tmp_path / "new.deb").read_bytes())
    host.run(f"printf '[target]\\nstorage_good_bytes_per_second = 14e9\\n' >>{CONFIG}; md5sum {CONFIG} >/root/kept")
    main = show(host, "MainPID")
    host.run("DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --install /root/new.deb", 300)
    host.wait_until_ready()
    assert host.run(f"dpkg-query --show --showformat='${{Version}}' {UNIT}").strip() == "9.0.0-1"
    host.run("md5sum --check --quiet /root/kept")
    assert show(host, "MainPID") not in (main, "0")
    host.wait_until(lambda series: value(series, "gpuhost_target_storage_bytes_per_second", band="good") == 14e9)


def installed(host):
    return host.run(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}; true").split()


def test_removed_and_installed_again_it_serves_again_unless_somebody_had_disabled_it(host):
    """dpkg hands a removed package's old version to postinst as it does an upgraded one's."""
    deb = f"/root/{image.package().name}"
    host.run(f"dpkg --remove {UNIT}", 120)
    assert installed(host)[0] == "inactive"
    host.run(f"dpkg --install --force-confold {deb}", 300)
    assert installed(host) == ["active", "enabled"]
    host.wait_until_ready()
    host.run(f"systemctl disable --now {UNIT}; dpkg --remove {UNIT} && dpkg --install --force-confold {deb}", 600)
    assert installed(host) == ["inactive", "disabled"]
    host.run(f"systemctl enable --now {UNIT}", 120)
    host.wait_until_ready()
    assert installed(host) == ["active", "enabled"]


def test_removed_it_leaves_configuration_and_state_and_purged_nothing(host):
    host.run(f"dpkg --remove {UNIT}", 120)
    with pytest.raises(GuestError):
        host.run(f"systemctl is-active {UNIT}")
    host.run(f"test -s {CONFIG} && test -d /var/lib/{UNIT}")
    left = host.run(f"find /usr -path '*{UNIT}*' -not -path '/usr/share/doc/*'").split()
    assert left == []
    host.run(f"mkdir -p {DROP_INS}; dpkg --purge {UNIT}", 120)
    gone = (
        f"ls -d /etc/{UNIT} /etc/systemd/system/{UNIT}* /var/lib/{UNIT} /run/{UNIT} 2>/dev/null; "
        f"id {UNIT} 2>/dev/null; true"
    )
    assert host.run(gone).split() == []
