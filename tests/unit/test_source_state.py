"""The state directory: what survives a crash, a full disk, another process and garbage."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.state import State, parse


def add(key, value=1):
    return lambda data: {**data, key: value}


def on_disk(folder, name="inventory"):
    return json.loads((folder / f"{name}.json").read_text())


def test_what_was_updated_is_there_after_a_restart(tmp_path):
    folder = tmp_path / "not/there/yet"
    assert State(str(folder)).load("inventory") == {}
    assert not folder.exists()
    assert State(str(folder)).update("inventory", add("a")) == {"a": 1}
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
    command.update("inventory", add("b"))
    assert daemon.load("inventory") == {"a": 1, "b": 1}
    daemon.update("inventory", add("c"))
    assert command.load("inventory") == {"a": 1, "b": 1, "c": 1}


def _add_many(folder, prefix):
    state = State(folder)
    for number in range(25):
        state.update("inventory", add(f"{prefix}{number}"))


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
    assert on_disk(tmp_path)["data"] == {"a": 1}


def test_a_file_that_was_deleted_means_to_start_anew(tmp_path):
    state = State(str(tmp_path))
    state.update("inventory", add("a"))
    (tmp_path / "inventory.json").unlink()
    assert state.load("inventory") == {}


def test_a_folder_that_cannot_be_used_keeps_state_in_memory_and_says_so_once(tmp_path, caplog):
    (tmp_path / "state").write_text("a file in the folder's place")
    state = State(str(tmp_path / "state"))
    assert state.writable
    assert state.update("inventory", add("a")) == {"a": 1}
    assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
    state.retry()
    assert state.load("inventory") == {"a": 1, "b": 1}
    assert (state.writable, "state: File exists" in state.reason) == (False, True)
    assert len(caplog.records) == 1

    (tmp_path / "state").unlink()
    state.retry()
    assert (state.writable, state.reason) == (True, "")
    assert on_disk(tmp_path / "state")["data"] == {"a": 1, "b": 1}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_whole_and_is_retried(tmp_path, monkeypatch, call):
    state = State(str(tmp_path))
    state.update("inventory", add("a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
        assert state.reason == f"{tmp_path}/inventory.json: No space left on device"
        state.retry()
        assert not state.writable
        assert on_disk(tmp_path)["data"] == {"a": 1}
        assert sorted(os.listdir(tmp_path)) == [".lock", "inventory.json"]
        assert state.load("inventory") == {"a": 1, "b": 1}
    state.retry()
    assert state.writable
    assert on_disk(tmp_path)["data"] == {"a": 1, "b": 1}


def test_a_folder_that_became_read_only_still_tells_what_it_holds(tmp_path, monkeypatch):
    State(str(tmp_path)).update("inventory", add("a"))
    real = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    state = State(str(tmp_path))
    assert state.load("inventory") == {"a": 1}
    assert state.update("inventory", add("b")) == {"a": 1, "b": 1}
    assert state.reason == f"{tmp_path}: Read-only file system"


def test_a_lock_that_another_process_keeps_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuhost_exporter.sources.state._LOCK_PAUSE", 0.0001)
    other = State(str(tmp_path))
    with other._exclusive():
        state = State(str(tmp_path))
        state.update("inventory", add("a"))
        assert "another process keeps it locked" in state.reason
    state.retry()
    assert State(str(tmp_path)).load("inventory") == {"a": 1}


@given(
    st.text() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["version", "data"]), st.integers() | st.none()))
)
def test_no_text_brings_the_parser_down(text):
    with suppress(Malformed):
        assert isinstance(parse(text, "file"), dict)
