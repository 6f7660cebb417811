"""Look at a stand-in in another process, and change it, over HTTP: `/-/...`, which is not counted.

GET  /-/journal?since=N      the requests, one JSON object a line
GET  /-/world                {kind: {"alive": {id: version}, "gone": [...], "merged": {id: id}}}
POST /-/world                {"edit": {"releases": [1, 2]}, "remove": ..., "add": ...,
                             "edit_videos": ..., "draft": ..., "merge": {"releases": [[1, 2]]}}
POST /-/month                let a month go by; what it changed
POST /-/settings             any of limit, limit_without, window_s, latency_s, jitter_s
POST /-/faults               {"probabilities": {"500": 0.1}, "everywhere": "503-html",
                             "plan": [["releases", 7, ["500", "cut"]]]}
"""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.discogs.world import KINDS, World

if TYPE_CHECKING:
    from tests.discogs.api import Api

VERBS = ("add", "edit", "edit_videos", "remove", "merge", "draft")

Answer = tuple[int, bytes, dict[str, str]]


def handles(path: str) -> bool:
    return path.startswith("/-/")


def get(api: "Api", path: str) -> Answer:
    parts = urlsplit(path)
    if parts.path == "/-/journal":
        since = int(parse_qs(parts.query).get("since", ["0"])[0])
        lines = [json.dumps(request._asdict()) for request in api.journal.since(since)]
        return 200, "".join(line + "\n" for line in lines).encode(), {}
    if parts.path == "/-/world":
        return _json(_shown(api.world))
    return 404, b"", {}


def post(api: "Api", path: str, body: bytes) -> Answer:
    try:
        wish = json.loads(body or b"{}")
        if path == "/-/world":
            for verb, changes in wish.items():
                for kind, ids in changes.items():
                    getattr(api.world, VERBS[VERBS.index(verb)])(kind, ids)
            return _json({})
        if path == "/-/month":
            return _json(api.world.let_a_month_go_by())
        if path == "/-/settings":
            for name, value in wish.items():
                _set(api, name, value)
            return _json({})
        if path == "/-/faults":
            _plan(api, wish)
            return _json({})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return 400, f"{type(error).__name__}: {error}\n".encode(), {}
    return 404, b"", {}


def _set(api: "Api", name: str, value: float) -> None:
    if name in ("limit", "limit_without", "window_s"):
        setattr(api.quota, name, value)
    elif name in ("latency_s", "jitter_s"):
        setattr(api, name, value)
    else:
        raise ValueError(f"no such setting: {name!r}")


def _plan(api: "Api", wish: dict[str, Any]) -> None:
    if "probabilities" in wish:
        api.faults.set_probabilities(wish["probabilities"])
    if "everywhere" in wish:
        api.faults.set_everywhere(wish["everywhere"])
    for kind, record_id, faults in wish.get("plan", ()):
        api.faults.plan(kind, record_id, *faults)


def _shown(world: World) -> dict[str, Any]:
    return {
        kind: {
            "alive": {str(number): state.version for number, state in world.alive[kind].items()},
            "gone": sorted(world.gone[kind]),
            "merged": {str(number): other for number, other in world.merged[kind].items()},
        }
        for kind in KINDS
    }


def _json(document: Any) -> Answer:
    return 200, json.dumps(document).encode(), {"Content-Type": "application/json"}
