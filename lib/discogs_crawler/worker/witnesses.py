"""Records that should have an answer tell what the answers for other ids are worth.

Is the service down, or are the ids bad that get no answer? One witness is asked (`testify`).

Can a 404 be trusted? A service that has lost its database answers 404 for every id. After MISSING
404s in a row we request records that are known to exist. If they are missing too, no 404 is trusted
until a record arrives again, nor one to a request sent before that.
"""

import collections
import itertools
import random
import time
from collections.abc import Callable, Collection, Iterable

from discogs_crawler.api.client import Answer
from discogs_crawler.records import SEGMENT_SIZE

# Costs one request in 25 where all the 404s are true.
MISSING = 25
WITNESSES = 3


class Witnesses:
    """Records that exist: the last ones that arrived, then some of those that are stored."""

    def __init__(
        self,
        ask: Callable[[int], Answer | None],
        ask_one: Callable[[Callable[[], int]], tuple[int, Answer] | None],
        stored: Callable[[], Iterable[int]],
    ) -> None:
        """`ask` waits for a permit, `ask_one` does not; they return None if there is none.

        `stored` returns ids that the store has.
        """
        self._ask, self._ask_one, self._stored = ask, ask_one, stored
        self._alive: collections.deque[int] = collections.deque(maxlen=WITNESSES)
        self._missing_in_a_row = 0
        self._trusted_since = 0.0
        self.all_missing = False
        """the API answers 404 for records that exist"""

    def saw_record(self, record_id: int) -> None:
        """A record has arrived: the API has its records."""
        self._alive.append(record_id)
        self._trust()

    def confirm_missing(self, asked: float) -> bool:
        """Whether a 404 can be trusted that was asked for at that time (`time.monotonic()`)."""
        self._missing_in_a_row += 1
        if self._missing_in_a_row > MISSING:
            if self._are_missing():
                self.all_missing = True
            else:
                self._trust()
        return not self.all_missing and asked >= self._trusted_since

    def testify(self, failing: Collection[int]) -> tuple[int, Answer] | None:
        """An id that is not among those that fail, and its answer; None: no permit."""
        testimony = self._ask_one(lambda: self._anyone_but(failing))
        if testimony and testimony[1].outcome == "record":
            self._trust()
        return testimony

    def _anyone_but(self, failing: Collection[int]) -> int:
        # What is known to exist may be bad too, or gone, or nothing may be known. A number at
        # random has an answer as well, if only a 404.
        known = [one for one in (*self._alive, *self._stored()) if one not in failing]
        return random.choice([*known, random.randrange(1, SEGMENT_SIZE)])

    def _are_missing(self) -> bool:
        candidates = itertools.chain(list(self._alive), self._stored())
        chosen = list(itertools.islice(dict.fromkeys(candidates), WITNESSES))
        answers = map(self._ask, chosen)
        # A failure says nothing about the 404s, and comes up by itself if it lasts.
        return bool(chosen) and all(a is not None and a.outcome == "gone" for a in answers)

    def _trust(self) -> None:
        self._missing_in_a_row = 0
        if self.all_missing:
            self.all_missing = False
            self._trusted_since = time.monotonic()
