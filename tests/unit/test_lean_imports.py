"""What each process must not load: memory that a GPU host would pay for on every module."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("asyncio", "bz2", "concurrent", "decimal", "hashlib", "lzma", "multiprocessing", "pathlib", "psutil", "pynvml")
HEAVY += ("prometheus_client", "random", "ssl", "statistics", "tempfile", "unicodedata", "urllib", "uuid", "yaml")


def loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    code += f"\nimport sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", _WITH_PATHS + code], capture_output=True, text=True, check=True)
    return done.stdout.split()


# -S: a site-packages folder may hold .pth files that import what they like.
_WITH_PATHS = f"import sys; sys.path[:] = {sys.path!r}\n"


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param("cli app web.server web.routes status", id="a-real-host"),
        pytest.param("cli app web.server web.page sim.control", id="a-simulated-host-with-its-page"),
        pytest.param("cli sources.readers sources.kmsg sources.nvme_health sources.follow", id="privileged-reader"),
    ],
)
def test_a_process_loads_no_library_that_it_does_not_use(modules: str) -> None:
    code = "\n".join(f"import gpuhost_exporter.{module}" for module in modules.split())
    assert loaded_after(code, HEAVY) == []


def test_the_nvml_reader_loads_pynvml_without_what_pynvml_never_calls() -> None:
    code = "from gpuhost_exporter.sources.nvml import calls\ncalls.load()"
    assert loaded_after(code, ("pynvml", "random", "hashlib", "_posixsubprocess", "lzma")) == ["pynvml"]


def test_what_stood_in_for_a_module_is_gone_afterwards() -> None:
    code = "from gpuhost_exporter.sources.nvml import calls\ncalls.load()\nimport ctypes.util\n"
    code += "assert ctypes.util.find_library('c')"
    assert loaded_after(code, ("ctypes.util",)) == ["ctypes.util"]
