"""Checkpoints of real processes: found, measured, and told from what only looks like one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from accuracy.rig import IDLE, SETTLED, Found, Rig

MB = 1_000_000
POLL = 1.0
DIP = 1.0  # seconds for which an asynchronous one stops the GPUs
BYTES_WITHIN = 0.05
FLOOR = 0.95  # a share, of events and of each thing told of them: the machine may be busy elsewhere
SHARED_MEMORY = "/dev/shm/gpuhost-test-%.pt"

pytestmark = pytest.mark.alone


@pytest.fixture
def rig():
    with Rig() as started:
        yield started


def test_a_checkpoint_of_real_files_is_told_with_its_bytes_and_mount(rig):
    # Still open when it is looked at: where a file was that has been closed within the second is not told.
    begin, end = rig.stand("keep", f"{rig.folder}/rank%.pt", 400, 3.0)
    time.sleep(SETTLED)
    (found,) = rig.found
    assert found.started == pytest.approx(begin, abs=POLL)
    assert found.ended == pytest.approx(end, abs=POLL)
    assert found.bytes == pytest.approx(800 * MB, rel=BYTES_WITHIN)
    assert (found.mount, found.mode) == (rig.mount, "sync")
    assert rig.accounts("0")["checkpoint"] == pytest.approx(end - begin, abs=POLL)
    assert rig.accounts("5")["checkpoint"] == 0


@dataclass(frozen=True)
class Kind:
    """`act(rig, megabytes, seconds)` returns when it began and ended; `mode` is None for a decoy."""

    count: int
    mode: str | None
    act: Callable[[Rig, int, float], tuple[float, float]]
    files: bool = True  # written to a file system


def rank_does(name, *before, after=()):
    """While the GPUs stand, each rank does that with so many megabytes in so many seconds."""
    return lambda rig, megabytes, seconds: rig.stand(
        name, *(word.replace("{}", str(rig.folder)) for word in before), megabytes, seconds, *after
    )


def write_beside(rig, megabytes, seconds):
    begin, _ = rig.stand(seconds=DIP, pcie_tx=5e9)
    rig.together(rig.ranks, "save", f"{rig.folder}/rank%.pt", megabytes, seconds)
    return begin, time.time()


def without_a_stall(rig, megabytes, seconds):
    begin = time.time()
    rig.together(rig.ranks, "save", f"{rig.folder}/export%.bin", megabytes, seconds)
    return begin, time.time()


def many(rig, megabytes, seconds):
    return rig.stand("writers", f"{rig.folder}/shard%", 32, megabytes // 32, seconds)


def upload(rig, megabytes, seconds):
    """The copy out of the GPUs is over in a second; the GPUs stand until it is sent."""
    return rig.upload(megabytes, seconds, copy=DIP)


@pytest.mark.slow
def test_an_upload_is_told_from_its_copy_to_the_last_byte_sent(rig):
    begin, end = rig.upload(640, 8.0, copy=DIP)
    time.sleep(SETTLED)
    (found,) = rig.found
    assert (found.mount, found.mode) == ("unknown", "remote")
    assert found.started == pytest.approx(begin, abs=POLL)
    assert found.ended == pytest.approx(end, abs=POLL)
    assert rig.accounts("0")["checkpoint"] == pytest.approx(end - begin, abs=POLL)
    rig.stand(seconds=DIP, pcie_tx=5e9)
    time.sleep(SETTLED)
    assert rig.found == [found], "an offload that is sent nowhere is none"


def neighbour(rig, megabytes, seconds):
    return rig.stand("save", f"{rig.folder}/neighbour", megabytes, seconds, who=[rig.neighbour])


KINDS = {
    "torch.save": Kind(4, "sync", rank_does("save", "{}/rank%.pt")),
    "torch.save, fsync": Kind(4, "sync", rank_does("save", "{}/rank%.pt", after=(True,))),
    "direct": Kind(4, "sync", rank_does("direct", "{}/direct%.pt")),
    "overwrite": Kind(4, "sync", rank_does("overwrite", "{}/kept%.pt")),
    "mapped": Kind(4, "sync", rank_does("mapped", "{}/rank%.pt")),
    "tmpfs, moved": Kind(4, "sync", rank_does("stage", SHARED_MEMORY, "{}/rank%.pt")),
    "64 writers": Kind(4, "sync", many),
    "upload": Kind(4, "remote", upload, files=False),
    "beside training": Kind(4, "async", write_beside),
    "log": Kind(3, None, lambda rig, _, seconds: rig.stand("write", f"{rig.folder}/rank%.log", 5, seconds)),
    "data reading": Kind(4, None, lambda rig, _, seconds: rig.stand("read", f"{rig.folder}/kept%.pt", seconds)),
    "compile cache": Kind(
        3, None, lambda rig, _, seconds: rig.stand("files", f"{rig.folder}/cache%", 200, 300, seconds)
    ),
    # A process on a GPU has many GB to leave: one that is over within a second is not to be told.
    "core dump": Kind(3, None, lambda rig, megabytes, _: rig.stand("dump", str(rig.folder), 4 * megabytes)),
    "neighbour": Kind(4, None, neighbour),
    "offload": Kind(3, None, lambda rig, _, __: rig.stand(seconds=DIP, pcie_tx=5e9)),
    "no stall": Kind(2, None, without_a_stall),
    "burning": Kind(2, None, lambda rig, _, seconds: rig.stand("burn", seconds)),
    "nothing": Kind(2, None, lambda rig, _, seconds: rig.stand(seconds=seconds)),
}


@dataclass
class Event:
    kind: str
    bytes: float
    begin: float
    end: float
    found: list[Found]

    def claims(self, found: Found) -> bool:
        return found.started < self.end + POLL and self.begin - POLL < found.ended


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_checkpoints_are_told_from_decoys(rig, capsys):
    """Mixed, with training between them for as long as one settles: what is found, and how well it is measured."""
    draw = random.Random(4)
    names = [name for name, kind in KINDS.items() for _ in range(kind.count)]
    draw.shuffle(names)
    assert len(names) >= 50
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        names = [name for name in names if name != "core dump"]  # a core would go to who collects them here
    rig.together(rig.ranks, "save", f"{rig.folder}/kept%.pt", 640)
    time.sleep(SETTLED)
    events = []
    for name in names:
        kind = KINDS[name]
        megabytes, seconds = 32 * draw.randrange(8, 20), draw.uniform(1.0, 4.0)
        begin, end = kind.act(rig, megabytes, seconds)
        size = (1 << 20 if name == "direct" else MB) * 2 * megabytes
        events.append(Event(name, size, begin, end, []))
        time.sleep(draw.uniform(4.0, 6.0))
    time.sleep(SETTLED)
    strays = [found for found in rig.found if not any(event.claims(found) for event in events)]
    for event in events:
        event.found = [found for found in rig.found if event.claims(found)]
    for number in range(len(rig.ranks)):
        Path(SHARED_MEMORY.replace("%", str(number))).unlink(missing_ok=True)
    real = [event for event in events if KINDS[event.kind].mode]
    stood = sum(DIP if KINDS[event.kind].mode == "async" else event.end - event.begin for event in real)
    booked = rig.accounts("0")
    with capsys.disabled():
        tell(events, rig.mount)
        print(f"checkpoint: {booked['checkpoint']:.1f} s booked, {stood:.1f} s stood; data: {booked['data']:.1f} s")
    assert not strays
    found = [(event, found) for event in real for found in event.found]
    claimed = sum(len(event.found) for event in events)
    for name, kind in KINDS.items():
        mine = [event for event in events if event.kind == name]
        wrong = [event for event in mine if len(event.found) != (1 if kind.mode else 0)]
        assert len(wrong) <= 1, wrong
    assert sum(bool(event.found) for event in real) >= FLOOR * max(claimed, len(real)), "precision and recall"
    on_files = [(event, found) for event, found in found if KINDS[event.kind].files]
    right = {
        "mode": [found.mode == KINDS[event.kind].mode for event, found in found],
        "start within a poll": [abs(found.started - event.begin) <= POLL for event, found in found],
        "end within a poll": [abs(found.ended - event.end) <= POLL for event, found in found],
        "bytes within 5 %": [abs(found.bytes - event.bytes) <= BYTES_WITHIN * event.bytes for event, found in on_files],
        "mount right or unknown": [found.mount in (rig.mount, "/dev/shm", "unknown") for _, found in on_files],
    }
    with capsys.disabled():
        print("; ".join(f"{name}: {sum(each)} of {len(each)}" for name, each in right.items()))
    for name, each in right.items():
        assert sum(each) >= FLOOR * len(each), name
    assert booked["checkpoint"] == pytest.approx(stood * (1 - IDLE["graphics"]), rel=0.1)


def tell(events, mount):
    print(
        f"\n{'kind':18}{'events':>7}{'told':>5}{'precision':>10}{'recall':>7}{'start':>7}{'end':>7}{'bytes':>7}{'mount':>6}"
    )
    right = claimed = real = 0
    for name, kind in KINDS.items():
        mine = [event for event in events if event.kind == name]
        told = [(event, found) for event in mine for found in event.found]
        hits = sum(bool(event.found) for event in mine) if kind.mode else 0
        right, claimed, real = right + hits, claimed + len(told), real + len(mine) * (kind.mode is not None)
        row = f"{name:18}{len(mine):7}{len(told):5}"
        row += f"{hits / len(told):10.2f}" if told else f"{'-':>10}"
        row += f"{hits / len(mine):7.2f}" if kind.mode and mine else f"{'-':>7}"
        if told:
            row += f"{max((found.started - event.begin for event, found in told), key=abs):7.2f}"
            row += f"{max((found.ended - event.end for event, found in told), key=abs):7.2f}"
            off = max((found.bytes / event.bytes - 1 for event, found in told), key=abs)
            row += f"{off:7.2f}" if kind.files else f"{'-':>7}"
            row += f"{sum(found.mount == mount for _, found in told):6}"
        print(row)
    print(
        f"all: precision {right / max(1, claimed):.2f}, recall {right / max(1, real):.2f}; start, end: the worst, in s"
    )
