"""Inventory: learned once seen, missing when gone, never judged while it cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpus import NOW, FakeNvml, gpu, host_of, poll, reading

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collectors.inventory import KINDS, InventoryCollector, forget, learn, learned
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sources.nvml.readings import Link, Links
from gpuhost_exporter.sources.state import State

LASTS = 45.0
EIGHT = tuple(gpu(index) for index in range(8))


class Site:
    """One host over restarts: the state directory stays, the exporter does not."""

    def __init__(self, folder, **inventory):
        self.folder = str(folder)
        self.inventory = inventory
        self.nvml = FakeNvml(*EIGHT)
        self.restart()

    def restart(self):
        host = host_of(self.nvml)
        host.settings = replace(host.settings, inventory=self.inventory)
        host.state = State(self.folder)
        self.host, self.collector = host, InventoryCollector(host)

    def post(self, subject, *readings):
        self.host.board.post(subject, readings, NOW + LASTS)

    def poll(self, now=NOW):
        """A poll, with the state directory's thread at rest before and after it, as it is between two ticks."""
        self.host.state.flush()
        found = poll(self.collector, now)
        self.host.state.flush()
        return found


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def missing(found, kind):
    return [device for of_kind, device in found.get("inventory_missing", {}) if of_kind == kind]


def links(index, *active, at=NOW):
    slots = tuple(reading(Link, index=number, active=number in active) for number in range(18))
    return Links(f"GPU-{index}", at, slots)


def drive(number, serial):
    return Listed(f"nvme{number}", serial)


def test_what_is_there_is_learned_and_nothing_is_missing(site):
    found = site.poll()
    assert found["gpus_expected"] == {(): 8}
    assert found["inventory_expected"]["gpus",] == found["inventory_present"]["gpus",] == 8
    assert found["inventory_readable"]["gpus",] == 1
    assert "inventory_missing" not in found
    assert found["state_writable"] == {(): 1}


def test_a_gpu_that_does_not_come_back_after_a_restart_is_missing(site):
    site.poll()
    site.nvml = FakeNvml(*EIGHT[:7])
    site.restart()
    found = site.poll()
    assert (found["gpus_expected"][()], found["inventory_present"]["gpus",]) == (8, 7)
    assert missing(found, "gpus") == ["GPU-7"]


@pytest.mark.parametrize(
    ("state", "is_missing"),
    [("lost", True), ("missing", True), ("needs_reset", False), ("hung", False), ("unreadable", False)],
)
def test_only_a_gpu_that_left_the_bus_is_missing(site, state, is_missing):
    site.poll()
    site.nvml.states["GPU-3"] = state
    assert missing(site.poll(), "gpus") == (["GPU-3"] if is_missing else [])


def test_an_index_that_a_driver_reload_reshuffled_is_no_missing_gpu(site):
    site.poll()
    site.nvml = FakeNvml(*(replace(known, index=7 - known.index) for known in EIGHT))
    site.restart()
    found = site.poll()
    assert found["inventory_present"]["gpus",] == 8
    assert "inventory_missing" not in found


def test_a_replaced_gpu_leaves_the_old_one_missing_until_it_is_forgotten(site):
    site.poll()
    site.nvml = FakeNvml(*EIGHT[:7], gpu(7, uuid="GPU-new"))
    site.restart()
    found = site.poll()
    assert (found["gpus_expected"][()], found["inventory_present"]["gpus",]) == (8, 8)
    assert missing(found, "gpus") == ["GPU-7"]
    assert forget(State(site.folder), "GPU-7")
    found = site.poll()
    assert found["gpus_expected"] == {(): 8}
    assert "inventory_missing" not in found


def test_a_gpu_that_was_taken_out_is_no_longer_expected_once_forgotten(site):
    site.poll()
    site.nvml.known = EIGHT[:7]
    assert forget(State(site.folder), "GPU-7")
    found = site.poll()
    assert found["gpus_expected"] == {(): 7}
    assert "inventory_missing" not in found


@pytest.mark.parametrize("state", ["starting", "released", "no_driver", "hung", "crashed", "mismatch", "error"])
def test_nothing_is_judged_while_the_driver_cannot_be_read(site, state):
    site.post("links", links(0, *range(18)))
    site.poll()
    site.nvml.driver_state = state
    site.nvml.known = ()
    found = site.poll()
    assert found["inventory_readable"]["gpus",] == found["inventory_readable"]["links",] == 0
    assert found["gpus_expected"] == {(): 8}
    assert ("gpus",) not in found.get("inventory_present", {})
    assert "inventory_missing" not in found


def test_a_driver_that_sees_no_gpu_at_all_misses_them_all(site):
    site.poll()
    site.nvml.driver_state = "no_gpus"
    assert missing(site.poll(), "gpus") == [f"GPU-{index}" for index in range(8)]


def test_what_nobody_read_and_nobody_learned_has_no_figures(site):
    found = site.poll()
    assert found["inventory_readable"]["arrays",] == 0
    assert ("arrays",) not in found["inventory_expected"]
    assert ("arrays",) not in found["inventory_present"]


def test_a_link_once_active_is_missing_when_it_is_down_after_a_restart(site):
    site.post("links", links(0, *range(18)), links(1, *range(18)))
    found = site.poll()
    assert found["inventory_expected"]["links",] == found["inventory_present"]["links",] == 36
    site.restart()
    site.post("links", links(0, *range(17)), links(1, *range(18)))
    found = site.poll()
    assert found["inventory_present"]["links",] == 35
    assert missing(found, "links") == ["GPU-0/17"]


def test_a_link_that_is_not_read_is_not_missing_and_one_that_is_down_is(site):
    site.post("links", links(0, 3, 4, 5), links(1, 3))
    assert site.poll()["inventory_present"]["links",] == 4
    slots = tuple(
        reading(Link, index=number, active={4: None, 5: False, 9: None}.get(number, True)) for number in (3, 4, 5, 9)
    )
    site.post("links", Links("GPU-0", NOW, slots), links(1, 3))
    found = site.poll()
    assert missing(found, "links") == ["GPU-0/5"]
    assert found["inventory_present"]["links",] == 3
    assert found["inventory_expected"]["links",] == 4
    assert found["inventory_readable"]["links",] == 1


def test_links_of_a_gpu_that_does_not_answer_are_not_listed_one_by_one(site):
    site.post("links", links(0, *range(18)), links(1, *range(18)))
    site.poll()
    site.post("links", links(0, *range(18)))
    found = site.poll()
    assert (found["inventory_expected"]["links",], found["inventory_present"]["links",]) == (36, 18)
    assert missing(found, "links") == []


def test_links_read_long_ago_are_not_judged(site):
    site.post("links", links(0, *range(18)))
    site.poll()
    found = site.poll(NOW + LASTS + 1)
    assert found["inventory_readable"]["links",] == 0
    assert ("links",) not in found["inventory_present"]


def port(number):
    return Listed(f"mlx5_{number}", f"mlx5_{number}/1")


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("drives", Listed("nvme0", "S0")),
        ("arrays", Listed("md0", "md0")),
        ("ports", Listed("mlx5_0", "mlx5_0/1")),
    ],
)
def test_what_its_collector_lists_no_more_is_expected_and_not_judged(site, kind, device):
    site.post(f"listed {kind}", device)
    assert site.poll()["inventory_readable"][kind,] == 1
    assert site.poll(NOW + LASTS)["inventory_present"][kind,] == 1
    found = site.poll(NOW + LASTS + 1)
    assert (found["inventory_readable"][kind,], found["inventory_expected"][kind,]) == (0, 1)
    assert (kind,) not in found["inventory_present"]
    assert missing(found, kind) == []


def test_drives_arrays_and_ports_are_known_by_serial_and_name(site):
    site.post("listed drives", drive(0, "S0"), drive(1, "S1"))
    site.post("listed arrays", Listed("md0", "md0"))
    site.post("listed ports", port(0), port(1))
    found = site.poll()
    counts = {kind: found["inventory_present"][kind,] for kind in ("drives", "arrays", "ports")}
    assert counts == {"drives": 2, "arrays": 1, "ports": 2}
    site.post("listed drives", drive(0, "S1"))
    site.post("listed arrays")
    site.post("listed ports", port(1))
    found = site.poll()
    assert missing(found, "drives") == ["S0"]
    assert missing(found, "arrays") == ["md0"]
    assert missing(found, "ports") == ["mlx5_0/1"]


def test_a_drive_that_is_listed_and_cannot_be_read_is_not_missing(site):
    site.post("listed drives", drive(0, "S0"), drive(1, "S1"))
    site.poll()
    site.post("listed drives", drive(0, None), drive(1, "S1"))
    found = site.poll()
    assert (found["inventory_present"]["drives",], missing(found, "drives")) == (2, [])
    assert found["inventory_readable"]["drives",] == 1
    site.post("listed drives", drive(0, None))
    assert missing(site.poll(), "drives") == ["S1"], "its sibling is judged all the same"


def test_what_cannot_be_read_is_not_learned_by_another_name(site):
    site.post("listed drives", drive(0, None))
    site.poll()
    site.post("listed drives", drive(0, "S0"))
    found = site.poll()
    assert (found["inventory_expected"]["drives",], missing(found, "drives")) == (1, [])


def test_an_unread_drive_of_a_new_name_may_be_the_one_that_is_not_seen(site):
    site.post("listed drives", drive(0, "S0"), drive(1, "S1"))
    site.poll()
    site.post("listed drives", drive(0, "S0"), drive(5, None))
    found = site.poll()
    assert found["inventory_readable"]["drives",] == 0
    assert missing(found, "drives") == []
    site.post("listed drives", drive(0, "S0"), drive(5, "S1"))
    assert missing(site.poll(), "drives") == []


def test_an_adapter_whose_ports_cannot_be_listed_misses_none_of_them(site):
    site.post("listed ports", port(0), Listed("mlx5_1", "mlx5_1/1"), Listed("mlx5_1", "mlx5_1/2"))
    site.poll()
    site.post("listed ports", port(0), Listed("mlx5_1", None))
    assert missing(site.poll(), "ports") == []


def test_nothing_is_judged_while_a_kind_cannot_be_listed(site):
    site.post("listed arrays", Listed("md0", "md0"))
    site.poll()
    site.host.board.post("listed arrays", None, NOW + LASTS)
    found = site.poll()
    assert found["inventory_readable"]["arrays",] == 0
    assert found["inventory_expected"]["arrays",] == 1
    assert missing(found, "arrays") == []
    assert site.host.board.last("missing arrays", tuple, site.host.clock.now()) == ()


@pytest.mark.parametrize("inventory", [{}, {"arrays": ("md0", "md7")}], ids=["learned", "configured"])
def test_arrays_that_are_not_there_are_posted_for_those_who_tell_of_arrays(tmp_path, inventory):
    site = Site(tmp_path, **inventory)
    site.post("listed arrays", Listed("md0", "md0"))
    site.poll()
    site.post("listed arrays")
    site.poll()
    assert site.host.board.last("missing arrays", tuple, site.host.clock.now()) == inventory.get("arrays", ("md0",))


def down(site):
    """Names of arrays that those who tell of arrays say are not up."""
    return list(site.host.board.last("missing arrays", tuple, site.host.clock.now()))


def boot(site, **uuids):
    """A restart that finds these arrays, by name; what inventory misses then."""
    site.restart()
    site.post("listed arrays", *(Listed(name, uuid or name) for name, uuid in uuids.items()))
    return missing(site.poll(), "arrays")


def test_an_array_that_comes_up_under_another_name_is_not_missing(site):
    assert boot(site, md0="A", md1="B") == []
    assert boot(site, md127="A", md126="B") == []
    assert down(site) == []
    assert boot(site, md126="A") == ["B"], "md126 is another's now"
    assert boot(site, md0="A") == ["md126"] == down(site)


def test_an_array_made_anew_takes_the_place_of_the_one_that_had_its_name(site):
    """As on hosts that make a stripe of their local drives at each boot."""
    boot(site, md0="A", md1="B")
    assert boot(site, md0="C", md1="B") == []
    assert site.poll()["inventory_expected"]["arrays",] == 2
    assert boot(site, md1="B") == ["md0"]


def test_two_lost_arrays_that_had_one_name_are_two(site):
    boot(site, md127="A")
    boot(site, md0="B")
    boot(site, md127="B")
    assert boot(site) == ["B", "md127"]


@pytest.mark.parametrize("uuid", ["A", None], ids=["a kernel that tells UUIDs", "one that does not"])
def test_arrays_learned_by_name_before_are_known_by_their_uuid(site, tmp_path, uuid):
    """The state as version 0.1.0 wrote it, and a kernel that no longer tells UUIDs."""
    before = {"arrays": {"devices": {"md0": {"device": "md0"}, "md1": {"device": "md1"}}, "most": 2}}
    (tmp_path / "inventory.json").write_text(json.dumps({"version": 1, "data": before}))
    assert boot(site, md0=uuid) == ["md1"]
    assert boot(site, md0=uuid, md1=uuid and "B") == []
    assert site.poll()["inventory_expected"]["arrays",] == 2
    assert boot(site, md0=None, md1=None) == []
    assert boot(site, md1=None) == ["md0"] == down(site)


def test_an_array_whose_uuid_is_told_late_is_one(site):
    boot(site, md0="A")
    assert boot(site, md127=None) == ["md0"]
    assert boot(site, md127="A") == []
    assert site.poll()["inventory_expected"]["arrays",] == 1


def test_a_lost_array_is_forgotten_by_its_name(site):
    boot(site, md0="A", md1="B")
    boot(site, md1="B")
    assert forget(State(site.folder), "md0")
    assert boot(site, md1="B") == []


@pytest.mark.parametrize(
    ("configured", "present", "expected", "gone"),
    [(8, 7, 8, ["GPU-7"]), (7, 7, 7, []), (10, 8, 10, []), (0, 8, 0, [])],
    ids=["one short", "one taken out on purpose", "more than ever seen", "none expected"],
)
def test_a_configured_count_takes_the_place_of_what_was_learned(tmp_path, configured, present, expected, gone):
    site = Site(tmp_path, gpus=configured)
    site.poll()
    site.nvml.known = EIGHT[:present]
    found = site.poll()
    assert found["gpus_expected"] == {(): expected}
    assert found["inventory_present"]["gpus",] == present
    assert missing(found, "gpus") == gone


def test_configured_names_are_missing_though_they_were_never_seen(tmp_path):
    site = Site(tmp_path, gpus=("GPU-0", "0000:11:00.0", "GPU-9"), drives=("nvme0", "S1", "S2"), ports=("mlx5_0",))
    site.post("listed drives", drive(0, "S0"), drive(1, "S1"))
    site.post("listed ports", port(0))
    found = site.poll()
    assert found["gpus_expected"] == {(): 3}
    assert missing(found, "gpus") == ["GPU-9"]
    assert missing(found, "drives") == ["S2"]
    assert missing(found, "ports") == []


def test_of_configured_names_those_are_present(tmp_path):
    """Else a host with more than it names hides what it lacks of them."""
    site = Site(tmp_path, ports=("mlx5_0", "mlx5_1", "mlx5_9"))
    site.post("listed ports", port(0), port(1), port(2), port(3))
    found = site.poll()
    assert (found["inventory_present"]["ports",], found["inventory_expected"]["ports",]) == (2, 3)
    assert missing(found, "ports") == ["mlx5_9"]


def test_what_does_not_change_is_not_written_again(site, tmp_path):
    site.poll()
    before = (tmp_path / "inventory.json").stat()
    site.poll()
    assert (tmp_path / "inventory.json").stat() == before


def test_a_folder_that_takes_no_files_is_told_and_inventory_works_from_memory(tmp_path):
    (tmp_path / "state").write_text("in the way")
    site = Site(tmp_path / "state")
    assert site.poll()["state_writable"] == {(): 0}
    site.nvml.known = EIGHT[:7]
    assert missing(site.poll(), "gpus") == ["GPU-7"]


def test_forgetting_a_gpu_forgets_its_links_and_nothing_else(site):
    site.post("links", links(0, 0, 1), links(1, 0, 1))
    site.poll()
    assert forget(site.host.state, "GPU-1")
    data = site.host.state.load("inventory")
    assert list(learned(data, "links").devices) == ["GPU-0/0", "GPU-0/1"]
    assert learned(data, "links").most == 2
    assert "GPU-1" not in learned(data, "gpus").devices
    assert learned(data, "gpus").most == 7


def test_a_gpu_forgotten_by_command_is_forgotten_by_the_running_exporter(site):
    site.poll()
    site.nvml.states["GPU-3"] = "missing"
    assert missing(site.poll(), "gpus") == ["GPU-3"]
    assert site.nvml.forgotten == set(), "missing is not forgotten"
    assert forget(State(site.folder), "GPU-3")
    site.poll()
    assert missing(site.poll(), "gpus") == []
    assert site.nvml.forgotten == {"GPU-3"}


def test_a_state_that_was_lost_forgets_no_gpu(site, tmp_path):
    site.poll()
    site.nvml.states["GPU-3"] = "missing"
    site.poll()
    (tmp_path / "inventory.json").write_text("torn")
    for _ in range(3):
        site.poll()
    assert "GPU-3" not in learned(site.host.state.load("inventory"), "gpus").devices, "learned anew"
    assert site.nvml.forgotten == set()


def test_forgetting_what_is_not_known_changes_nothing(tmp_path):
    folder = tmp_path / "typo"
    assert not forget(State(str(folder)), "GPU-1")
    assert not folder.exists()


def test_forgetting_where_nothing_can_be_written_is_an_error(tmp_path, monkeypatch):
    state = State(str(tmp_path))
    state.update("inventory", lambda data: learn(data, "gpus", {"GPU-0": {}}))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match=r"cannot forget GPU-0: .*No space left"):
        forget(state, "GPU-0")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["devices", "most", "a"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KINDS), VALUES))
def test_state_in_any_form_is_learned_from_or_passed_over(data):
    for kind in KINDS:
        known = learned(data, kind)
        assert 0 <= known.most <= len(known.devices)
        again = learned(learn(data, kind, {"new": {}}), kind)
        assert set(again.devices) == {*known.devices, "new"}
        assert again.most >= 1
