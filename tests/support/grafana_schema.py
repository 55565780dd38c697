"""python -W ignore grafana_schema.py BOARD.json...    says what in them is not of Grafana's schema, a line each

grafana-foundation-sdk's models are made from Grafana's schemas. They drop what these do not know and take any value for
what they know: so what is read is written again and compared, and held against the models' own annotations.
"""

from __future__ import annotations

import enum
import json
import sys
import typing

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

PLAIN = {bool: bool, str: str, int: int, float: (int, float)}


def lost(written, read, path):
    if isinstance(written, dict):
        for key, value in written.items():
            yield from lost(value, read[key], f"{path}.{key}") if key in read else [f"{path}.{key}: unknown"]
    elif isinstance(written, list):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif written != read:
        yield f"{path}: {written!r}, read as {read!r}"


def wrong(value, kind, path):
    """What in the value is not of that kind, an annotation of one of the SDK's models."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        kinds = [each for each in inner if each is type(value)] or [each for each in inner if each is not type(None)]
        found = [list(wrong(value, each, path)) for each in kinds]
        yield from [] if [] in found else found[0]
    elif origin is list and isinstance(value, list):
        for number, each in enumerate(value):
            yield from wrong(each, inner[0], f"{path}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from wrong(each, inner[1], f"{path}.{key}")
    elif origin is typing.Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        if value not in (inner or [member.value for member in kind]):
            yield f"{path}: {value!r} is none of {kind}"
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind is not bool):
            yield f"{path}: {value!r} is no {kind.__name__}"
    elif isinstance(value, dict) and hasattr(kind, "from_json"):  # the SDK leaves some as they are
        yield from wrong(kind.from_json(value), kind, path)
    elif type(value).__module__.startswith("grafana_foundation_sdk."):
        for name, each in typing.get_type_hints(type(value)).items():
            yield from wrong(getattr(value, name), each, f"{path}.{name}")
    elif not isinstance(value, origin or kind):
        yield f"{path}: {value!r} is no {kind}"


register_default_plugins()
for file in sys.argv[1:]:
    with open(file) as text:
        board = json.load(text)
    model = Dashboard.from_json(board)
    for complaint in (
        *lost(board, json.loads(json.dumps(model, cls=JSONEncoder)), file),
        *wrong(model, Dashboard, file),
    ):
        print(complaint)
