"""One machine for every test of this folder. A test leaves it as it found it: without drives and arrays of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon import value
from vm import image
from vm.machine import Drive, Machine, twice
from vm.soft_roce import UNWIRE, WIRE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(900))  # the first one waits for the machine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A tier that did not run must not look like one that passed."""
    why = image.missing()
    if why and any("/vm/" in report.nodeid for report in terminalreporter.stats.get("skipped", ())):
        terminalreporter.section("tests/vm skipped", red=True, bold=True)
        terminalreporter.write_line(why)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, the exporter installed and serving."""
    why = image.missing()
    if why:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("machine")
    with Machine(image.built(), folder, twice(folder / "twice.img")) as booted:
        booted.install(image.wheel())
        booted.serve()
        yield booted


@pytest.fixture
def drives(machine: Machine) -> Iterator[Callable[..., Drive]]:
    """Plugs drives in as Machine.add_drive does; takes down what was built on them and pulls them at the end."""
    plugged: list[str] = []

    def add(name: str, *arguments: object) -> Drive:
        plugged.append(name)
        return machine.add_drive(name, *arguments)

    yield add
    machine.run("sysctl --quiet --write dev.raid.speed_limit_max=200000")
    machine.run("umount --all-targets --quiet /mnt/test; dmsetup remove_all; mdadm --stop --scan; true")
    for name in plugged:
        machine.remove_drive(name)


@pytest.fixture(scope="module")
def wire(machine: Machine) -> Iterator[Machine]:
    """The machine with soft-RoCE ports."""
    machine.run(WIRE)
    machine.wait_until(lambda series: value(series, "gpuhost_rdma_port_up", device="rxe1", port="1") == 1)
    yield machine
    machine.run(UNWIRE)
