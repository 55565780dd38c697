"""Stand-ins for measuring programs: scripts on PATH that print what the real ones do, hang, fail or babble."""

from __future__ import annotations

from pathlib import Path

from gpuhost_exporter.verify import fio as fio_room
from gpuhost_exporter.verify import gpus, wire

MEASURED = {*fio_room.CHECKS.values(), *gpus.CHECKS, *wire.CHECKS}
RECORDED = Path(__file__).parent / "recorded"
BABBLE = 'echo \'{"what": [1, "\\u0000"]} % busbw 12 12 12 12 12 12 12 12 12 12 12 12\''


def recorded(name: str) -> str:
    """fio's were recorded; the others are in the form that their documentation and source show."""
    return (RECORDED / f"{name}.txt").read_text()


def install(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def printing(text: Path) -> str:
    return f"cat {text}"


def fio() -> str:
    """Writes the files that it was told to, of 4 MiB, and prints the record of the direction asked for."""
    return f"""
for word; do case $word in --directory=*) folder=${{word#*=}};; --rw=*) direction=${{word#*=}};; esac; done
echo "$@" >>"$folder/../../asked"
if [ $direction = write ]; then for i in 0 1 2 3 4 5 6 7; do head -c 4194304 /dev/zero >$folder/gpuhost.$i.0; done; fi
cat {RECORDED}/fio-$direction.txt
"""
