"""What is done with an id, for every answer in every state of the circuit breaker."""

import itertools
from collections.abc import Callable

import pytest

from discogs_crawler.api.client import Answer
from discogs_crawler.broker.messages import Lease
from discogs_crawler.worker.answer_policy import Action, decide
from discogs_crawler.worker.circuit_breaker import FAILURES, CircuitBreaker
from discogs_crawler.worker.fetchers import Fetched
from discogs_crawler.worker.witnesses import MISSING, WITNESSES, Witnesses

STATES = ("closed", "suspicious", "paused", "closed again")

TABLE = {
    "record": (Action.SETTLE, Action.SETTLE),
    "merged": (Action.SETTLE, Action.SETTLE),
    "gone": (Action.SETTLE, Action.SETTLE),
    "transient": (Action.HOLD, Action.POSTPONE),
    "forbidden": (Action.SUSPECT, Action.POSTPONE),
    "blocked": (Action.TRIP, Action.TRIP),
    "too fast": (Action.GIVE_BACK, Action.GIVE_BACK),
    "refused": (Action.REFUSE, Action.REFUSE),
}


def fetched(outcome: str, record_id: int = 1, asked: float = 1.0) -> Fetched:
    lease = Lease(record_id, "new", 0, "token")
    return Fetched(lease, Answer(outcome), sent=1, asked=asked)  # type: ignore[arg-type]


def nobody(_: object) -> Answer | None:
    raise AssertionError("no witness is asked here")


@pytest.mark.parametrize(("outcome", "state"), list(itertools.product(TABLE, STATES)))
def test_every_answer_in_every_state(outcome: str, state: str) -> None:
    breaker = CircuitBreaker()
    if state == "suspicious":
        breaker.trip(0)
    elif state != "closed":
        breaker.trip(60)
    if state == "closed again":
        breaker.close()
    action = TABLE[outcome][state == "paused"]
    assert decide(fetched(outcome), breaker, Witnesses(nobody, nobody, list)) is action


def test_the_breaker_counts_different_ids_only() -> None:
    breaker = CircuitBreaker()
    for _ in range(3 * FAILURES):
        breaker.hold(fetched("transient", 1))
    for number in range(2, FAILURES + 1):
        assert not breaker.is_open
        breaker.hold(fetched("transient", number))
    assert breaker.is_open
    assert len(breaker.held()) == FAILURES
    breaker.release()
    assert not breaker.close(), "nothing was paused"
    breaker.hold(fetched("transient", 99))
    assert not breaker.is_open


def test_404s_are_trusted_until_the_witnesses_are_missing_too() -> None:
    asked: list[int] = []

    def ask(record_id: int) -> Answer:
        asked.append(record_id)
        return Answer("gone")

    breaker, witnesses = CircuitBreaker(), Witnesses(ask, nobody, lambda: [7, 8, 9, 10])
    witnesses.saw_record(5)
    for _ in range(MISSING):
        assert decide(fetched("gone"), breaker, witnesses) is Action.SETTLE
    assert asked == []
    assert decide(fetched("gone"), breaker, witnesses) is Action.TRIP
    assert asked == [5, 7, 8]
    assert len(asked) == WITNESSES
    witnesses.saw_record(5)
    assert decide(fetched("gone"), breaker, witnesses) is Action.POSTPONE, "asked before that"
    assert decide(fetched("gone", asked=1e12), breaker, witnesses) is Action.SETTLE


@pytest.mark.parametrize("testimony", [[], [None, None, None], ["gone", "record", "gone"]])
def test_a_witness_that_is_there_or_cannot_be_asked_accuses_nobody(
    testimony: list[str | None],
) -> None:
    says = iter(testimony)

    def ask(_: int) -> Answer | None:
        outcome = next(says)
        return None if outcome is None else Answer(outcome)  # type: ignore[arg-type]

    witnesses = Witnesses(ask, nobody, lambda: range(len(testimony)))
    for _ in range(MISSING + 1):
        assert decide(fetched("gone"), CircuitBreaker(), witnesses) is Action.SETTLE


def test_somebody_can_always_testify_and_not_always_the_same() -> None:
    asked: set[int] = set()

    def ask(choose: Callable[[], int]) -> tuple[int, Answer]:
        asked.add(chosen := choose())
        return chosen, Answer("transient")

    stored: list[int] = []
    witnesses = Witnesses(nobody, ask, lambda: stored)
    for _ in range(5):
        witnesses.testify(set())
    assert len(asked) > 1, "nothing is known to exist"
    witnesses.saw_record(-5)
    stored = [-7, -8, -9]
    for _ in range(200):
        witnesses.testify({-9})
    assert {-5, -7, -8} < asked
    assert -9 not in asked, "it is one of those that fail"
