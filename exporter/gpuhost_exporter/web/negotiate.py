"""Which form of /metrics a client gets, from its Accept and Accept-Encoding headers.

    Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.2
    Accept-Encoding: gzip

prometheus_client's own negotiation ignores q, echoes versions that it cannot write and fails on a malformed
one, so this is ours; on what Prometheus sends the two agree (a test compares them).
"""

from __future__ import annotations

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_VERSIONS = {
    "application/openmetrics-text": ("", "1.0.0"),
    "text/plain": ("", "0.0.4", "1.0.0"),  # 1.0.0 is 0.0.4 with quoted names allowed, which we do not use
    "text/*": ("",),
    "*/*": ("",),
}


def wants_openmetrics(accept: str) -> bool:
    """Whether the client prefers OpenMetrics 1.0.0 to text 0.0.4; text for those who say nothing of either."""
    qualities: dict[str, float] = {}
    for media_type, parameters, quality in _preferences(accept):
        if parameters.get("version", "") in _VERSIONS.get(media_type, ()):
            qualities[media_type] = max(quality, qualities.get(media_type, 0.0))
    openmetrics = qualities.get("application/openmetrics-text", 0.0)
    text = qualities.get("text/plain", qualities.get("text/*", qualities.get("*/*", 0.0)))
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip is allowed and not liked less than no compression."""
    qualities = {coding: quality for coding, _, quality in _preferences(accept_encoding)}
    gzip = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0)))
    return gzip > 0 and gzip >= qualities.get("identity", 0.0)


def _preferences(header: str) -> list[tuple[str, dict[str, str], float]]:
    """Value, parameters and q of each entry; an entry with a malformed q is left out."""
    entries = []
    for entry in header.lower().split(","):
        value, *rest = (part.strip() for part in entry.split(";"))
        parameters = {
            name.strip(): text.strip().strip('"')
            for name, equals, text in (part.partition("=") for part in rest)
            if equals
        }
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            continue
        if value and 0 <= quality <= 1:
            entries.append((value, parameters, quality))
    return entries
