"""The state directory: what survives a crash, a full disk, another process and garbage."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.files import read_text
from gpuhost_exporter.sources.state import State, parse


def add(key, value=1):
    return lambda data: {**data, key: value}


def on_disk(folder, name="inventory"):
    return json.loads((folder / f"{name}.json").read_text())


def test_what_was_updated_is_there_after_a_restart(tmp_path):
    folder = tmp_path / "not/there/yet"
    assert State(str(folder)).load("inventory") == {}
    assert not folder.exists()
    state = State(str(folder))
    assert state.update("inventory", add("a")) == {"a": 1}
    state.close()
    assert State(str(folder)).load("inventory") == {"a": 1}
    assert State(str(folder)).load("kernel_log") == {}
    assert on_disk(folder) == {"version": 1, "data": {"a": 1}}
    assert sorted(os.listdir(folder)) == [".lock", "inventory.json"]


def test_what_a_caller_does_to_its_copy_changes_nothing(tmp_path):
    state = State(str(tmp_path))
    state.update("inventory", lambda _: {"a": {}})["a"]["b"] = 1
    state.load("inventory")["a"]["c"] = 1
    assert state.load("inventory") == {"a": {}}


def test_two_processes_see_and_keep_each_others_edits(tmp_path):
    daemon, command = State(str(tmp_path)), State(str(tmp_path))
    daemon.update("inventory", add("a"))
    daemon.flush()
    command.update("inventory", add("b"))
    command.flush()
    daemon.flush()
    assert daemon.load("inventory") == {"a": 1, "b": 1}
    daemon.update("inventory", add("c"))
    daemon.flush()
    command.flush()
    assert command.load("inventory") == {"a": 1, "b": 1, "c": 1}


def _add_many(folder, prefix):
    state = State(folder)
    for number in range(25):
        state.update("inventory", add(f"{prefix}{number}"))
        state.flush()


def test_no_edit_is_lost_between_processes_that_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_add_many, args=(str(tmp_path), prefix)) for prefix in "ab"]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(State(str(tmp_path)).load("inventory")) == 50


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"version": 1, "da', id="torn"),
        pytest.param("\x00\x00", id="zeros"),
        pytest.param("[1]", id="list"),
        pytest.param('{"version": 1}', id="no data"),
        pytest.param('{"version": 1, "data": 3}', id="data no table"),
        pytest.param('{"version": 2, "data": {}}', id="other version"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("x" * (1 << 21), id="too long"),
    ],
)
def test_a_file_that_makes_no_sense_is_moved_aside_and_said_once(tmp_path, caplog, text):
    (tmp_path / "inventory.json").write_text(text)
    state = State(str(tmp_path))
    assert state.load("inventory") == {}
    assert state.load("inventory") == {}
    assert [record.message for record in caplog.records if "inventory.json.corrupt" in record.message] == [
        caplog.records[0].message
    ]
    assert (tmp_path / "inventory.json.corrupt").read_text() == text
    assert state.writable
    assert state.update("inventory", add("a")) == {"a": 1}
    state.flush()
    assert on_disk(tmp_path)["data"] == {"a": 1}


def test_a_file_that_was_deleted_means_to_start_anew(tmp_path):
    state = State(str(tmp_path))
    state.update("inventory", add("a"))
    state.flush()
    (tmp_path / "inventory.json").unlink()
    state.flush()
    assert state.load("inventory") == {}


def test_a_folder_that_cannot_be_used_keeps_state_in_memory_and_says_so_once(tmp_path, caplog):
    (tmp_path / "state").write_text("a file in the folder's place")
    state = State(str(tmp_path / "state"))
    assert state.writable
    assert state.update("inventory", add("a")) == {"a": 1}
    assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
    for _ in range(3):
        state.flush()
    assert state.load("inventory") == {"a": 1, "b": 1}
    assert (state.writable, "state: File exists" in state.reason) == (False, True)
    assert len(caplog.records) == 1

    (tmp_path / "state").unlink()
    state.flush()
    assert (state.writable, state.reason) == (True, "")
    assert on_disk(tmp_path / "state")["data"] == {"a": 1, "b": 1}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_whole_and_is_retried(tmp_path, monkeypatch, call):
    state = State(str(tmp_path))
    state.update("inventory", add("a"))
    state.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
        state.flush()
        assert state.reason == f"{tmp_path}/inventory.json: No space left on device"
        state.flush()
        assert not state.writable
        assert on_disk(tmp_path)["data"] == {"a": 1}
        assert sorted(os.listdir(tmp_path)) == [".lock", "inventory.json"]
        assert state.load("inventory") == {"a": 1, "b": 1}
    state.flush()
    assert state.writable
    assert on_disk(tmp_path)["data"] == {"a": 1, "b": 1}


def test_a_folder_that_became_read_only_still_tells_what_it_holds(tmp_path, monkeypatch):
    before = State(str(tmp_path))
    before.update("inventory", add("a"))
    before.close()
    real = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    state = State(str(tmp_path))
    state.retry()
    assert state.load("inventory") == {"a": 1}
    assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
    state.flush()
    assert state.reason == f"{tmp_path}: Read-only file system"


def test_a_lock_that_another_process_keeps_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuhost_exporter.sources.state._LOCK_PAUSE", 0.0001)
    other = State(str(tmp_path))
    with other._exclusive():
        state = State(str(tmp_path))
        state.update("inventory", add("a"))
        state.flush()
        assert "another process keeps it locked" in state.reason
    state.flush()
    assert State(str(tmp_path)).load("inventory") == {"a": 1}


class Disk:
    """A disk that stops answering: what syncs a file waits until it answers again."""

    def __init__(self, monkeypatch):
        self.answers = threading.Event()
        self.asked = threading.Event()
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr("gpuhost_exporter.sources.state.PATIENCE", 0.05)

    def _fsync(self, _):
        self.asked.set()
        assert self.answers.wait(10)


def settle(state):
    """Wait until a disk that answers again has taken everything."""
    for _ in range(100):
        state.flush()
        if state.writable:
            return
    pytest.fail(state.reason)


@pytest.fixture
def hung(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.answers.set()


def test_a_disk_that_hangs_holds_up_nobody_and_is_said_once(tmp_path, hung, caplog):
    caplog.set_level("INFO")
    state = State(str(tmp_path))
    began = time.monotonic()
    state.update("inventory", add("a"))
    assert hung.asked.wait(5)
    state.retry()
    assert state.writable, "not hung yet"
    time.sleep(0.06)
    for _ in range(3):
        state.retry()
        state.replace("kernel_log", add("b")({}))
        assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
        assert state.load("inventory") == {"a": 1, "b": 1}
        assert state.load("kernel_log") == {"b": 1}
    state.close()
    assert time.monotonic() - began < 1
    assert state.reason == f"{tmp_path}: the disk does not answer"
    assert [record.message for record in caplog.records] == [f"state is kept in memory only: {state.reason}"]


def test_what_a_disk_that_hung_did_not_take_is_written_when_it_answers(tmp_path, hung):
    state = State(str(tmp_path))
    state.update("inventory", add("a"))
    assert hung.asked.wait(5)
    for number in range(100):
        state.update("inventory", add("b", number))
        state.replace("kernel_log", {"sequence": number})
    time.sleep(0.06)
    state.retry()
    assert not state.writable
    assert state.stuck("inventory")
    hung.answers.set()
    settle(state)
    assert not state.stuck("inventory")
    assert (state.writable, state.reason) == (True, "")
    assert on_disk(tmp_path)["data"] == {"a": 1, "b": 99}
    assert on_disk(tmp_path, "kernel_log")["data"] == {"sequence": 99}


def test_a_folder_that_hangs_before_it_was_ever_read_loses_nothing_that_it_holds(tmp_path, hung, monkeypatch):
    hung.answers.set()
    before = State(str(tmp_path))
    before.update("inventory", add("a"))
    settle(before)
    hung.answers.clear()
    real = os.open

    def hang(path, flags, *mode):
        if str(path).startswith(str(tmp_path)):
            hung.answers.wait(10)
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", hang)
    monkeypatch.setattr("gpuhost_exporter.sources.state.read_text", lambda path: (hung._fsync(0), read_text(path))[1])
    state = State(str(tmp_path))
    began = time.monotonic()
    assert state.load("inventory") == {}
    assert state.update("inventory", add("b")) == {"b": 1}
    assert time.monotonic() - began < 1
    hung.answers.set()
    settle(state)
    assert on_disk(tmp_path)["data"] == state.load("inventory") == {"a": 1, "b": 1}


def test_an_edit_that_waits_for_the_lock_is_made_to_what_another_process_left_meanwhile(tmp_path):
    state, other = State(str(tmp_path)), State(str(tmp_path))
    state.update("inventory", lambda _: {"a": 1, "b": 1})
    state.flush()
    with other._exclusive():
        state.update("inventory", add("c"))
        (tmp_path / "left").write_text(json.dumps({"version": 1, "data": {"a": 1}}))
        (tmp_path / "left").replace(tmp_path / "inventory.json")
    state.flush()
    assert on_disk(tmp_path)["data"] == state.load("inventory") == {"a": 1, "c": 1}


def test_what_was_never_used_creates_nothing_when_it_is_closed(tmp_path):
    State(str(tmp_path / "state")).close()
    assert not (tmp_path / "state").exists()


def test_closing_writes_what_was_updated_last_and_ends_the_thread(tmp_path):
    before = set(threading.enumerate())
    state = State(str(tmp_path))
    state.replace("kernel_log", {"sequence": 5})
    (thread,) = set(threading.enumerate()) - before
    state.close()
    thread.join(5)
    assert not thread.is_alive()
    assert on_disk(tmp_path, "kernel_log")["data"] == {"sequence": 5}


@given(
    st.text() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["version", "data"]), st.integers() | st.none()))
)
def test_no_text_brings_the_parser_down(text):
    with suppress(Malformed):
        assert isinstance(parse(text, "file"), dict)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path):
    """The daemon owns it, and an administrator's command must not lock it out."""
    os.chown(tmp_path, 4711, 4712)
    state = State(str(tmp_path))
    state.update("verify", add("a"))
    state.close()
    for name in (".lock", "verify.json"):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (4711, 4712), name
