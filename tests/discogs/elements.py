"""A record as XML, in the serialisation of any era of the dumps.

The eras differ in bytes, never in what the record says.
"""

from typing import NamedTuple

from tests.discogs.invent import Credit, Facts

SINGULAR = {"releases": "release", "artists": "artist", "labels": "label", "masters": "master"}

Attributes = tuple[tuple[str, str], ...]


class Element(NamedTuple):
    """A tag, its attributes in today's order, and what is in it: text or elements."""

    tag: str
    attributes: Attributes
    content: "str | list[Element]"


class Era(NamedTuple):
    """How the dumps of a time were written."""

    status: str
    """Where a release's `status` attribute stands: `first`, `last`, or empty for nowhere."""
    images: bool
    image_uris: bool
    sorted_attributes: bool
    empty: str
    """What an empty element looks like: `pair` (<a></a>), `single` (<a/>), `omitted`."""
    indented: bool = False


ERAS = {
    "2014": Era("first", True, True, True, "pair"),
    "2019": Era("last", True, False, True, "pair"),
    "2020": Era("last", True, False, False, "single"),
    "2025": Era("last", False, False, False, "omitted"),
    "2026": Era("", False, False, False, "omitted"),
    "2026-indented": Era("", False, False, False, "omitted", indented=True),
}
TODAY = "2026"


def record(kind: str, facts: Facts, videos: list[Facts]) -> Element:
    """The element of a record; images and empty elements are there, for those eras that show."""
    return _MAKERS[kind](facts, videos)


def serialise(element: Element, era: Era) -> str:
    """The record as it stands in a dump of that era, with the line feed after it."""
    pieces: list[str] = []
    if era.status and element.tag == "release":
        status = ("status", "Accepted")
        both = (
            (status, *element.attributes)
            if era.status == "first"
            else (*element.attributes, status)
        )
        pieces.append(_start(element.tag, both, sort=False))
        for child in element.content:
            _write(child, era, pieces.append, 2)  # type: ignore[arg-type]
        pieces.append(f"{_line(era, 1)}</{element.tag}>")
        head = _line(era, 1)[1:]
        return head + "".join(pieces) + "\n"
    _write(element, era, pieces.append, 1)
    return "".join(pieces).removeprefix("\n") + "\n"


def _line(era: Era, depth: int) -> str:
    return "\n" + "\t" * depth if era.indented else ""


def _write(element: Element, era: Era, write, depth: int) -> None:  # type: ignore[no-untyped-def]
    tag, attributes, content = element
    if tag == "images" and not era.images:
        return
    if tag == "image":
        attributes = _image(attributes, era)
    if not content and not attributes and era.empty == "omitted":
        return
    start = _start(tag, attributes, sort=era.sorted_attributes)
    if era.indented:
        write("\n" + "\t" * depth)
    if not content:
        write(f"{start}</{tag}>" if era.empty == "pair" else f"{start[:-1]}/>")
    elif isinstance(content, str):
        write(f"{start}{escape(content)}</{tag}>")
    else:
        write(start)
        for child in content:
            _write(child, era, write, depth + 1)
        write(f"{_line(era, depth)}</{tag}>")


def _start(tag: str, attributes: Attributes, *, sort: bool) -> str:
    if not attributes:
        return f"<{tag}>"
    pairs = sorted(attributes) if sort else attributes
    return f"<{tag} " + " ".join(f'{name}="{_quoted(value)}"' for name, value in pairs) + ">"


def _image(attributes: Attributes, era: Era) -> Attributes:
    if era.image_uris:
        return attributes
    return tuple((name, "" if name.startswith("uri") else value) for name, value in attributes)


def escape(text: str) -> str:
    if "&" in text or "<" in text or ">" in text:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\r", "&#13;") if "\r" in text else text


def _quoted(value: str) -> str:
    return escape(value).replace('"', "&quot;").replace("\n", "&#10;")


def _all(tag: str, item: str, texts: list[str]) -> Element:
    return Element(tag, (), [Element(item, (), text) for text in texts])


def _texts(facts: Facts, *names: str) -> list[Element]:
    return [Element(name, (), str(facts[name] or "")) for name in names]


def _credits(tag: str, credited: list[Credit]) -> Element:
    return Element(tag, (), [_credit(credit) for credit in credited])


def _credit(credit: Credit) -> Element:
    fields = (str(credit.id) if credit.id else "", *credit[1:])
    return Element(
        "artist", (), [Element(tag, (), text) for tag, text in zip(_CREDIT, fields, strict=True)]
    )


_CREDIT = ("id", "name", "anv", "join", "role", "tracks")


def _images(facts: Facts) -> Element:
    letter = "R"
    found = []
    for number, (kind, width, height) in enumerate(facts["images"], 1):
        uri = f"https://img.example/{letter}-{facts['id']}-{number}.jpeg"
        pairs = [("type", kind), ("uri", uri), ("uri150", uri.replace("R-", "R-150-"))]
        pairs += [("width", str(width)), ("height", str(height))]
        found.append(Element("image", tuple(pairs), ""))
    return Element("images", (), found)


def _videos(videos: list[Facts]) -> Element:
    found = []
    for video in videos:
        embed = str(video["embed"]).lower()
        pairs = (("src", video["uri"]), ("duration", str(video["duration"])), ("embed", embed))
        found.append(Element("video", pairs, _texts(video, "title", "description")))
    return Element("videos", (), found)


def _tracklist(tag: str, tracks: list[Facts]) -> Element:
    return Element(tag, (), [_track(track) for track in tracks])


def _track(track: Facts) -> Element:
    content = _texts(track, "position", "title", "duration")
    for name in ("artists", "extraartists"):
        if name in track:
            content.append(_credits(name, track[name]))
    if "sub_tracks" in track:
        content.append(_tracklist("sub_tracks", track["sub_tracks"]))
    return Element("track", (), content)


def _label_of(tag: str, label: Facts) -> Element:
    return Element(
        tag, (("name", label["name"]), ("catno", label["catno"]), ("id", str(label["id"]))), ""
    )


def _format(item: Facts) -> Element:
    attributes = (("name", item["name"]), ("qty", item["qty"]), ("text", item["text"]))
    return Element(
        "format", attributes, [_all("descriptions", "description", item["descriptions"])]
    )


def _company(company: Facts) -> Element:
    named = [Element("id", (), str(company["id"]))]
    named += _texts(company, "name", "catno", "entity_type", "entity_type_name")
    return Element("company", (), named)


def _identifier(identifier: Facts) -> Element:
    names = ("type", "description", "value")
    pairs = tuple((name, identifier[name]) for name in names if name in identifier)
    return Element("identifier", pairs, "")


def _release(facts: Facts, videos: list[Facts]) -> Element:
    main = str(facts["is_main_release"]).lower()
    has_master = facts["master_id"] > 0
    master = Element(
        "master_id",
        (("is_main_release", main),) if has_master else (),
        str(facts["master_id"]) if has_master else "0",
    )
    return Element(
        "release",
        (("id", str(facts["id"])),),
        [
            _images(facts),
            _credits("artists", facts["artists"]),
            *_texts(facts, "title"),
            Element("labels", (), [_label_of("label", label) for label in facts["labels"]]),
            Element("series", (), [_label_of("series", label) for label in facts["series"]]),
            _credits("extraartists", facts["extraartists"]),
            Element("formats", (), [_format(item) for item in facts["formats"]]),
            _all("genres", "genre", facts["genres"]),
            _all("styles", "style", facts["styles"]),
            *_texts(facts, "country", "released", "notes", "data_quality"),
            master,
            _tracklist("tracklist", facts["tracklist"]),
            Element("identifiers", (), [_identifier(item) for item in facts["identifiers"]]),
            _videos(videos),
            Element("companies", (), [_company(company) for company in facts["companies"]]),
        ],
    )


def _named(tag: str, item: str, people: "list[tuple[int, str]]") -> Element:
    return Element(
        tag, (), [Element(item, (("id", str(number)),), name) for number, name in people]
    )


def _artist(facts: Facts, videos: list[Facts]) -> Element:
    return Element(
        "artist",
        (),
        [
            _images(facts),
            *_texts(facts, "id", "name", "realname", "profile", "data_quality"),
            _all("urls", "url", facts["urls"]),
            _all("namevariations", "name", facts["namevariations"]),
            *(_named(tag, "name", facts[tag]) for tag in ("aliases", "members", "groups")),
        ],
    )


def _label(facts: Facts, videos: list[Facts]) -> Element:
    parent = facts["parent_label"]
    above = [Element("parentLabel", (("id", str(parent[0])),), parent[1])] if parent else []
    return Element(
        "label",
        (),
        [
            _images(facts),
            *_texts(facts, "id", "name"),
            Element("contactinfo", (), facts["contact_info"]),
            *_texts(facts, "profile", "data_quality"),
            _all("urls", "url", facts["urls"]),
            *above,
            _named("sublabels", "label", facts["sublabels"]),
        ],
    )


def _master(facts: Facts, videos: list[Facts]) -> Element:
    return Element(
        "master",
        (("id", str(facts["id"])),),
        [
            *_texts(facts, "main_release"),
            _images(facts),
            _credits("artists", facts["artists"]),
            _all("genres", "genre", facts["genres"]),
            _all("styles", "style", facts["styles"]),
            Element("year", (), str(facts["year"])),
            *_texts(facts, "title", "notes", "data_quality"),
            _videos(videos),
        ],
    )


_MAKERS = {"releases": _release, "artists": _artist, "labels": _label, "masters": _master}
