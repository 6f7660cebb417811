"""What goes wrong at the API: by chance, or for chosen ids."""

import random
import threading
from collections.abc import Mapping

# Every fault by name, and what it is.
FAULTS = {
    "429": "too many requests, as JSON",
    "429-empty": "too many requests, with a line feed for a body and none of the headers",
    "500": "an internal error, as JSON",
    "502": "maintenance, as JSON",
    "503-html": "a page of the CDN",
    "520-html": "another page of the CDN",
    "401": "a token that is not accepted",
    "403-html": "a challenge of the CDN",
    "403-json": "no permission",
    "404-html": "a page of the CDN that knows nothing of the record",
    "404": "a record that seems to be gone",
    "html": "an HTML page with status 200",
    "empty": "no body with status 200",
    "cut": "a body that ends half-way, with the connection",
    "cut-json": "JSON that ends half-way, and a length that says so",
    "hang": "no answer",
    "hang-body": "headers and half of a body, then nothing",
    "reset": "a reset of the connection",
    "wrong-id": "another record than the one asked for",
    "not-gzip": "a body that claims to be gzip",
    "flood": "16 MB of nothing and more",
    "odd-headers": "a good record, and headers that are not numbers",
    "no-headers": "a good record without the three headers",
    "moved": "301 to the next id",
}


class Faults:
    """Which fault each request meets; safe for threads."""

    def __init__(self, seed: int = 0, **probabilities: float) -> None:
        self._chance = random.Random(seed)
        self._probabilities: dict[str, float] = {}
        self._plans: dict[tuple[str, int], list[str]] = {}
        self._everywhere = ""
        self._lock = threading.Lock()
        self.set_probabilities(probabilities)

    def set_probabilities(self, probabilities: Mapping[str, float]) -> None:
        """The share of requests that meet each fault, from now on; the rest is well."""
        for name in probabilities:
            _check(name)
        with self._lock:
            self._probabilities = dict(probabilities)

    def set_everywhere(self, fault: str = "") -> None:
        """Let every request meet the fault until this is called without one."""
        if fault:
            _check(fault)
        self._everywhere = fault

    def plan(self, kind: str, record_id: int, *faults: str) -> None:
        """Let the next requests for this id meet these faults, one each; `""` is none."""
        for name in filter(None, faults):
            _check(name)
        with self._lock:
            self._plans[kind, record_id] = list(faults)

    def next(self, kind: str, record_id: int) -> str:
        """The fault that a request for the record meets now; empty for none."""
        with self._lock:
            if self._everywhere:
                return self._everywhere
            planned = self._plans.get((kind, record_id))
            if planned:
                return planned.pop(0)
            point = self._chance.random()
            for name, probability in self._probabilities.items():
                point -= probability
                if point < 0:
                    return name
            return ""


def _check(name: str) -> None:
    if name not in FAULTS:
        raise ValueError(f"no such fault: {name!r}; there are: {', '.join(FAULTS)}")
