"""What a dump says of the fields of real answers: the table in data/dump_fields.md.

No answer is known with a record of a dump of the same day. So each answer is spelled as the dump
would spell it, without what dumps leave out, and converted back: `python -m tests.dump_fields`.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from discogs_crawler.dumps import canonical, dump_json
from discogs_crawler.records import KINDS
from tests.conftest import SAMPLES

TARGET = Path(__file__).resolve().parents[1] / "lib/discogs_crawler/data/dump_fields.md"

HEAD = """\
# Fields of imported records

What `import_dump.py` makes of a dump, held against real answers of the API: in how many of them a
field has the same value (right), another one (wrong), or is not there although the dump has what it
is made of (not there: an answer from before the API had the field). `today`: answers that give
addresses in today's form. A field that is not listed is in no dump, or does not follow from it for
certain: community, date_added, date_changed, images, thumb, num_for_sale, lowest_price,
blocked_from_sale, is_offensive, estimated_weight; a master's tracklist and most_recent_release;
whether a member is active. Left out, too, where it does not follow: `uri` if an artist or label has
a number in brackets, `format_quantity` with a box set or files, `type_` of a track that has credits
but no position, `artists_sort` where artists are joined by nothing.

"""

Document = dict[str, Any]


def captures(kind: str) -> Iterator[tuple[Path, Document]]:
    for path in sorted((SAMPLES / kind).glob("*.json")):
        yield path, json.loads(path.read_bytes())


def is_of_today(kind: str, document: Document) -> bool:
    return document["uri"].startswith(f"https://www.discogs.com/{kind[:-1]}/{document['id']}-")


def _element(tag: str, text: object) -> str:
    return f"<{tag}>{escape(str(text), {chr(13): '&#13;'})}</{tag}>" if text else ""


def _attributes(item: Document, *names: str) -> str:
    return "".join(
        f" {name}={quoteattr(str(item[name]), {chr(13): '&#13;'})}"
        for name in names
        if item.get(name)
    )


def _list(tag: str, pieces: list[str]) -> str:
    return f"<{tag}>{''.join(pieces)}</{tag}>" if pieces else ""


def _texts(document: Document, tag: str, item: str) -> str:
    return _list(tag, [_element(item, text) for text in document.get(tag, [])])


def _credits(parent: Document, tag: str) -> str:
    names = ("id", "name", "anv", "join", "role", "tracks")
    return _list(
        tag,
        [
            _list("artist", [_element(name, person[name]) for name in names])
            for person in parent.get(tag, [])
        ],
    )


def _track(track: Document) -> str:
    pieces = [_element(name, track[name]) for name in ("position", "title", "duration")]
    pieces += [_credits(track, "artists"), _credits(track, "extraartists")]
    pieces.append(_list("sub_tracks", [_track(part) for part in track.get("sub_tracks", [])]))
    return f"<track>{''.join(pieces)}</track>"


def _videos(document: Document) -> str:
    videos = [
        f"<video{_attributes(video | {'src': video['uri']}, 'src', 'duration')} "
        f'embed="{str(video["embed"]).lower()}">{_element("title", video["title"])}'
        f"{_element('description', video['description'])}</video>"
        for video in document.get("videos", [])
    ]
    return _list("videos", videos)


def _others(document: Document, tag: str, item: str) -> str:
    return _list(
        tag,
        [
            f"<{item}{_attributes(other, 'id')}>{escape(other['name'])}</{item}>"
            for other in document.get(tag, [])
            if isinstance(other, dict)
        ],
    )


def _release(d: Document) -> str:
    labels = {
        tag: [f"<{item}{_attributes(label, 'name', 'catno', 'id')}/>" for label in d[tag]]
        for tag, item in (("labels", "label"), ("series", "series"))
    }
    formats = [
        f"<format{_attributes(item, 'name', 'qty', 'text')}>"
        f"{_texts(item, 'descriptions', 'description')}</format>"
        for item in d["formats"]
    ]
    identifiers = [
        f"<identifier{_attributes(item, 'type', 'description', 'value')}/>"
        for item in d["identifiers"]
    ]
    names = ("id", "name", "catno", "entity_type", "entity_type_name")
    companies = [
        _list("company", [_element(name, company[name]) for name in names])
        for company in d["companies"]
    ]
    return (
        f'<release id="{d["id"]}">{_credits(d, "artists")}{_element("title", d["title"])}'
        f"{_list('labels', labels['labels'])}{_list('series', labels['series'])}"
        f"{_credits(d, 'extraartists')}{_list('formats', formats)}"
        f"{_texts(d, 'genres', 'genre')}{_texts(d, 'styles', 'style')}"
        + "".join(_element(n, d.get(n)) for n in ("country", "released", "notes", "data_quality"))
        + f"<master_id>{d.get('master_id', 0)}</master_id>"
        f"{_list('tracklist', [_track(track) for track in d['tracklist']])}"
        f"{_list('identifiers', identifiers)}{_videos(d)}{_list('companies', companies)}</release>"
    )


def _artist(d: Document) -> str:
    return (
        "<artist>"
        + "".join(_element(n, d.get(n)) for n in ("id", "name", "realname", "profile"))
        + f"{_element('data_quality', d.get('data_quality'))}{_texts(d, 'urls', 'url')}"
        f"{_texts(d, 'namevariations', 'name')}"
        + "".join(_others(d, tag, "name") for tag in ("aliases", "members", "groups"))
        + "</artist>"
    )


def _label(d: Document) -> str:
    parent = d.get("parent_label")
    contact = d.get("contact_info") or d.get("contactinfo")
    above = (
        f"<parentLabel{_attributes(parent, 'id')}>{escape(parent['name'])}</parentLabel>"
        if parent
        else ""
    )
    return (
        f"<label>{_element('id', d['id'])}{_element('name', d['name'])}"
        f"{_element('contactinfo', contact)}{_element('profile', d['profile'])}"
        f"{_element('data_quality', d['data_quality'])}{_texts(d, 'urls', 'url')}{above}"
        f"{_others(d, 'sublabels', 'label')}</label>"
    )


def _master(d: Document) -> str:
    return (
        f'<master id="{d["id"]}">{_element("main_release", d["main_release"])}'
        f"{_credits(d, 'artists')}{_texts(d, 'genres', 'genre')}{_texts(d, 'styles', 'style')}"
        f"<year>{d['year']}</year>"
        + "".join(_element(name, d.get(name)) for name in ("title", "notes", "data_quality"))
        + f"{_videos(d)}</master>"
    )


_SPELLERS = {"releases": _release, "artists": _artist, "labels": _label, "masters": _master}


def converted(kind: str, document: Document) -> Document:
    """The answer after a way through the dump."""
    spelled = _SPELLERS[kind](document).encode()
    return dump_json.convert(kind, canonical.parse(spelled, kind))


def compared(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths of fields, and how what was converted stands to the answer."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name, value in left.items():
            below = f"{path}.{name}".lstrip(".")
            if name not in right:
                yield below, "not there"
            else:
                yield from compared(value, right[name], below)
    elif isinstance(left, list) and isinstance(right, list) and any(map(_is_object, left + right)):
        if len(left) != len(right):
            yield path, "wrong"
            return
        for one, other in zip(left, right, strict=True):
            yield from compared(one, other, path + "[]")
    else:
        yield path, "right" if left == right and type(left) is type(right) else "wrong"


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def counted(kind: str) -> dict[str, Counter[str]]:
    """By path, the number of answers in which the field is as it should be, and is not."""
    found: dict[str, Counter[str]] = {}
    for _, document in captures(kind):
        worst: dict[str, str] = {}
        for path, verdict in compared(converted(kind, document), document):
            if worst.get(path) != "wrong":
                worst[path] = verdict
        for path, verdict in worst.items():
            counts = found.setdefault(path, Counter())
            counts[verdict] += 1
            counts[f"{verdict} today"] += is_of_today(kind, document)
    return found


def table() -> str:
    lines = [HEAD.rstrip()]
    for kind in KINDS:
        answers = [document for _, document in captures(kind)]
        today = sum(is_of_today(kind, document) for document in answers)
        lines += ["", f"## {kind}: {len(answers)} answers, {today} of today's form", ""]
        lines += ["| field | right | wrong | not there | right today | wrong today |"]
        lines += ["|---|---|---|---|---|---|"]
        columns = ("right", "wrong", "not there", "right today", "wrong today")
        for path, counts in sorted(counted(kind).items()):
            lines.append(f"| `{path}` | " + " | ".join(str(counts[c]) for c in columns) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table()
    if "--write" in sys.argv:
        TARGET.write_text(text)
    print(text, end="")
