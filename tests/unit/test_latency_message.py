"""Datagrams between probing hosts: only the peer's own, for this round and this direction, opens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Denied, Malformed, SourceError
from gpuhost_exporter.sources.latency import keys
from gpuhost_exporter.sources.latency.message import SIZE, Keyring, Kind, Message, Rejected

OLD, NEW = b"o" * 32, b"n" * 32
RING = Keyring("new", {"new": NEW, "old": OLD})
PING = Message(Kind.PING, 7, b"A" * 16, b"B" * 16)


def reason(ring, datagram, sender="a", receiver="b"):
    with pytest.raises(Rejected) as caught:
        ring.open(datagram, sender, receiver)
    return caught.value.reason


@pytest.mark.parametrize("kind", Kind)
def test_what_is_sealed_opens_at_the_receiver(kind):
    message = Message(kind, 2**32 - 1, b"A" * 16, b"B" * 16)
    datagram = RING.seal(message, "a", "b")
    assert len(datagram) == SIZE
    assert RING.open(datagram, "a", "b") == message


@pytest.mark.parametrize(("sender", "receiver"), [("b", "a"), ("a", "c"), ("c", "b")])
def test_a_datagram_sent_back_or_on_to_another_host_does_not_open(sender, receiver):
    assert reason(RING, RING.seal(PING, "a", "b"), sender, receiver) == "forged"


def test_no_bit_can_be_changed():
    datagram = RING.seal(PING, "a", "b")
    for bit in range(len(datagram) * 8):
        changed = bytearray(datagram)
        changed[bit // 8] ^= 1 << bit % 8
        assert reason(RING, bytes(changed)) in ("malformed", "unknown_key", "forged")


@pytest.mark.parametrize(
    ("ring", "why"),
    [(Keyring("new", {"new": OLD}), "forged"), (Keyring("x", {"x": NEW}), "unknown_key")],
    ids=["another key of that name", "no key of that name"],
)
def test_who_has_another_key_is_refused(ring, why):
    assert reason(ring, RING.seal(PING, "a", "b")) == why


def test_keys_can_be_changed_host_by_host():
    """Each step of keys.py: whatever two hosts have at neighbouring steps, they understand each other."""
    steps = [
        Keyring("old", {"old": OLD}),
        Keyring("old", {"old": OLD, "new": NEW}),
        Keyring("new", {"new": NEW, "old": OLD}),
        Keyring("new", {"new": NEW}),
    ]
    for before, after in itertools.pairwise(steps):
        assert after.open(before.seal(PING, "a", "b"), "a", "b") == PING
        assert before.open(after.seal(PING, "a", "b"), "a", "b") == PING


def test_a_kind_of_a_later_version_is_malformed_not_a_crash():
    class Later(int):
        pass

    assert reason(RING, RING.seal(Message(Later(99), 1, b"A" * 16), "a", "b")) == "malformed"


@given(st.binary(max_size=200) | st.binary(min_size=SIZE - 4, max_size=SIZE - 4).map(lambda tail: b"gpl1" + tail))
def test_nothing_from_the_network_does_more_than_be_rejected(datagram):
    assert reason(RING, datagram) in ("malformed", "unknown_key", "forged")


HEX = "ab" * 32


def test_the_first_key_seals_and_all_of_them_open():
    ring = keys.parse(f"# made by openssl rand -hex 32\n\n2026a {HEX}\n2025b\t{'cd' * 40}\n", "k")
    assert ring == Keyring("2026a", {"2026a": bytes.fromhex(HEX), "2025b": bytes.fromhex("cd" * 40)})
    assert HEX not in repr(ring)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected 1 to 8 keys, got 0"),
        (HEX, "line 1: expected an id"),
        (f"a {HEX[:-2]}", "line 1: expected an id of 1 to 8 characters and 64 hexadecimal digits"),
        (f"a {HEX}\na {HEX}", "line 2: the id a is there twice"),
        (f"ninechars {HEX}", "line 1"),
        ("\n".join(f"k{number} {HEX}" for number in range(9)), "expected 1 to 8 keys, got 9"),
    ],
    ids=["empty", "no id", "short", "twice", "long id", "nine"],
)
def test_a_bad_file_of_keys_is_named_by_line_and_no_key_is_told(text, complaint):
    with pytest.raises(Malformed, match=complaint) as caught:
        keys.parse(text, "k")
    assert HEX[:60] not in str(caught.value)


@given(st.text())
def test_no_text_raises_anything_but_malformed(text):
    try:
        ring = keys.parse(text, "k")
    except Malformed:
        return
    assert all(len(key) >= 32 for key in ring.keys.values())


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602], ids=oct)
def test_a_key_that_every_user_can_read_or_change_is_none(tmp_path, mode):
    file = tmp_path / "key"
    file.write_text(f"a {HEX}")
    file.chmod(mode)
    with pytest.raises(Denied, match=f"expected mode 0600 or 0640, got {mode:04o}"):
        keys.load(str(file))
    file.chmod(0o640)
    assert keys.load(str(file)).current == "a"


def test_an_absent_file_of_keys_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"none: No such file"):
        keys.load(str(tmp_path / "none"))
