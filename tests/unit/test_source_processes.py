"""Owners of processes, from a tree that stands for /proc."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.processes import owners


def process_of_another_user(path):
    """A folder that somebody else owns: given away by root, borrowed from root by others."""
    if os.getuid() == 0:
        path.mkdir()
        os.chown(path, 4711, -1)
        return 4711
    path.symlink_to("/")
    return 0


def test_owners_are_distinct_and_what_is_gone_is_left_out(tmp_path):
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "1").mkdir()
    (proc / "2").mkdir()
    other = process_of_another_user(proc / "3")
    root = Root.below(str(tmp_path))
    assert owners(root, [1, 2]) == {os.getuid()}
    assert owners(root, [1, 3, 4]) == {os.getuid(), other}
    assert owners(root, [4]) == frozenset()
    assert owners(root, []) == frozenset()


def test_the_real_proc_says_who_owns_this_process():
    assert owners(Root(), [os.getpid()]) == {os.geteuid()}


@given(st.lists(st.integers()))
def test_any_process_id_is_answered(pids):
    assert owners(Root.below("/nonexistent"), pids) == frozenset()
