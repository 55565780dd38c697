"""One machine for every test of this folder: they leave it as they found it, without drives and arrays of theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm import image
from vm.machine import Machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the machine; the first one waits for it to be built and to boot."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, the exporter installed and serving."""
    why = image.missing()
    if why:
        print(f"\nSKIPPED tests/vm: {why}", file=sys.__stderr__)
        pytest.skip(why)
    with Machine(image.built(), tmp_path_factory.mktemp("machine")) as booted:
        booted.install(image.wheel())
        booted.serve()
        yield booted
