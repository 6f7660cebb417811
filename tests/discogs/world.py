"""Which records exist, in which version, and which are gone: the truth, for servers and tests."""

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.discogs import answers, elements, invent

KINDS = tuple(elements.SINGULAR)

# What a month does to a world of which nothing else is said. Real months change about 1 % of the
# records, add 0.4 %; a small world needs more for anything to be seen.
EDITED, ADDED, REMOVED, ONLY_VIDEOS = 0.05, 0.02, 0.005, 0.05


class State(NamedTuple):
    """Where a record stands: how often it was edited, and how often only its videos were."""

    version: int = 1
    edition: int = 1


class World:
    """Records of four kinds. Every method may be called while servers show the world."""

    def __init__(self) -> None:
        self.alive: dict[str, dict[int, State]] = {kind: {} for kind in KINDS}
        self.gone: dict[str, dict[int, State]] = {kind: {} for kind in KINDS}
        self.merged: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
        self.drafts: dict[str, set[int]] = {kind: set() for kind in KINDS}
        self.month = 1

    def add(self, kind: str, ids: Iterable[int]) -> None:
        """Let the records exist; one that was there before comes back as it was."""
        for record_id in ids:
            self.drafts[kind].discard(record_id)
            self.merged[kind].pop(record_id, None)
            self.alive[kind][record_id] = self.gone[kind].pop(record_id, State())

    def edit(self, kind: str, ids: Iterable[int]) -> None:
        for record_id in ids:
            state = self.alive[kind][record_id]
            self.alive[kind][record_id] = state._replace(version=state.version + 1)

    def edit_videos(self, kind: str, ids: Iterable[int]) -> None:
        """Change the videos and nothing else: no reason to fetch the record."""
        for record_id in ids:
            state = self.alive[kind][record_id]
            self.alive[kind][record_id] = state._replace(edition=state.edition + 1)

    def remove(self, kind: str, ids: Iterable[int]) -> None:
        for record_id in ids:
            self.gone[kind][record_id] = self.alive[kind].pop(record_id)

    def merge(self, kind: str, pairs: Iterable[tuple[int, int]]) -> None:
        """Replace the first record of each pair by the second; the API answers 404 for it."""
        for record_id, successor in pairs:
            self.remove(kind, [record_id])
            self.merged[kind][record_id] = successor

    def draft(self, kind: str, ids: Iterable[int]) -> None:
        """Take the numbers for records that nobody sees until `add`."""
        self.drafts[kind].update(ids)

    def document(self, kind: str, record_id: int, moment: int) -> dict[str, Any] | None:
        """What the API answers; None for 404."""
        state = self.alive.get(kind, {}).get(record_id)
        if state is None:
            return None
        facts = invent.facts(kind, record_id, state.version)
        return answers.answer(kind, facts, moment, state.edition)

    def lasting(self, kind: str, record_id: int) -> invent.Facts | None:
        """What lasts of a record as it is now; None if it does not exist."""
        state = self.alive[kind].get(record_id)
        return None if state is None else invent.facts(kind, record_id, state.version)

    def copy(self) -> "World":
        """The world as it is now, e.g. for a dump that is written later."""
        other = World()
        for kind in KINDS:
            other.alive[kind] = dict(self.alive[kind])
            other.gone[kind] = dict(self.gone[kind])
            other.merged[kind] = dict(self.merged[kind])
            other.drafts[kind] = set(self.drafts[kind])
        other.month = self.month
        return other

    def let_a_month_go_by(self) -> dict[str, dict[str, list[int]]]:
        """Edit, add and remove some records of every kind; which, by kind and verb."""
        self.month += 1
        return {kind: self._change(kind) for kind in KINDS if self.alive[kind]}

    def _change(self, kind: str) -> dict[str, list[int]]:
        chance = random.Random(f"{kind} month {self.month}")
        ids = sorted(self.alive[kind])
        share = len(ids)
        chosen = chance.sample(ids, min(share, _some(share, EDITED + ONLY_VIDEOS + REMOVED) + 2))
        removed = chosen[: _some(share, REMOVED)]
        edited = chosen[len(removed) : len(removed) + _some(share, EDITED)]
        videos = chosen[len(removed) + len(edited) :]
        videos = videos if kind in ("releases", "masters") else []
        top = max(ids)
        added = [top + 1 + 2 * number for number in range(_some(share, ADDED))]
        self.remove(kind, removed)
        self.edit(kind, edited)
        self.edit_videos(kind, videos)
        self.add(kind, added)
        changes = {"removed": removed, "edited": edited, "videos": videos, "added": added}
        return {verb: sorted(ids) for verb, ids in changes.items()}


def _some(of: int, share: float) -> int:
    return max(1, round(of * share))


def invented(records: int, kinds: Iterable[str] = ("releases",), month: int = 1) -> World:
    """A world of so many records of each kind; half of the numbers exist, as in the real one."""
    world = World()
    for kind in kinds:
        chance = random.Random(f"{kind} ids")
        number, ids = 0, []
        for _ in range(records):
            number += 1 + (chance.random() < 0.5) + (chance.random() < 0.25) * 2
            ids.append(number)
        world.add(kind, ids)
    for _ in range(month - 1):
        world.let_a_month_go_by()
    return world
