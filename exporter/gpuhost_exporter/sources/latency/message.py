"""The datagrams that two probing hosts exchange, each sealed with a key that both hold.

    0      4     5     6         14         18             34             50
    gpl1   kind  -     key id    sequence   asker's nonce  answerer's     first 16 bytes of HMAC-SHA256

The seal also covers who sends and who shall receive, so a datagram that is sent back, or on to a third host, does not
fit. No clock is compared: each round begins with a nonce of either side, and what was sealed for an earlier round does
not fit this one. An answer is never longer than its question.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

_MAGIC = b"gpl1"
_HEAD = struct.Struct(">4sBx8sI16s16s")
_SEAL_BYTES = 16
NONCE_BYTES = 16
SIZE = _HEAD.size + _SEAL_BYTES
NO_NONCE = bytes(NONCE_BYTES)


class Kind(IntEnum):
    HELLO = 1  # asks for a round; the answerer's nonce is still empty
    WELCOME = 2
    BUSY = 3
    PING = 4
    PONG = 5
    RDMA = 6  # asks the peer to start perftest's server
    READY = 7
    REFUSED = 8


class Rejected(Exception):
    """A datagram that is not what it should be. `reason`: malformed, unknown_key, forged or replayed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    kind: Kind
    sequence: int
    asked: bytes  # the asker's nonce
    answered: bytes = NO_NONCE


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by their id. `current` seals what is sent; every key opens, so that keys can be changed host by host."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def seal(self, message: Message, sender: str, receiver: str) -> bytes:
        head = _HEAD.pack(
            _MAGIC, message.kind, self.current.encode(), message.sequence, message.asked, message.answered
        )
        return head + _seal(self.keys[self.current], head, sender, receiver)

    def open(self, datagram: bytes, sender: str, receiver: str) -> Message:
        """Raises Rejected."""
        if len(datagram) != SIZE or not datagram.startswith(_MAGIC):
            raise Rejected("malformed")
        _, kind, name, sequence, asked, answered = _HEAD.unpack_from(datagram)
        key = self.keys.get(name.rstrip(b"\0").decode("ascii", "replace"))
        if key is None:
            raise Rejected("unknown_key")
        head, seal = datagram[: _HEAD.size], datagram[_HEAD.size :]
        if not hmac.compare_digest(_seal(key, head, sender, receiver), seal):
            raise Rejected("forged")
        try:
            return Message(Kind(kind), sequence, asked, answered)
        except ValueError as error:  # a later version's
            raise Rejected("malformed") from error


def _seal(key: bytes, head: bytes, sender: str, receiver: str) -> bytes:
    return hmac.digest(key, f"{sender}\n{receiver}\n".encode() + head, "sha256")[:_SEAL_BYTES]
