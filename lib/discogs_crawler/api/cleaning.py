"""From an answer of the API to the bytes of a stored record: without what is volatile.

What rotates or moves with every visit (prices, counts, image addresses) would make a commit of
every fetch, and says nothing about the record. The rules are paths: names joined by dots, `*` in a
name for any letters, `**` for any number of levels; lists are stepped into, and `[]` may say so.
Unknown fields stay: whatever Discogs adds tomorrow is kept.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from discogs_crawler.api import exact_json
from discogs_crawler.config import Settings
from discogs_crawler.errors import BadData, ConfigurationError

# Raise it whenever the same answer is stored as other bytes; it is in every commit message.
CLEANER_VERSION = 1

# The first key of a record that came from a dump: which one. Records of the API have no such key.
DUMP = "_dump"

# Seen to change between captures of one record whose `date_changed` did not move, or derived from
# the marketplace.
VOLATILE = (
    "num_for_sale",
    "lowest_price",
    "estimated_weight",
    "blocked_from_sale",
    "videos",
    "community.have",
    "community.want",
    "community.rating",
    "thumb",
    "**.thumbnail_url",
    "images[].uri",
    "images[].uri150",
    "images[].resource_url",
)

VOLATILE_OF_KIND = {"masters": ("most_recent_release*",)}

# What Discogs's terms of use call restricted data and VOLATILE does not have already.
RESTRICTED = ("community.submitter", "community.contributors", "images")

_PATH = re.compile(r"([\w*?-]+(\[\])*\.)*(?!\*\*$)[\w*?-]+(\[\])*")

Patterns = frozenset[tuple[str, ...]]

_EVERYTHING: Patterns = frozenset({("*",)})


class Rules(NamedTuple):
    """Which fields of a record go; where both speak of a field, `keep` wins."""

    remove: Patterns
    keep: Patterns
    name: str
    """For a commit's message: the version, then how the settings differ from the defaults."""


def rules_for(settings: Settings, kind: str) -> Rules:
    """The rules for records of a kind; ConfigurationError names a path that cannot be one."""
    remove, keep = settings.remove_fields, settings.keep_fields
    rules = _rules(kind, settings.clean_preset, remove, keep)
    if () in _step(rules.remove, "id") and () not in _step(rules.keep, "id"):
        raise ConfigurationError("REMOVE_FIELDS must leave the id: every record needs it")
    _refuse_contradictions(remove, keep)
    return rules


def _rules(kind: str, preset: str, remove: Iterable[str], keep: Iterable[str]) -> Rules:
    paths = [*VOLATILE, *VOLATILE_OF_KIND.get(kind, ()), *remove]
    if preset == "public":
        paths += RESTRICTED
    name = [str(CLEANER_VERSION)]
    if preset != "default":
        name.append(preset)
    name += [f"-{path}" for path in sorted(remove)]
    name += [f"+{path}" for path in sorted(keep)]
    return Rules(_patterns("REMOVE_FIELDS", paths), _patterns("KEEP_FIELDS", keep), " ".join(name))


def _refuse_contradictions(remove: Iterable[str], keep: Iterable[str]) -> None:
    """ConfigurationError names a path to remove of which nothing would go, and what keeps it."""
    for path in remove:
        for other in keep:
            if not _removes(path, _patterns("", [path]), _patterns("", [other])):
                raise ConfigurationError(
                    f"REMOVE_FIELDS has {path} and KEEP_FIELDS has {other}, which keeps it:"
                    " take one of them out"
                )


@functools.lru_cache(maxsize=1_000)
def brought_back(name: str, rules: Rules, kind: str) -> tuple[str, ...]:
    """The fields that the rules of that name removed from records of a kind and `rules` keep.

    The name tells the settings; the lists above are taken as they are now, in every version.
    """
    words = name.split()[1:]
    removed, kept = ([word[1:] for word in words if word[0] == sign] for sign in "-+")
    before = _rules(kind, "public" if "public" in words else "default", removed, kept)
    fields = {*removed, *(word[1:] for word in rules.name.split() if word[0] == "+")}
    fields |= {*VOLATILE, *VOLATILE_OF_KIND.get(kind, ()), *RESTRICTED}
    return tuple(
        path
        for path in sorted(fields)
        if _removes(path, before.remove, before.keep)
        and not _removes(path, rules.remove, rules.keep)
    )


def _removes(path: str, remove: Patterns, keep: Patterns) -> bool:
    """Whether the field at a path goes; a wildcard in the path is taken for a name."""
    names = path.replace("[]", "").split(".")
    left: Any = None
    for name in reversed(names):
        left = {name: left}
    left = _prune(left, remove, keep)
    for name in names:
        if name not in left:
            return True
        left = left[name]
    return False


def prune(document: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """The document without the fields that the rules remove; where it is from, it always says."""
    pruned: dict[str, Any] = _prune(document, rules.remove, rules.keep)
    if DUMP in document:
        pruned[DUMP] = document[DUMP]
    return pruned


def clean(document: dict[str, Any], rules: Rules) -> bytes:
    """The bytes to store for a document that `exact_json.loads` gave; BadData if it is too deep."""
    try:
        return exact_json.dumps(prune(document, rules))
    except RecursionError as error:
        raise BadData("JSON nested too deeply") from error


def _patterns(setting: str, paths: Iterable[str]) -> Patterns:
    for path in paths:
        if not _PATH.fullmatch(path):
            raise ConfigurationError(f"{setting}: not a path of fields such as a.b[].c: {path!r}")
    return frozenset(tuple(path.replace("[]", "").split(".")) for path in paths)


@functools.lru_cache(maxsize=10_000)
def _step(patterns: Patterns, key: str) -> Patterns:
    """What is left of the patterns one level down, under `key`; `()` if one ends here."""
    rests = set()
    for pattern in patterns:
        here = pattern
        while here and here[0] == "**":
            rests.add(here)
            here = here[1:]
        if here and fnmatch.fnmatchcase(key, here[0]):
            rests.add(here[1:])
    return frozenset(rests)


def _prune(value: Any, remove: Patterns, keep: Patterns) -> Any:
    if isinstance(value, list):
        return [_prune(element, remove, keep) for element in value]
    if not isinstance(value, dict):
        return value
    left = {}
    for key, inner in value.items():
        kept, removed = _step(keep, key), _step(remove, key)
        if () in kept:
            left[key] = inner
        elif () not in removed:
            left[key] = _prune(inner, removed, kept)
        elif kept and isinstance(inner, dict | list):
            rescued = _prune(inner, _EVERYTHING, kept)
            if _holds_something(rescued):
                left[key] = rescued
    return left


def _holds_something(value: Any) -> bool:
    """Whether a field is left in a pruned object, or in an object of a pruned list."""
    if isinstance(value, list):
        return any(_holds_something(element) for element in value)
    return isinstance(value, dict) and bool(value)
