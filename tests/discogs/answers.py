"""The API's JSON of a record: what lasts of it, with what is different at every request."""

import base64
import hashlib
import random
import re
from typing import Any

from tests.discogs.invent import Credit, Facts, videos

API = "https://api.discogs.com"
SITE = "https://www.discogs.com"
LETTERS = {"releases": "R", "artists": "A", "labels": "L", "masters": "M"}


def answer(kind: str, facts: Facts, moment: int, edition: int = 1) -> dict[str, Any]:
    """The document that the API gives at that moment; two moments never give the same.

    `edition` is that of the videos in the dump; the API shows them sooner, in any order.
    """
    chance = random.Random(moment)
    document = _MAKERS[kind](facts, chance)
    if facts["images"]:
        document["images"] = _images(kind, facts, chance)
    if kind in ("releases", "masters"):
        shown = videos(kind, facts["id"], edition)
        if shown:
            document["videos"] = chance.sample(shown, chance.randrange(1, len(shown) + 1))
    return {name: value for name, value in document.items() if value is not _ABSENT}


_ABSENT = object()


def _or_absent(value: Any) -> Any:
    """Where there is nothing the API omits the key."""
    return value or _ABSENT


def _uri(kind: str, facts: Facts) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", facts.get("title") or facts["name"]).strip("-")
    return f"{SITE}/{kind[:-1]}/{facts['id']}-{slug}"


def _image_uri(letter: str, number: int, size: int, chance: random.Random) -> str:
    """An address whose first part is another one at every request."""
    signature = base64.urlsafe_b64encode(hashlib.sha256(chance.randbytes(8)).digest()).decode()[:43]
    name = base64.urlsafe_b64encode(f"s3://images/{letter}-{number}.jpeg".encode()).decode()
    return f"https://i.discogs.com/{signature}/rs:fit/g:sm/q:90/h:{size}/w:{size}/{name}.jpeg"


def _images(kind: str, facts: Facts, chance: random.Random) -> list[dict[str, Any]]:
    found = []
    for type_, width, height in facts["images"]:
        uri = _image_uri(LETTERS[kind], facts["id"], 600, chance)
        small = _image_uri(LETTERS[kind], facts["id"], 150, chance)
        image = {"type": type_, "uri": uri, "resource_url": uri, "uri150": small}
        found.append(image | {"width": width, "height": height})
    return found


def _credit(credit: Credit, chance: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": credit.name,
        "anv": credit.anv,
        "join": credit.join,
        "role": credit.role,
        "tracks": credit.tracks,
        "id": credit.id,
        "resource_url": f"{API}/artists/{credit.id}",
    }
    if credit.id % 2:
        found["thumbnail_url"] = _image_uri("A", credit.id, 600, chance)
    return found


def _label_of(label: Facts, chance: random.Random) -> dict[str, Any]:
    found = {
        "name": label["name"],
        "catno": label["catno"],
        "entity_type": label["entity_type"],
        "entity_type_name": label["entity_type_name"],
        "id": label["id"],
        "resource_url": f"{API}/labels/{label['id']}",
    }
    if label["id"] % 2:
        found["thumbnail_url"] = _image_uri("L", label["id"], 294, chance)
    return found


def _track(track: Facts, chance: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in track.items():
        if name in ("artists", "extraartists"):
            found[name] = [_credit(credit, chance) for credit in value]
        elif name == "sub_tracks":
            found[name] = [_track(part, chance) for part in value]
        else:
            found[name] = value
    return found


def _price(chance: random.Random) -> float | int | None:
    return chance.choice((None, chance.randrange(1, 50), round(chance.random() * 60, 2)))


def _community(facts: Facts, chance: random.Random) -> dict[str, Any]:
    def user(name: str) -> dict[str, str]:
        return {"username": name, "resource_url": f"{API}/users/{name}"}

    average: float | int = chance.choice((5, 4.5, 0, round(chance.random() * 5, 2)))
    return {
        "have": chance.randrange(10_000),
        "want": chance.randrange(5_000),
        "rating": {"count": chance.randrange(900), "average": average},
        "submitter": user(facts["submitter"]),
        "contributors": [user(name) for name in facts["contributors"]],
        "data_quality": facts["data_quality"],
        "status": "Accepted",
    }


def _release(facts: Facts, chance: random.Random) -> dict[str, Any]:
    master, extra = facts["master_id"], facts["extraartists"]
    thumb = _image_uri("R", facts["id"], 150, chance) if facts["images"] else ""
    return {
        "id": facts["id"],
        "status": "Accepted",
        "year": facts["year"],
        "resource_url": f"{API}/releases/{facts['id']}",
        "uri": _uri("releases", facts),
        "artists": [_credit(credit, chance) for credit in facts["artists"]],
        "artists_sort": " ".join(f"{c.name} {c.join}".strip() for c in facts["artists"]),
        "labels": [_label_of(label, chance) for label in facts["labels"]],
        "series": [_label_of(label, chance) for label in facts["series"]],
        "companies": [_label_of(company, chance) for company in facts["companies"]],
        "formats": [_format(item) for item in facts["formats"]],
        "data_quality": facts["data_quality"],
        "community": _community(facts, chance),
        "format_quantity": sum(int(item["qty"]) for item in facts["formats"]),
        "date_added": facts["date_added"],
        "date_changed": facts["date_changed"],
        "num_for_sale": chance.randrange(200),
        "lowest_price": _price(chance),
        "master_id": _or_absent(master),
        "master_url": f"{API}/masters/{master}" if master else _ABSENT,
        "title": facts["title"],
        "country": facts["country"] if facts["id"] % 50 else _or_absent(facts["country"]),
        "released": _or_absent(facts["released"]),
        "notes": _or_absent(facts["notes"]),
        "released_formatted": _or_absent(facts["released"].replace("-00", "")),
        "identifiers": facts["identifiers"],
        "genres": facts["genres"],
        "styles": facts["styles"],
        "tracklist": [_track(track, chance) for track in facts["tracklist"]],
        "extraartists": [_credit(credit, chance) for credit in extra] or _ABSENT,
        "thumb": thumb,
        "estimated_weight": 85 * len(facts["formats"]) + chance.randrange(3),
        "blocked_from_sale": False if chance.random() < 0.9 else _ABSENT,
        "is_offensive": False,
    }


def _format(item: Facts) -> dict[str, Any]:
    found = {"name": item["name"], "qty": item["qty"], "descriptions": list(item["descriptions"])}
    return found | {"text": item["text"]} if item["text"] else found


def _others(kind: str, others: list[tuple[int, str]], chance: random.Random) -> Any:
    letter = LETTERS[kind]
    found = []
    for number, name in others:
        other = {"id": number, "name": name, "resource_url": f"{API}/{kind}/{number}"}
        if number % 3:
            other["thumbnail_url"] = _image_uri(letter, number, 150, chance)
        found.append(other)
    return _or_absent(found)


def _members(others: list[tuple[int, str]], chance: random.Random) -> Any:
    found = _others("artists", others, chance)
    if found is _ABSENT:
        return found
    return [other | {"active": other["id"] % 4 > 0} for other in found]


def _artist(facts: Facts, chance: random.Random) -> dict[str, Any]:
    members, groups = (_members(facts[name], chance) for name in ("members", "groups"))
    return {
        "name": facts["name"],
        "id": facts["id"],
        "resource_url": f"{API}/artists/{facts['id']}",
        "uri": _uri("artists", facts),
        "releases_url": f"{API}/artists/{facts['id']}/releases",
        "realname": _or_absent(facts["realname"]),
        "profile": facts["profile"],
        "urls": _or_absent(facts["urls"]),
        "namevariations": _or_absent(facts["namevariations"]),
        "aliases": _others("artists", facts["aliases"], chance),
        "members": members,
        "groups": groups,
        "data_quality": facts["data_quality"],
    }


def _label(facts: Facts, chance: random.Random) -> dict[str, Any]:
    parent = _others("labels", [facts["parent_label"]], chance) if facts["parent_label"] else None
    return {
        "id": facts["id"],
        "name": facts["name"],
        "resource_url": f"{API}/labels/{facts['id']}",
        "uri": _uri("labels", facts),
        "releases_url": f"{API}/labels/{facts['id']}/releases",
        "contact_info": _or_absent(facts["contact_info"]),
        "profile": facts["profile"],
        "urls": _or_absent(facts["urls"]),
        "parent_label": parent[0] if parent else _ABSENT,
        "sublabels": _others("labels", facts["sublabels"], chance),
        "data_quality": facts["data_quality"],
    }


def _master(facts: Facts, chance: random.Random) -> dict[str, Any]:
    main, recent = facts["main_release"], chance.randrange(1, 38_000_000)
    return {
        "id": facts["id"],
        "main_release": main,
        "most_recent_release": recent,
        "resource_url": f"{API}/masters/{facts['id']}",
        "uri": _uri("masters", facts),
        "versions_url": f"{API}/masters/{facts['id']}/versions",
        "main_release_url": f"{API}/releases/{main}",
        "most_recent_release_url": f"{API}/releases/{recent}",
        "num_for_sale": chance.randrange(300),
        "lowest_price": _price(chance),
        "genres": facts["genres"],
        "styles": facts["styles"],
        "year": facts["year"],
        "tracklist": [_track(track, chance) for track in facts["tracklist"]],
        "artists": [_credit(credit, chance) for credit in facts["artists"]],
        "title": facts["title"],
        "notes": _or_absent(facts["notes"]),
        "data_quality": facts["data_quality"],
    }


_MAKERS = {"releases": _release, "artists": _artist, "labels": _label, "masters": _master}
