"""Basic authentication against bcrypt hashes, cheap for those who scrape and bounded for those who guess.

A password that was right once is remembered as a keyed hash, so a scrape costs no bcrypt. Everything else goes
through one bcrypt at a time, with a short queue before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import threading
from collections.abc import Mapping

import bcrypt

from gpuhost_exporter.web.message import Request, Response, text

_QUEUE = 4
_BCRYPT_LIMIT = 72  # bytes of a password that bcrypt looks at; longer ones are not passwords that htpasswd made


class Authenticator:
    """`users` maps names to bcrypt hashes; at least one."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = {user.encode(): hashed.encode() for user, hashed in users.items()}
        # For a name that nobody has: the dearest hash's cost, a salt and a digest of zeros.
        cost = max(hashed[4:6] for hashed in self._users.values())
        self._nobody = b"$2b$" + cost + b"$" + b"." * 53
        self._key = os.urandom(32)
        self._right: dict[bytes, bytes] = {}  # user -> keyed hash of the password that was right
        self._bcrypt = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + _QUEUE)

    def refusal(self, request: Request) -> Response | None:
        """The answer to whom may not pass; None for who may."""
        credentials = parse_basic(request.headers.get("authorization", ""))
        if credentials is None:
            return _unauthorized()
        user, password = credentials
        digest = hmac.digest(self._key, user + b"\0" + password, hashlib.sha256)
        if hmac.compare_digest(self._right.get(user, b""), digest):
            return None
        if not self._places.acquire(blocking=False):
            return text(429, "too many passwords to check, try again", ("Retry-After", "1"))
        try:
            with self._bcrypt:
                right = self._check(user, password)
        finally:
            self._places.release()
        if not right:
            return _unauthorized()
        self._right[user] = digest
        return None

    def _check(self, user: bytes, password: bytes) -> bool:
        hashed = self._users.get(user)
        right = bcrypt.checkpw(password[:_BCRYPT_LIMIT].replace(b"\0", b"?"), hashed or self._nobody)
        return right and hashed is not None and len(password) <= _BCRYPT_LIMIT and b"\0" not in password


def parse_basic(header: str) -> tuple[bytes, bytes] | None:
    """User and password of "Basic dXNlcjpwYXNz"; None where the header says neither."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = decoded.partition(b":")
    return (user, password) if colon else None


def _unauthorized() -> Response:
    challenge = 'Basic realm="gpuhost-exporter", charset="UTF-8"'
    return text(401, "user name and password needed", ("WWW-Authenticate", challenge))
