"""A record of a dump in the shape of the API's answers, as far as the dump determines it.

Every rule here holds for every real answer that is known; where one does not, the field is absent.
data/dump_fields.md lists the fields, and the number of real answers in which each was right.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from lxml import etree

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


def convert(kind: str, record: etree._Element, skip: Collection[str] = ()) -> Document:
    """What the record's element says, without the fields that `skip` names."""
    document = _CONVERTERS[kind](record)
    videos = record.find("videos")
    if videos is not None and "videos" not in skip:
        document["videos"] = [_video(video) for video in videos]
    for name in skip:
        document.pop(name, None)
    return document


def _text(element: etree._Element, tag: str) -> str:
    """The text of a child; "" if there is none."""
    return element.findtext(tag) or ""


def _texts(element: etree._Element, tag: str) -> list[str]:
    """The texts of the children of a child, without empty ones."""
    found = element.find(tag)
    return [] if found is None else [child.text for child in found if child.text]


def _number(text: str | None) -> int:
    """The id that `text` spells; 0 if it spells none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0


def _put_texts(document: Document, record: etree._Element, *tags: str) -> None:
    """Copy the texts that are there; the API omits what is not."""
    for tag in tags:
        if text := record.findtext(tag):
            document[tag] = text


def _put_lists(document: Document, record: etree._Element, *tags: str) -> None:
    for tag in tags:
        if texts := _texts(record, tag):
            document[tag] = texts


def _video(video: etree._Element) -> Document:
    get = video.get
    found: Document = {"uri": get("src", ""), "title": _text(video, "title")}
    found["duration"] = _number(get("duration"))
    found["embed"] = get("embed") == "true"
    # Without one the API has null or "".
    _put_texts(found, video, "description")
    return found


def _credits(parent: etree._Element, tag: str) -> list[Document]:
    """The artists below a child; the last of them is joined to nothing, whatever the dump says."""
    found = parent.find(tag)
    if found is None:
        return []
    people = []
    for artist in found:
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
    texts = {child.tag: child.text or "" for child in track}
    position = texts.get("position", "")
    found: Document = {
        "duration": texts.get("duration", ""),
        "position": position,
        "title": texts.get("title", ""),
    }
    if "artists" in texts and (people := _credits(track, "artists")):
        found["artists"] = people
    if "extraartists" in texts and (people := _credits(track, "extraartists")):
        found["extraartists"] = people
    if "sub_tracks" in texts and (parts := [_track(part) for part in track.find("sub_tracks")]):
        found["sub_tracks"] = parts
        found["type_"] = "index"
    elif position:
        found["type_"] = "track"
    elif "artists" not in found and "extraartists" not in found:
        found["type_"] = "heading"
    return found


def _labels(record: etree._Element, tag: str, entity_type: str, name: str) -> list[Document]:
    found = record.find(tag)
    if found is None:
        return []
    labels = []
    for label in found:
        get = label.get
        number = _number(get("id"))
        labels.append(
            {
                "catno": get("catno", ""),
                "entity_type": entity_type,
                "entity_type_name": name,
                "id": number,
                "name": get("name", ""),
                "resource_url": f"{API}/labels/{number}" if number else "",
            }
        )
    return labels


def _companies(record: etree._Element) -> list[Document]:
    found = record.find("companies")
    if found is None:
        return []
    companies = []
    for company in found:
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
    if descriptions := _texts(item, "descriptions"):
        found["descriptions"] = descriptions
    return found


def _identifier(item: etree._Element) -> Document:
    get = item.get
    found: Document = {"type": get("type", ""), "value": get("value", "")}
    if description := get("description"):
        found["description"] = description
    return found


def _release(record: etree._Element) -> Document:
    number = _number(record.get("id"))
    artists = _credits(record, "artists")
    identifiers = record.find("identifiers")
    document: Document = {
        "id": number,
        "status": "Accepted",  # others are in no dump
        "resource_url": f"{API}/releases/{number}",
        "labels": _labels(record, "labels", "1", "Label"),
        "series": _labels(record, "series", "2", "Series"),
        "companies": _companies(record),
        "identifiers": [] if identifiers is None else [_identifier(item) for item in identifiers],
    }
    _put_texts(document, record, "title", "country", "released", "notes", "data_quality")
    _put_lists(document, record, "genres", "styles")
    if artists:
        document["artists"] = artists
        _put(document, "artists_sort", _sorted_name(artists))
    if extra := _credits(record, "extraartists"):
        document["extraartists"] = extra
    if (formats := record.find("formats")) is not None and len(formats):
        document["formats"] = [_format(item) for item in formats]
        _put(document, "format_quantity", _quantity(document["formats"]))
    if master := _number(record.findtext("master_id")):
        document["master_id"] = master
        document["master_url"] = f"{API}/masters/{master}"
    if (tracks := record.find("tracklist")) is not None and len(tracks):
        document["tracklist"] = [_track(track) for track in tracks]
    released = document.get("released", "")
    year = _YEAR.match(released)
    document["year"] = int(year[0]) if year else 0
    _put(document, "released_formatted", _formatted(released))
    _put(document, "uri", _uri("release", number, _credited(artists, document.get("title"))))
    return document


def _master(record: etree._Element) -> Document:
    number, main = _number(record.get("id")), _number(record.findtext("main_release"))
    artists = _credits(record, "artists")
    document: Document = {
        "id": number,
        "resource_url": f"{API}/masters/{number}",
        "versions_url": f"{API}/masters/{number}/versions",
        "year": _number(record.findtext("year")),
    }
    if main:
        document["main_release"] = main
        document["main_release_url"] = f"{API}/releases/{main}"
    if artists:
        document["artists"] = artists
    _put_texts(document, record, "title", "notes", "data_quality")
    _put_lists(document, record, "genres", "styles")
    _put(document, "uri", _uri("master", number, _credited(artists, document.get("title"))))
    return document


def _artist(record: etree._Element) -> Document:
    number = _number(record.findtext("id"))
    document: Document = {
        "id": number,
        "resource_url": f"{API}/artists/{number}",
        "releases_url": f"{API}/artists/{number}/releases",
        "profile": _text(record, "profile"),
    }
    _put_texts(document, record, "name", "realname", "data_quality")
    _put_lists(document, record, "urls", "namevariations")
    for tag in ("aliases", "members", "groups"):
        # In some years <members> also has the bare numbers, as <id>.
        if others := _others("artists", record.iterfind(f"{tag}/name")):
            document[tag] = others
    _put(document, "uri", _uri("artist", number, document.get("name")))
    return document


def _label(record: etree._Element) -> Document:
    number = _number(record.findtext("id"))
    document: Document = {
        "id": number,
        "resource_url": f"{API}/labels/{number}",
        "releases_url": f"{API}/labels/{number}/releases",
        "profile": _text(record, "profile"),
    }
    _put_texts(document, record, "name", "data_quality")
    _put_lists(document, record, "urls")
    _put(document, "contact_info", record.findtext("contactinfo"))
    if parents := _others("labels", record.iterfind("parentLabel")):
        document["parent_label"] = parents[0]
    if sublabels := _others("labels", record.iterfind("sublabels/label")):
        document["sublabels"] = sublabels
    name = document.get("name", "")
    # Whether a label's address has the number in brackets behind its name is not known.
    if not _NUMBERED.fullmatch(name):
        _put(document, "uri", _uri("label", number, name))
    return document


def _others(kind: str, elements: Iterable[etree._Element]) -> list[Document]:
    """Records that a record names, those without a number or a name left out."""
    found = []
    for element in elements:
        number = _number(element.get("id"))
        if number and element.text:
            url = f"{API}/{kind}/{number}"
            found.append({"id": number, "name": element.text, "resource_url": url})
    return found


def _put(document: Document, name: str, value: Any) -> None:
    if value:
        document[name] = value


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
    """The number of all media."""
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
    pieces = []
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
    """The address on the website; None if it cannot be told for certain."""
    slug = _DASHES.sub("-", _NO_SLUG.sub("", text or ""))[:_LONGEST_SLUG]
    if not slug.strip("-") or slug[0] == "-" or slug[-1] == "-":
        return None
    return f"{SITE}/{kind}/{number}-{slug}"


_CONVERTERS: dict[str, Callable[[etree._Element], Document]] = {
    "releases": _release,
    "artists": _artist,
    "labels": _label,
    "masters": _master,
}

_CREDIT = (
    "<artist><id>1</id><name>a</name><anv>a</anv><join>,</join><role>r</role><tracks>1</tracks>"
    "</artist>"
)
_VIDEOS = (
    '<videos><video src="u" duration="1" embed="true"><title>t</title>'
    "<description>d</description></video></videos>"
)
_TRACK = (
    "<position>1</position><title>t</title><duration>1:00</duration>"
    f"<artists>{_CREDIT}</artists><extraartists>{_CREDIT}</extraartists>"
)

# Of each kind a record that has every element: what is converted of it has every field.
FULLEST = {
    "releases": (
        f'<release id="1"><artists>{_CREDIT}</artists><title>t</title>'
        '<labels><label name="l" catno="1" id="1"/></labels>'
        '<series><series name="s" catno="1" id="1"/></series>'
        f"<extraartists>{_CREDIT}</extraartists>"
        '<formats><format name="CD" qty="1" text="t"><descriptions><description>d</description>'
        "</descriptions></format></formats><genres><genre>g</genre></genres>"
        "<styles><style>s</style></styles><country>c</country><released>1999-03-06</released>"
        "<notes>n</notes><data_quality>q</data_quality><master_id>1</master_id>"
        f"<tracklist><track>{_TRACK}<sub_tracks><track>{_TRACK}</track></sub_tracks></track>"
        "</tracklist>"
        '<identifiers><identifier type="t" description="d" value="v"/></identifiers>'
        f"{_VIDEOS}<companies><company><id>1</id><name>c</name><catno>1</catno>"
        "<entity_type>4</entity_type><entity_type_name>t</entity_type_name></company></companies>"
        "</release>"
    ),
    "artists": (
        "<artist><id>1</id><name>n</name><realname>r</realname><profile>p</profile>"
        "<data_quality>q</data_quality><urls><url>u</url></urls>"
        '<namevariations><name>n</name></namevariations><aliases><name id="1">n</name></aliases>'
        '<members><name id="1">n</name></members><groups><name id="1">n</name></groups></artist>'
    ),
    "labels": (
        "<label><id>1</id><name>n</name><contactinfo>c</contactinfo><profile>p</profile>"
        "<data_quality>q</data_quality><urls><url>u</url></urls>"
        '<parentLabel id="1">n</parentLabel><sublabels><label id="1">n</label></sublabels></label>'
    ),
    "masters": (
        f'<master id="1"><main_release>1</main_release><artists>{_CREDIT}</artists>'
        "<genres><genre>g</genre></genres><styles><style>s</style></styles><year>1999</year>"
        "<title>t</title><notes>n</notes><data_quality>q</data_quality>"
        f"{_VIDEOS}</master>"
    ),
}
