"""What the web server hands to a handler, and what it takes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD. Header names are lower case, a repeated header's values are joined by a comma."""

    method: str
    path: str  # as sent, not percent-decoded
    query: str  # without the question mark
    headers: Mapping[str, str]
    remote: str  # the client's address, without port


@dataclass(frozen=True, slots=True)
class Response:
    """The server adds Content-Length, Date and Connection, and leaves the body out for HEAD."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


Handler = Callable[[Request], Response]


def text(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """A plain answer for people."""
    common = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    return Response(status, (*common, *headers), f"{message}\n".encode())
