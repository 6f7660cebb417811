"""What ledger, queue and workers tell each other about an id: classes, leases, results."""

from typing import NamedTuple

# Why an id is wanted, the most urgent first.
CLASSES = ("manual", "confirm", "discovered", "changed", "new", "retired", "backfill", "refresh")

# What is wanted as one of these is fetched although it was fetched within the cooldown.
IMPATIENT = ("manual", "confirm", "discovered")

# These fetch a stored record again although its hash in the dump is the same. Not `backfill`, which
# fetches what is not stored yet.
UNPROMPTED = ("manual", "confirm", "refresh")

OUTCOMES = ("stored", "gone", "merged", "dead")

# The year 2286: a later time is none.
MAX_EPOCH_S = 10**10


class Lease(NamedTuple):
    """An id that is ours to fetch, until the lease lapses."""

    id: int
    reason: str
    """the class it was pending in"""
    attempts: int
    """earlier attempts that failed"""
    token: str
    """proves that the lease is ours; no two claims have the same"""


class Result(NamedTuple):
    """The result of fetching an id."""

    id: int
    reason: str
    """the class it was pending in"""
    outcome: str
    """`stored`, `gone`, `merged` or `dead`"""
    status: int = 0
    """HTTP status, 0 if there was no answer"""
    fetched: int = 0
    """when the request was sent: epoch seconds by Redis's clock"""
    changed: bool = False
    """the store got a new version of the record"""
    commit: str = ""
    """40 hex digits, the commit that has it"""
    failure: str = ""
    """why it is dead"""
    successor: int = 0
    """the id that it was merged into, 0 for none"""


class Held(NamedTuple):
    """A lease as others see it."""

    id: int
    owner: str
    reason: str
    lapses: float
    """epoch seconds by Redis's clock"""


class Delayed(NamedTuple):
    """An id that waits for its next attempt."""

    id: int
    reason: str
    attempts: int
    due: float
    """epoch seconds by Redis's clock"""
