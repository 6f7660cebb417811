"""A record of a dump in the shape of the API's answers, as far as the dump determines it.

Every rule here holds for every real answer that is known; a field without such a rule is left out.
data/dump_fields.md lists the fields, and the number of real answers in which each was right.
"""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from lxml import etree

from discogs_crawler.records import KINDS

# Of each kind a record that has every element: what is converted of it has every field.
_EXAMPLES = Path(__file__).parents[1] / "data" / "dump"
FULLEST = {kind: (_EXAMPLES / f"{kind}.xml").read_text(encoding="utf-8") for kind in KINDS}

API = "https://api.discogs.com"
SITE = "https://www.discogs.com"

# Names of containers whose sum of quantities does not follow from the formats.
_UNCOUNTED = ("Box Set", "File")

# A quantity with more digits than this is a mistake; there are some with 60.
_QUANTITY = re.compile(r"[0-9]{1,9}", re.ASCII)

# The API cuts the readable part of an address here.
_LONGEST_SLUG = 100

_RELEASED = re.compile(r"([0-9]{4})(?:-([0-9]{2})-([0-9]{2}))?", re.ASCII)
_YEAR = re.compile(r"[0-9]{4}", re.ASCII)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NUMBERED = re.compile(r"(.*)( \([0-9]+\))", re.DOTALL | re.ASCII)
_NO_SLUG = re.compile(r"[^\w\s!-]")
_DASHES = re.compile(r"[\s-]+")

Document = dict[str, Any]
Children = dict[str, etree._Element]


def convert(kind: str, record: etree._Element, skip: Collection[str] = ()) -> Document:
    """The record as a document, without the fields that `skip` names."""
    children: Children = {child.tag: child for child in record}
    document = _CONVERTERS[kind](record, children)
    if "videos" in children and "videos" not in skip:
        document["videos"] = [_video(video) for video in children["videos"]]
    for name in skip:
        document.pop(name, None)
    return document


def _text(children: Children, tag: str) -> str:
    """The text of a child; "" if there is none."""
    child = children.get(tag)
    return "" if child is None else child.text or ""


def _texts(element: Iterable[etree._Element]) -> list[str]:
    """The texts of the children, without empty ones."""
    return [child.text for child in element if child.text]


def _number(text: str | None) -> int:
    """The id that `text` spells; 0 if it spells none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _put(document: Document, name: str, value: Any) -> None:
    """Set the field unless it is empty: the API omits those."""
    if value:
        document[name] = value


def _put_texts(document: Document, children: Children, *tags: str) -> None:
    for tag in tags:
        _put(document, tag, _text(children, tag))


def _put_lists(document: Document, children: Children, *tags: str) -> None:
    for tag in tags:
        _put(document, tag, _texts(children.get(tag, ())))


def _video(video: etree._Element) -> Document:
    get = video.get
    children: Children = {child.tag: child for child in video}
    found: Document = {"uri": get("src", ""), "title": _text(children, "title")}
    found["duration"] = _number(get("duration"))
    found["embed"] = get("embed") == "true"
    # Without one the API has null or "".
    _put_texts(found, children, "description")
    return found


def _credits(artists: Iterable[etree._Element]) -> list[Document]:
    """The artists credited; the last one's `join` is empty, whatever the dump says."""
    people = []
    for artist in artists:
        texts = {child.tag: child.text or "" for child in artist}
        number = _number(texts.get("id"))
        people.append(
            {
                "anv": texts.get("anv", ""),
                "id": number,
                "join": texts.get("join", ""),
                "name": texts.get("name", ""),
                "resource_url": f"{API}/artists/{number}" if number else "",
                "role": texts.get("role", ""),
                "tracks": texts.get("tracks", ""),
            }
        )
    if people:
        people[-1]["join"] = ""
    return people


def _track(track: etree._Element) -> Document:
    found: Document = {"duration": "", "position": "", "title": ""}
    for child in track:
        tag = child.tag
        if tag in found:
            found[tag] = child.text or ""
        elif tag in ("artists", "extraartists"):
            _put(found, tag, _credits(child))
        elif tag == "sub_tracks":
            _put(found, tag, [_track(part) for part in child])
    if "sub_tracks" in found:
        found["type_"] = "index"
    elif found["position"]:
        found["type_"] = "track"
    elif "artists" not in found and "extraartists" not in found:
        found["type_"] = "heading"
    return found


def _labels(elements: Iterable[etree._Element], entity_type: str, type_name: str) -> list[Document]:
    labels = []
    for label in elements:
        get = label.get
        number = _number(get("id"))
        labels.append(
            {
                "catno": get("catno", ""),
                "entity_type": entity_type,
                "entity_type_name": type_name,
                "id": number,
                "name": get("name", ""),
                "resource_url": f"{API}/labels/{number}" if number else "",
            }
        )
    return labels


def _companies(elements: Iterable[etree._Element]) -> list[Document]:
    companies = []
    for company in elements:
        texts = {child.tag: child.text or "" for child in company}
        number = _number(texts.get("id"))
        companies.append(
            {
                "catno": texts.get("catno", ""),
                "entity_type": texts.get("entity_type", ""),
                "entity_type_name": texts.get("entity_type_name", ""),
                "id": number,
                "name": texts.get("name", ""),
                "resource_url": f"{API}/labels/{number}" if number else "",
            }
        )
    return companies


def _format(item: etree._Element) -> Document:
    get = item.get
    found: Document = {"name": get("name", ""), "qty": get("qty", "")}
    if text := get("text"):
        found["text"] = text
    for child in item:
        _put(found, "descriptions", _texts(child))
    return found


def _identifier(item: etree._Element) -> Document:
    get = item.get
    found: Document = {"type": get("type", ""), "value": get("value", "")}
    if description := get("description"):
        found["description"] = description
    return found


def _release(record: etree._Element, children: Children) -> Document:
    get = children.get
    number = _number(record.get("id"))
    document: Document = {
        "id": number,
        "status": "Accepted",  # others are in no dump
        "resource_url": f"{API}/releases/{number}",
        "labels": _labels(get("labels", ()), "1", "Label"),
        "series": _labels(get("series", ()), "2", "Series"),
        "companies": _companies(get("companies", ())),
        "identifiers": [_identifier(item) for item in get("identifiers", ())],
    }
    _put_texts(document, children, "title", "country", "released", "notes", "data_quality")
    _put_lists(document, children, "genres", "styles")
    artists = _credits(get("artists", ()))
    _put(document, "artists", artists)
    _put(document, "artists_sort", _sorted_name(artists))
    _put(document, "extraartists", _credits(get("extraartists", ())))
    formats = [_format(item) for item in get("formats", ())]
    _put(document, "formats", formats)
    _put(document, "format_quantity", _quantity(formats))
    if master := _number(_text(children, "master_id")):
        document["master_id"] = master
        document["master_url"] = f"{API}/masters/{master}"
    _put(document, "tracklist", [_track(track) for track in get("tracklist", ())])
    released = document.get("released", "")
    year = _YEAR.match(released)
    document["year"] = int(year[0]) if year else 0
    _put(document, "released_formatted", _formatted(released))
    _put(document, "uri", _uri("release", number, _credited(artists, document.get("title"))))
    return document


def _master(record: etree._Element, children: Children) -> Document:
    number = _number(record.get("id"))
    document: Document = {
        "id": number,
        "resource_url": f"{API}/masters/{number}",
        "versions_url": f"{API}/masters/{number}/versions",
        "year": _number(_text(children, "year")),
    }
    if main := _number(_text(children, "main_release")):
        document["main_release"] = main
        document["main_release_url"] = f"{API}/releases/{main}"
    artists = _credits(children.get("artists", ()))
    _put(document, "artists", artists)
    _put_texts(document, children, "title", "notes", "data_quality")
    _put_lists(document, children, "genres", "styles")
    _put(document, "uri", _uri("master", number, _credited(artists, document.get("title"))))
    return document


def _artist(record: etree._Element, children: Children) -> Document:
    number = _number(_text(children, "id"))
    document: Document = {
        "id": number,
        "resource_url": f"{API}/artists/{number}",
        "releases_url": f"{API}/artists/{number}/releases",
        "profile": _text(children, "profile"),
    }
    _put_texts(document, children, "name", "realname", "data_quality")
    _put_lists(document, children, "urls", "namevariations")
    for tag in ("aliases", "members", "groups"):
        _put(document, tag, _others("artists", children.get(tag, ())))
    _put(document, "uri", _uri("artist", number, document.get("name")))
    return document


def _label(record: etree._Element, children: Children) -> Document:
    number = _number(_text(children, "id"))
    document: Document = {
        "id": number,
        "resource_url": f"{API}/labels/{number}",
        "releases_url": f"{API}/labels/{number}/releases",
        "profile": _text(children, "profile"),
    }
    _put_texts(document, children, "name", "data_quality")
    _put_lists(document, children, "urls")
    _put(document, "contact_info", _text(children, "contactinfo"))
    if "parentLabel" in children:
        for parent in _others("labels", [children["parentLabel"]]):
            document["parent_label"] = parent
    _put(document, "sublabels", _others("labels", children.get("sublabels", ())))
    name = document.get("name", "")
    # Whether a label's address has the number in brackets behind its name is not known.
    if not _NUMBERED.fullmatch(name):
        _put(document, "uri", _uri("label", number, name))
    return document


def _others(kind: str, elements: Iterable[etree._Element]) -> list[Document]:
    """Records that a record names; without an id they are only numbers, as in <members> of 2019."""
    found = []
    for element in elements:
        number = _number(element.get("id"))
        if number and element.text:
            url = f"{API}/{kind}/{number}"
            found.append({"id": number, "name": element.text, "resource_url": url})
    return found


def _formatted(released: str) -> str | None:
    """`1999-03-06` as `06 Mar 1999`, with what is not known (00) left out."""
    match = _RELEASED.fullmatch(released)
    if match is None:
        return None
    year, month, day = match[1], int(match[2] or 0), match[3] or "00"
    if month > len(_MONTHS) or int(day) > 31 or (not month and day != "00"):
        return None
    return " ".join([*([day] if day != "00" else []), *([_MONTHS[month - 1]] * (month > 0)), year])


def _quantity(formats: Iterable[Document]) -> int | None:
    """The number of all media; None if it is not known."""
    total = 0
    for item in formats:
        if item["name"] == "All Media":
            continue
        if item["name"] in _UNCOUNTED or not _QUANTITY.fullmatch(item["qty"]):
            return None
        total += int(item["qty"])
    return total


def _sorted_name(artists: list[Document]) -> str | None:
    """The names under which the artists are sorted, joined; None if that is not known."""
    pieces: list[str] = []
    for artist in artists:
        name, join = artist["name"], artist["join"]
        if name.startswith("The "):
            numbered = _NUMBERED.fullmatch(name)
            plain, number = (numbered[1], numbered[2]) if numbered else (name, "")
            name = f"{plain[4:]}, The{number}"
        pieces.append(name)
        if artist is artists[-1]:
            break
        if not join:
            return None
        pieces.append(", " if join == "," else f" {join} ")
    return "".join(pieces)


def _credited(artists: list[Document], title: str | None) -> str | None:
    """Artists as they are credited, and the title; None if the address is not known."""
    words = []
    for artist in artists:
        name = artist["anv"] or artist["name"]
        # Whether an address has the number that tells namesakes apart is not known.
        if _NUMBERED.fullmatch(name):
            return None
        words += [name, artist["join"]]
    return " ".join([*words, title]) if artists and title else None


def _uri(kind: str, number: int, text: str | None) -> str | None:
    """The address on the website; None if it is not certain."""
    slug = _DASHES.sub("-", _NO_SLUG.sub("", text or ""))[:_LONGEST_SLUG]
    if not slug.strip("-") or slug[0] == "-" or slug[-1] == "-":
        return None
    return f"{SITE}/{kind}/{number}-{slug}"


_CONVERTERS: dict[str, Callable[[etree._Element, Children], Document]] = {
    "releases": _release,
    "artists": _artist,
    "labels": _label,
    "masters": _master,
}
