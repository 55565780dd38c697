"""A Debian under QEMU in software emulation, with the exporter in it as a user installs it.

    with Machine(image.built(), folder) as machine:
        machine.install(image.wheel())
        machine.serve()                                  the exporter as a systemd service, below port 19400
        machine.add_drive("a")                           an NVMe drive, plugged in while it runs
        machine.run("nvme smart-log /dev/nvme0 -o json")
        machine.wait_until(lambda series: value(series, "gpuhost_nvme_up", device="nvme0") == 1)
        machine.qmp("qom-set", path="/machine/peripheral/a", property="smart_critical_warning", value=4)

Commands run through Debian's qemu-guest-agent, so nothing of ours but the exporter is in the guest. Its clock runs as
ours does; its processors are about ten times slower.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import shlex
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.daemon import Series, parse
from vm.image import Image

EXPORTER = "/opt/gpuhost-exporter/bin/gpuhost-exporter"
UNIT = "gpuhost-exporter"
TWICE = "twice"  # serial number of the drive with two paths
_PORTS = 10
_BOOT_SECONDS = 480
_USUAL_BOOT_SECONDS = 45  # on two processors that do nothing else
# What an NVMe drive's health needs and no more: README, "needs beyond an ordinary user".
PRIVILEGES = ("CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYSLOG",)
# A starved emulator's timer looks broken to the guest, which would panic over it.
_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off nowatchdog no_timer_check net.ifnames=0"


class GuestError(AssertionError):
    """A command in the guest failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Drive:
    """`name` is what QEMU calls it, `controller` and `namespace` what the guest's kernel does."""

    name: str
    controller: str
    namespace: str

    @property
    def path(self) -> str:
        return f"/dev/{self.namespace}"


class Machine:
    """Boots at once and is ready when the constructor returns. `arguments` are more of QEMU's own.

    `slowness`: how many times as long as usual that took, 1 at least. On a busy machine all limits are stretched by it.
    """

    def __init__(self, image: Image, folder: Path, arguments: Iterable[str] = ()) -> None:
        self.folder = folder
        layer = folder / "root.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.root.resolve()), str(layer)]
        subprocess.run(create, check=True)
        self.port, self.ssh_port = _free_port(), _free_port()
        forward = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-10.0.2.15:19400"
        forward += f",hostfwd=tcp:127.0.0.1:{self.ssh_port}-10.0.2.15:22"
        command = [
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
            *("-smp", "2", "-m", "1536", "-display", "none", "-nodefaults", "-no-reboot"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", _COMMAND_LINE),
            *("-drive", f"file={layer},if=none,id=root,cache=unsafe", "-device", "virtio-blk-pci,drive=root"),
            *("-netdev", forward, "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-serial", f"file:{folder / 'console'}", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
        ]
        for port in range(_PORTS):
            command += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1},slot={port + 1}"]
        self._ports = deque(f"port{port}" for port in range(_PORTS))
        self._plugged: dict[str, str] = {}
        with (folder / "qemu").open("wb") as log:
            self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._qmp = _Channel(folder / "qmp", self._alive)
            self._qmp.receive(10)
            self.qmp("qmp_capabilities")
            self._agent = _Channel(folder / "agent", self._alive)
            began = time.monotonic()
            self._wait_for_agent()
            self.slowness = max(1.0, (time.monotonic() - began) / _USUAL_BOOT_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._agent.close()
        self._qmp.close()
        self._process.terminate()
        self._process.wait(30)

    # The guest

    def run(self, command: str, seconds: float = 60) -> str:
        """What the shell command wrote, standard error included. Raises GuestError when it fails or takes longer."""
        return self.start(command).result(seconds)

    def start(self, command: str) -> Running:
        """A shell command that goes on meanwhile."""
        arguments = {"path": "/bin/bash", "arg": ["-c", f"exec 2>&1; {command}"], "capture-output": True}
        return Running(self, command, self._ask_agent("guest-exec", **arguments)["pid"])

    def put(self, path: str, content: bytes) -> None:
        """Write a file."""
        handle = self._ask_agent("guest-file-open", path=path, mode="wb")
        for start in range(0, len(content), 1 << 16):
            text = base64.b64encode(content[start : start + (1 << 16)]).decode()
            self._ask_agent("guest-file-write", **{"handle": handle, "buf-b64": text})
        self._ask_agent("guest-file-close", handle=handle)

    def json(self, command: str) -> Any:
        return json.loads(self.run(command))

    # The exporter

    def install(self, wheel: Path) -> None:
        """As the README says, from the wheel. No index: what the wheel depends on is there or it fails."""
        self.put(f"/root/{wheel.name}", wheel.read_bytes())
        self.run(f"/opt/gpuhost-exporter/bin/pip install --no-index /root/{wheel.name}", 240)

    def serve(self, *flags: str, properties: Iterable[str] = PRIVILEGES) -> None:
        """Start the exporter as a service of systemd and wait until it is ready; one that runs is replaced."""
        self.run(f"systemctl stop {UNIT} 2>/dev/null; systemctl reset-failed {UNIT} 2>/dev/null; true")
        given = " ".join(f"--property={shlex.quote(text)}" for text in (f"StateDirectory={UNIT}", *properties))
        self.run(f"systemd-run --quiet --unit={UNIT} {given} {EXPORTER} serve {shlex.join(flags)}")
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds * self.slowness
        while not self._ready():
            if time.monotonic() > deadline:
                raise GuestError(f"the exporter is not ready:\n{self.log()}")
            time.sleep(0.5)

    def log(self) -> str:
        return self.run(f"journalctl --no-pager --output=cat --unit={UNIT} | tail -50")

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def series(self) -> Series:
        status, body = self.get("/metrics")
        assert status == 200, body
        return parse(body)

    def wait_until(self, holds: Callable[[Series], object], seconds: float = 30) -> Series:
        """The first scrape for which holds(series) is true."""
        deadline = time.monotonic() + seconds * self.slowness
        while True:
            series = self.series()
            if holds(series):
                return series
            if time.monotonic() > deadline:
                raise GuestError(f"not seen within {seconds} s; the exporter's log:\n{self.log()}")
            time.sleep(0.25)

    def agree(self, tool: Callable[[], object], told: Callable[[Series], object], seconds: float = 20) -> None:
        """Both say the same at one moment: the tool just before and just after the scrape."""
        deadline = time.monotonic() + seconds * self.slowness
        while True:
            before, series, after = tool(), self.series(), tool()
            if before == told(series) == after:
                return
            if time.monotonic() > deadline:
                raise GuestError(f"the tool: {before}, then {after}; the exporter: {told(series)}\n{self.log()}")
            time.sleep(0.25)

    def between(self, tool: Callable[[], float], told: Callable[[Series], float | None]) -> None:
        """While it grows: a scrape some seconds after the tool and before the tool says a figure between both."""
        least = tool()
        time.sleep(3 * self.slowness)  # so that the exporter has read after the tool
        value, most = told(self.series()), tool()
        assert value is not None
        assert least <= value <= most
        assert least < most, "nothing went on meanwhile"

    # The machine

    def qmp(self, command: str, **arguments: Any) -> Any:
        """A command to QEMU's monitor. Raises GuestError with what QEMU says against it."""
        self._qmp.send({"execute": command, "arguments": arguments})
        while True:
            answer = self._qmp.receive(30)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']['desc']}")

    def plug(self, name: str, driver: str, **properties: Any) -> None:
        """Put a PCI device into a free slot while the machine runs."""
        port = self._ports.popleft()
        self.qmp("device_add", driver=driver, id=name, bus=port, **properties)
        self._plugged[name] = port

    def unplug(self, name: str) -> None:
        """Take it out; returns once the machine has let go of it. The guest's kernel may need a second more."""
        self.qmp("device_del", id=name)
        deadline = time.monotonic() + 60
        while name in {child["name"] for child in self.qmp("qom-list", path="/machine/peripheral")}:
            if time.monotonic() > deadline:
                raise GuestError(f"{name} is still there:\n{self.run('dmesg | tail -20')}")
            time.sleep(0.1)
        self._ports.append(self._plugged.pop(name))

    def throttle(self, name: str, bytes_per_second: int) -> None:
        """Let the drive deliver no more; 0 ends it."""
        limits = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        self.qmp("block_set_io_throttle", id=name, bps=bytes_per_second, **limits)

    def add_medium(self, name: str, mebibytes: int, *faults: dict[str, Any]) -> None:
        """What a drive keeps its data on; `faults` are blkdebug's rules, such as errors of one sector."""
        path = self.folder / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(mebibytes << 20)
        medium: dict[str, Any] = {"driver": "file", "filename": str(path)}
        if faults:
            medium = {"driver": "blkdebug", "image": medium, "inject-error": list(faults)}
        self.qmp("blockdev-add", **{"driver": "raw", "node-name": name, "file": medium})

    def add_drive(self, name: str, mebibytes: int = 256, *faults: dict[str, Any]) -> Drive:
        """Plug an NVMe drive in, its serial number the name; returns once the guest has its namespace."""
        self.add_medium(name, mebibytes, *faults)
        self.plug(name, "nvme", drive=name, serial=name)
        return self.find_drive(name)

    def find_drive(self, name: str) -> Drive:
        """The drive of this serial number as the guest's kernel names it."""
        found = self.run(
            f"for try in $(seq 100); do for d in /sys/class/nvme/nvme*; do read serial _ <$d/serial; "
            f"[ $serial = {name} ] && ls -d $d/nvme*n* && exit; done 2>/dev/null; sleep 0.2; done; exit 1"
        )
        controller, entry = re.findall(r"/(nvme\d+)/(nvme\d+(?:c\d+)?n\d+)", found)[0]
        return Drive(name, controller, re.sub(r"c\d+", "", entry))

    def remove_drive(self, name: str) -> None:
        """Pull it out, its data with it."""
        if name in self._plugged:
            self.unplug(name)
        deadline = time.monotonic() + 5
        while True:
            try:
                self.qmp("blockdev-del", **{"node-name": name})
            except GuestError:  # its last requests may outlive the drive by a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _alive(self) -> None:
        if self._process.poll() is not None:
            said = "\n".join((self.folder / name).read_text(errors="replace")[-2000:] for name in ("qemu", "console"))
            raise GuestError(f"QEMU ended with {self._process.returncode}:\n{said}")

    def _wait_for_agent(self) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        while True:
            self._alive()
            try:
                self._agent.send({"execute": "guest-sync", "arguments": {"id": 1}})
                while self._agent.receive(2).get("return") != 1:
                    pass
            except TimeoutError:
                if time.monotonic() > deadline:
                    console = (self.folder / "console").read_text(errors="replace")
                    raise GuestError(f"no answer from the guest; its console:\n{console[-4000:]}") from None
            else:
                # Questions from before it started may all be answered at once.
                self._agent.drain()
                return

    def _ask_agent(self, command: str, **arguments: Any) -> Any:
        self._agent.send({"execute": command, "arguments": arguments})
        answer = self._agent.receive(60)
        if "error" in answer:
            raise GuestError(f"{command}: {answer['error']['desc']}")
        return answer["return"]


class Running:
    """A command that goes on in the guest."""

    def __init__(self, machine: Machine, command: str, pid: int) -> None:
        self._machine = machine
        self._command = command
        self._pid = pid

    def result(self, seconds: float = 60) -> str:
        """Wait for its end. Raises GuestError when it fails or takes longer."""
        deadline = time.monotonic() + seconds * self._machine.slowness
        pause = 0.02
        while not (state := self._machine._ask_agent("guest-exec-status", pid=self._pid))["exited"]:
            if time.monotonic() > deadline:
                raise GuestError(f"still running after {seconds} s: {self._command}")
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)
        output = base64.b64decode(state.get("out-data", "")).decode(errors="replace")
        if state.get("exitcode"):
            raise GuestError(f"exit {state['exitcode']} of: {self._command}\n{output}")
        return output


class _Channel:
    """JSON lines over a Unix socket."""

    def __init__(self, path: Path, alive: Callable[[], None]) -> None:
        self._buffer = b""
        self._alive = alive
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                self._socket.connect(str(path))
            except OSError:
                alive()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, Any]:
        """Raises TimeoutError."""
        self._socket.settimeout(seconds)
        while b"\n" not in self._buffer:
            try:
                received = self._socket.recv(1 << 16)
            except ConnectionResetError:
                received = b""
            if not received:
                time.sleep(0.5)  # for QEMU to end and say why
                self._alive()
                raise GuestError("the machine hung up")
            self._buffer += received
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> None:
        try:
            while True:
                self.receive(0.5)
        except TimeoutError:
            pass


def twice(medium: Path) -> list[str]:
    """QEMU's arguments for the drive TWICE, which has two controllers and so cannot be plugged in later."""
    with medium.open("wb") as file:
        file.truncate(64 << 20)
    arguments = ["-device", f"nvme-subsys,id={TWICE},nqn={TWICE}"]
    for path in ("path0", "path1"):
        place = 80 + int(path[-1])
        arguments += ["-device", f"pcie-root-port,id={path}-port,chassis={place},slot={place}"]
        arguments += ["-device", f"nvme,id={path},bus={path}-port,subsys={TWICE},serial={TWICE}"]
    return [
        *arguments,
        "-drive",
        f"file={medium},if=none,id={TWICE}-data,format=raw",
        "-device",
        f"nvme-ns,drive={TWICE}-data,nsid=1",
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
