"""Where an answer of the API differs from the schema: unknown fields, and missing ones.

It looks at every answer, so it costs next to nothing: most objects have one of a few combinations
of keys, and each combination is compared with the schema once.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

SCHEMAS = Path(__file__).parents[1] / "data" / "schema"

# Combinations of keys that are remembered for an object: a release has some 300.
MOST_SEEN = 2_000


class _Look(NamedTuple):
    """What there is to know of an object with certain keys."""

    inner: tuple[tuple[str, "Shape"], ...]
    """fields to look into"""
    odd: tuple[tuple[str, str], ...]
    """`unknown` or `missing`, and the field"""


_NOTHING = _Look((), ())


class Shape:
    """What the schema says of an object."""

    def __init__(self) -> None:
        self.known: dict[str, Shape | None] = {}
        self.always: frozenset[str] = frozenset()
        self._seen: dict[tuple[str, ...], _Look] = {}

    def look(self, keys: tuple[str, ...]) -> _Look:
        """Return what there is to know of an object with these keys."""
        found = self._seen.get(keys)
        if found is None:
            inner = [(key, shape) for key in keys if (shape := self.known.get(key))]
            odd = [("unknown", key) for key in keys if key not in self.known]
            odd += [("missing", key) for key in sorted(self.always.difference(keys))]
            found = _Look(tuple(inner), tuple(odd)) if inner or odd else _NOTHING
            if len(self._seen) < MOST_SEEN:
                self._seen[keys] = found
        return found


@functools.cache
def shape_of(kind: str) -> Shape:
    """Return what the schema says of the records of a kind, as the API sends them today."""
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_bytes())
    shapes: dict[str, Shape] = {}

    def read(part: dict[str, Any]) -> Shape | None:
        """The shape of an object, or of the objects in an array; None for all else."""
        reference = part.get("$ref")
        if reference:
            name = reference.rpartition("/")[2]
            if name not in shapes:
                shapes[name] = Shape()
                fill(shapes[name], schema["$defs"][name])
            return shapes[name]
        if "items" in part:
            return read(part["items"])
        return fill(Shape(), part) if "properties" in part else None

    def fill(shape: Shape, part: dict[str, Any]) -> Shape:
        shape.known = {name: read(inner) for name, inner in part["properties"].items()}
        shape.always = frozenset(part.get("required", ())) | set(part.get("x-expected", ()))
        shape.always |= set(part.get("else", {}).get("required", ()))
        return shape

    return fill(Shape(), schema)


def differences(document: dict[str, Any], shape: Shape) -> set[tuple[str, str]]:
    """Return `unknown` or `missing` and the path, e.g. `tracklist[].extraartists[].role`."""
    found: set[tuple[str, str]] = set()
    _compare(document, shape, "", found)
    return found


def _compare(value: Any, shape: Shape, path: str, found: set[tuple[str, str]]) -> None:
    if isinstance(value, list):
        path += "[]"
        for element in value:
            # Most are as they should be, with nothing below: found out here, without a call.
            if type(element) is not dict or shape.look(tuple(element)) is not _NOTHING:
                _compare(element, shape, path, found)
    elif isinstance(value, dict):
        inner, odd = shape.look(tuple(value))
        start = f"{path}." if path else ""
        for what, name in odd:
            found.add((what, start + name))
        for name, below in inner:
            _compare(value[name], below, start + name, found)
