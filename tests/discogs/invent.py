"""What lasts of a record: invented from (kind, id, version), always the same.

Any two versions of a record differ. The API and the dumps are made from this, so they agree.
"""

import functools
import random
from typing import Any, NamedTuple

Facts = dict[str, Any]

SYLLABLES = (
    "ba be bi bo da de do du fa fi ga go ha ka ki ko la le li lo ma me mi mo na ne no nu pa pe po "
    "ra re ri ro sa se si so ta te ti to va vi wo xa ya zo bör dæ fré gö jåk łu mün ñan só šo žu"
)
PLAIN_WORDS = (
    "night river machine summer signal glass station echo silver garden motion paper island winter "
    "radio shadow copper harbour static meadow pulse orbit velvet lantern canyon mirror engine "
    "north ember tide field drift granite bridge window comet valley hollow marble thunder"
)
ENDINGS = (
    "",
    "",
    "",
    " & Co.",
    " Orchestra",
    " <3",
    ' "Live"',
    " (2)",
    "’s Band",
    " 音楽",
    " Trio",
)
GENRES = ("Electronic", "Rock", "Jazz", "Folk, World, & Country", "Hip Hop", "Classical", "Pop")
STYLES = ("House", "Techno", "Ambient", "Punk", "Bop", "Synth-pop", "Drum n Bass", "Ballad", "Dub")
ROLES = ("Producer", "Written-By", "Mixed By", "Vocals", "Bass Guitar", "Artwork [Cover]", "Remix")
COUNTRIES = (
    "US",
    "UK",
    "Germany",
    "Japan",
    "Sweden",
    "Netherlands",
    "France",
    "Brazil",
    "Côte d'Ivoire",
)
QUALITIES = ("Needs Vote", "Needs Vote", "Correct", "Complete and Correct", "Needs Minor Changes")
COMPANY_ROLES = (
    (4, "Record Company"),
    (13, "Phonographic Copyright (p)"),
    (14, "Copyright (c)"),
    (17, "Pressed By"),
    (23, "Recorded At"),
    (29, "Mastered At"),
)
FORMATS = (("Vinyl", ("LP", "Album")), ("Vinyl", ('12"', "33 ⅓ RPM")), ("CD", ("Album",)))

_SYLLABLES, _WORDS = SYLLABLES.split(), PLAIN_WORDS.split()

# So many are named in records: few enough for their names to be remembered.
ARTISTS, LABELS = 40_000, 10_000

# Credits without an artist of their own: 17 of 1,000 in the dumps.
UNLINKED = 0.017


class Credit(NamedTuple):
    """An artist as a release names it."""

    id: int
    name: str
    anv: str = ""
    join: str = ""
    role: str = ""
    tracks: str = ""


def facts(kind: str, record_id: int, version: int = 1) -> Facts:
    """All that lasts of the record; the same for the same arguments, on every machine."""
    record = _INVENTORS[kind](_chance(kind, record_id), record_id)
    if version > 1:
        _edit(record, kind, record_id, version)
    return record


def videos(kind: str, record_id: int, edition: int) -> list[Facts]:
    """The videos of a release or master, which users change without any other edit."""
    chance = _chance("videos", record_id * 1_000 + edition)
    name = name_of(kind, record_id)
    return [
        {
            "uri": f"https://www.youtube.com/watch?v={_letters(chance, 11)}",
            "title": f"{name} - {title(chance)}",
            "description": _text(chance, chance.randrange(4, 40), "\n") if number else None,
            "duration": chance.randrange(60, 600),
            "embed": chance.random() < 0.97,
        }
        for number in range(edition % 2 + chance.randrange(6))
    ]


@functools.lru_cache(maxsize=100_000)
def name_of(kind: str, record_id: int) -> str:
    """The name of an artist or label, or the title of a release or master."""
    chance = random.Random(record_id * 7 + len(kind))
    name = "".join(chance.choices(_SYLLABLES, k=2 + record_id % 3)).capitalize()
    if chance.random() < 0.6:
        name += " " + "".join(chance.choices(_SYLLABLES, k=2)).capitalize()
    return name + chance.choice(ENDINGS)


def title(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=1 + chance.randrange(4))).title()


def _chance(kind: str, number: int) -> random.Random:
    return random.Random(f"{kind} {number}")


def _letters(chance: random.Random, count: int) -> str:
    return "".join(
        chance.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789_-", k=count)
    )


def _text(chance: random.Random, words: int, line_end: str) -> str:
    pieces = chance.choices(_WORDS, k=words)
    for place in range(7, words, 9):
        pieces[place] += "." + line_end
    return " ".join(pieces).capitalize() + (
        "." if words % 2 else ' [a=Nobody] & "friends" <at> home'
    )


def _edit(record: Facts, kind: str, record_id: int, version: int) -> None:
    """Make the record what it is after `version - 1` edits."""
    chance = _chance(kind, record_id * 10_000 + version)
    field = "notes" if kind in ("releases", "masters") else "profile"
    before = record.get(field) or ""
    record[field] = f"{before}\n\nEdit {version}: {_text(chance, 6, ' ')}".strip()
    record["data_quality"] = chance.choice(QUALITIES)
    if kind == "releases":
        record["date_changed"] = _date(2020 + version % 7, record_id + version)
        record["tracklist"][0]["title"] = title(chance)
        record["contributors"] = [*record["contributors"], f"editor_{version}"]


def _date(year: int, number: int) -> str:
    zone = "-07:00" if 4 <= number % 12 + 1 <= 10 else "-08:00"
    return (
        f"{year}-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
        f"T{number % 24:02d}:{number % 60:02d}:{number * 7 % 60:02d}{zone}"
    )


def _credit(chance: random.Random, role: str = "", join: str = "") -> Credit:
    if role and chance.random() < UNLINKED:
        return Credit(0, title(chance), role=role)
    artist = chance.randrange(1, ARTISTS)
    name = name_of("artists", artist)
    anv = name.split(" ")[0] if chance.random() < 0.2 else ""
    tracks = "1 to 3, 5" if role and chance.random() < 0.05 else ""
    return Credit(artist, name, anv, join, role, tracks)


def _credits(chance: random.Random, count: int) -> list[Credit]:
    return [_credit(chance, role=chance.choice(ROLES)) for _ in range(count)]


def _artists(chance: random.Random) -> list[Credit]:
    if chance.random() < 0.85:
        return [_credit(chance)]
    return [_credit(chance, join=chance.choice(("&", ",", "Featuring"))), _credit(chance)]


def _images(chance: random.Random) -> list[tuple[str, int, int]]:
    count = chance.randrange(5)
    kinds = ["primary"] + ["secondary"] * 4
    return [(kinds[number], 600, chance.randrange(400, 601)) for number in range(count)]


def _tracks(chance: random.Random) -> list[Facts]:
    tracks = [_track(chance, str(number)) for number in range(1, 3 + chance.randrange(10))]
    if chance.random() < 0.08:
        heading = {"position": "", "type_": "heading", "title": title(chance), "duration": ""}
        tracks.insert(0, heading)
    if chance.random() < 0.04:
        parts = [_track(chance, f"{len(tracks)}.{part}") for part in (1, 2)]
        index = {"position": "", "type_": "index", "title": title(chance), "duration": ""}
        tracks.append(index | {"sub_tracks": parts})
    return tracks


def _track(chance: random.Random, position: str) -> Facts:
    seconds = chance.randrange(90, 600)
    track: Facts = {
        "position": position,
        "type_": "track",
        "title": title(chance),
        "duration": f"{seconds // 60}:{seconds % 60:02d}" if seconds % 10 else "",
    }
    what = chance.random()
    if what < 0.1:
        track["artists"] = [_credit(chance)]
    elif what < 0.25:
        track["extraartists"] = _credits(chance, 1 + chance.randrange(3))
    return track


def _label(chance: random.Random, role: tuple[int, str] = (1, "Label"), catno: str = "") -> Facts:
    label = chance.randrange(1, LABELS)
    return {
        "id": label,
        "name": name_of("labels", label),
        "catno": catno,
        "entity_type": str(role[0]),
        "entity_type_name": role[1],
    }


def _format(chance: random.Random) -> Facts:
    name, descriptions = chance.choice(FORMATS)
    text = "180 Gram" if chance.random() < 0.1 else ""
    return {
        "name": name,
        "qty": str(1 + chance.randrange(2)),
        "descriptions": descriptions,
        "text": text,
    }


def _identifiers(chance: random.Random) -> list[Facts]:
    found: list[Facts] = []
    if chance.random() < 0.5:
        found.append({"type": "Barcode", "value": str(chance.randrange(10**12))})
    for side in "AB"[: chance.randrange(3)]:
        value = f"{_letters(chance, 6)} {side}1"
        found.append({"type": "Matrix / Runout", "value": value, "description": f"Side {side}"})
    return found


def _release(chance: random.Random, record_id: int) -> Facts:
    year = chance.choice((0, *range(1960, 2026)))
    styles = chance.sample(STYLES, 1 + chance.randrange(3))
    return {
        "id": record_id,
        "title": name_of("releases", record_id),
        "artists": _artists(chance),
        "labels": [
            _label(chance, catno=f"{_letters(chance, 3).upper()} {chance.randrange(999):03d}")
        ],
        "series": [_label(chance, (2, "Series"), "Vol. 1")] if chance.random() < 0.05 else [],
        "extraartists": _credits(chance, chance.choice((0, 0, 1, 2, 3, 5, 8))),
        "formats": [_format(chance)],
        "genres": [chance.choice(GENRES)],
        "styles": styles,
        "country": chance.choice(COUNTRIES) if chance.random() < 0.97 else None,
        "year": year,
        "released": f"{year}-{chance.choice(('00-00', '05-14', '11-00'))}" if year else "",
        "notes": _text(chance, chance.randrange(1, 60), "\r\n" if record_id % 5 == 0 else "\n")
        if chance.random() < 0.8
        else "",
        "data_quality": chance.choice(QUALITIES),
        "master_id": chance.randrange(1, 3_000_000) if chance.random() < 0.8 else 0,
        "is_main_release": chance.random() < 0.4,
        "tracklist": _tracks(chance),
        "identifiers": _identifiers(chance),
        "companies": [
            _label(chance, role) for role in chance.sample(COMPANY_ROLES, chance.randrange(4))
        ],
        "images": _images(chance),
        "date_added": _date(2003 + record_id % 20, record_id),
        "date_changed": _date(2019, record_id + 1),
        "submitter": f"user_{record_id % 997}",
        "contributors": [f"user_{record_id % 997}", f"user_{record_id % 89}"],
    }


def _artist(chance: random.Random, record_id: int) -> Facts:
    name = name_of("artists", record_id)
    people = _others(chance, "artists", chance.choice((0, 0, 0, 2, 4)))
    return {
        "id": record_id,
        "name": name,
        "realname": title(chance) if chance.random() < 0.4 else "",
        "profile": _text(chance, chance.randrange(1, 50), "\r\n") if chance.random() < 0.5 else "",
        "data_quality": chance.choice(QUALITIES),
        "urls": _urls(chance),
        "namevariations": [f"{name.split(' ')[0]} {n}" for n in "ABC"[: chance.randrange(4)]],
        "aliases": _others(chance, "artists", chance.choice((0, 0, 1, 3))),
        "members": people if record_id % 2 else [],
        "groups": [] if record_id % 2 else people,
        "images": _images(chance),
    }


def _record_label(chance: random.Random, record_id: int) -> Facts:
    return {
        "id": record_id,
        "name": name_of("labels", record_id),
        "contact_info": _text(chance, 12, "\r\n") if chance.random() < 0.4 else "",
        "profile": _text(chance, chance.randrange(1, 40), "\r\n") if chance.random() < 0.5 else "",
        "data_quality": chance.choice(QUALITIES),
        "urls": _urls(chance),
        "parent_label": _others(chance, "labels", 1)[0] if chance.random() < 0.2 else None,
        "sublabels": _others(chance, "labels", chance.choice((0, 0, 1, 5))),
        "images": _images(chance),
    }


def _master(chance: random.Random, record_id: int) -> Facts:
    return {
        "id": record_id,
        "title": name_of("masters", record_id),
        "main_release": chance.randrange(1, 38_000_000),
        "year": chance.choice((0, *range(1960, 2026))),
        "artists": _artists(chance),
        "genres": [chance.choice(GENRES)],
        "styles": chance.sample(STYLES, 2),
        "notes": _text(chance, 20, "\n") if chance.random() < 0.1 else "",
        "data_quality": chance.choice(QUALITIES),
        "tracklist": _tracks(chance),
        "images": _images(chance),
    }


def _others(chance: random.Random, kind: str, count: int) -> list[tuple[int, str]]:
    ids = [chance.randrange(1, LABELS) for _ in range(count)]
    return [(number, name_of(kind, number)) for number in ids]


def _urls(chance: random.Random) -> list[str]:
    count = chance.choice((0, 0, 1, 2, 4))
    return [f"https://{_letters(chance, 8).lower()}.example/?a=1&b={n}" for n in range(count)]


_INVENTORS = {
    "releases": _release,
    "artists": _artist,
    "labels": _record_label,
    "masters": _master,
}
