"""The file of keys that probing hosts share: one a line, an id and 32 bytes or more in hexadecimal.

    # openssl rand -hex 32
    2026a 6b0d8f...

The first key seals what is sent, all of them open what comes. To change keys, add the new one as the last everywhere,
then put it first everywhere, then remove the old one.
"""

from __future__ import annotations

import os
import re
import stat

from gpuhost_exporter.errors import Denied, Malformed
from gpuhost_exporter.sources.files import read_text, source_error
from gpuhost_exporter.sources.latency.message import Keyring

_LINE = re.compile(r"(?P<id>[A-Za-z0-9._-]{1,8})[ \t]+(?P<key>(?:[0-9A-Fa-f]{2}){32,64})\s*\Z")
_MOST = 8


def load(path: str) -> Keyring:
    """Read the file. Raises SourceError; Denied also where every user of the host could read it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise source_error(path, error) from error
    if mode & stat.S_IRWXO:
        raise Denied(f"{path}: open to every user; expected mode 0600 or 0640, got {stat.S_IMODE(mode):04o}")
    return parse(read_text(path), path)


def parse(text: str, path: str) -> Keyring:
    """Raises Malformed. What a line holds is never told: it may be a key with a slip of the pen."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise Malformed(f"{path}: line {number}: expected an id of 1 to 8 characters and 64 hexadecimal digits")
        if match["id"] in keys:
            raise Malformed(f"{path}: line {number}: the id {match['id']} is there twice")
        keys[match["id"]] = bytes.fromhex(match["key"])
    if not 0 < len(keys) <= _MOST:
        raise Malformed(f"{path}: expected 1 to {_MOST} keys, got {len(keys)}")
    return Keyring(next(iter(keys)), keys)
