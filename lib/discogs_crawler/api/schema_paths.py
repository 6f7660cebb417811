"""Where an answer of the API differs from the schema: unknown and missing fields, other types.

It looks at most answers, so it costs next to nothing: most objects have one of a few combinations
of keys and types, and each combination is compared with the schema once.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from discogs_crawler.api.exact_json import Number

SCHEMAS = Path(__file__).parents[1] / "data" / "schema"

# Combinations of keys and types that are remembered for an object: a release has some 300.
MOST_SEEN = 2_000

# The types of JSON; that an integer has a fraction is not seen.
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (Number, int, float),
    "number": (Number, int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_NAMES = {of: name for name, types in _TYPES.items() for of in types}


class Field(NamedTuple):
    """What the schema says of a field."""

    types: frozenset[type]
    elements: frozenset[type]
    """of an array: the types of what is in it"""
    below: "Shape | None"
    """what it says of the object, or of the objects in the array"""


class _Look(NamedTuple):
    """What there is to know of an object with certain keys and types of values."""

    inner: tuple[tuple[str, Field], ...]
    """fields to look into"""
    odd: tuple[tuple[str, str], ...]
    """`unknown` or `missing`, and the field; one of another type is unknown: `year: string`"""


_NOTHING = _Look((), ())


class Shape:
    """What the schema says of an object."""

    def __init__(self) -> None:
        self.known: dict[str, Field] = {}
        self.always: frozenset[str] = frozenset()
        self.seen: dict[tuple[object, ...], _Look] = {}

    def look(self, value: dict[str, Any]) -> _Look:
        """Return what there is to know of an object with these keys and types."""
        combination = (*value, *map(type, value.values()))
        found = self.seen.get(combination)
        if found is None:
            found = self._look(value)
            if len(self.seen) < MOST_SEEN:
                self.seen[combination] = found
        return found

    def _look(self, value: dict[str, Any]) -> _Look:
        inner, odd = [], []
        for key, content in value.items():
            field = self.known.get(key)
            if field is None:
                odd.append(("unknown", key))
            elif type(content) not in field.types:
                odd.append(("unknown", f"{key}: {_NAMES[type(content)]}"))
            elif type(content) is list or (field.below and type(content) is dict):
                inner.append((key, field))
        odd += [("missing", key) for key in sorted(self.always.difference(value))]
        return _Look(tuple(inner), tuple(odd)) if inner or odd else _NOTHING


@functools.cache
def shape_of(kind: str) -> Shape:
    """Return what the schema says of the records of a kind, as the API sends them today."""
    schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_bytes())
    shapes: dict[str, Shape] = {}

    def shape(part: dict[str, Any]) -> Shape | None:
        """The shape of an object, or of the objects in an array; None for all else."""
        reference = part.get("$ref")
        if reference:
            name = reference.rpartition("/")[2]
            if name not in shapes:
                shapes[name] = Shape()
                fill(shapes[name], schema["$defs"][name])
            return shapes[name]
        if "items" in part:
            return shape(part["items"])
        return fill(Shape(), part) if "properties" in part else None

    def fill(shape_: Shape, part: dict[str, Any]) -> Shape:
        for name, inner in part["properties"].items():
            shape_.known[name] = Field(_types(inner), _types(inner.get("items", {})), shape(inner))
        shape_.always = frozenset(part.get("required", ())) | set(part.get("x-expected", ()))
        shape_.always |= set(part.get("else", {}).get("required", ()))
        return shape_

    return fill(Shape(), schema)


def _types(part: dict[str, Any]) -> frozenset[type]:
    """What the values may be."""
    names = part.get("type", "object")
    return frozenset(
        of for name in ([names] if isinstance(names, str) else names) for of in _TYPES[name]
    )


def differences(document: dict[str, Any], shape: Shape) -> set[tuple[str, str]]:
    """Return `unknown` or `missing` and the path, e.g. `tracklist[].extraartists[].role`.

    That of a value of a type that the schema lacks ends with the type: `genres[]: number`.
    """
    found: set[tuple[str, str]] = set()
    _compare(document, shape.look(document), "", found)
    return found


def _compare(value: dict[str, Any], look: _Look, path: str, found: set[tuple[str, str]]) -> None:
    for what, name in look.odd:
        found.add((what, path + name))
    for name, field in look.inner:
        content, below = value[name], field.below
        if below is None:
            if not field.elements.issuperset(map(type, content)):
                odd = {*map(type, content)} - field.elements
                found.update(("unknown", f"{path}{name}[]: {_NAMES[each]}") for each in odd)
        elif type(content) is dict:
            _compare(content, below.look(content), f"{path}{name}.", found)
        else:
            seen = below.seen
            for element in content:
                if type(element) is not dict:
                    found.add(("unknown", f"{path}{name}[]: {_NAMES[type(element)]}"))
                    continue
                # Most are as they should be, with nothing below: found out here, without a call.
                inside = seen.get((*element, *map(type, element.values())))
                if inside is not _NOTHING:
                    inside = inside or below.look(element)
                    _compare(element, inside, f"{path}{name}[].", found)
