"""What is done with an id, for every answer in every state of the circuit breaker."""

import itertools

import pytest

from discogs_crawler.api.client import Answer
from discogs_crawler.broker.messages import Lease
from discogs_crawler.worker.answer_policy import Action, decide
from discogs_crawler.worker.circuit_breaker import FAILURES, CircuitBreaker
from discogs_crawler.worker.fetchers import Fetched
from discogs_crawler.worker.witnesses import MISSING, WITNESSES, Witnesses

STATES = ("closed", "open", "half-open")

TABLE = {
    "record": (Action.SETTLE, Action.SETTLE, Action.SETTLE),
    "merged": (Action.SETTLE, Action.SETTLE, Action.SETTLE),
    "gone": (Action.SETTLE, Action.SETTLE, Action.SETTLE),
    "transient": (Action.HOLD, Action.POSTPONE, Action.TRIP),
    "blocked": (Action.TRIP, Action.TRIP, Action.TRIP),
    "too fast": (Action.GIVE_BACK, Action.GIVE_BACK, Action.GIVE_BACK),
    "refused": (Action.REFUSE, Action.REFUSE, Action.REFUSE),
}


def fetched(outcome: str, record_id: int = 1, probe: str = "", asked: float = 1.0) -> Fetched:
    lease = Lease(record_id, "new", 0, "token")
    return Fetched(lease, Answer(outcome), sent=1, asked=asked, probe=probe)  # type: ignore[arg-type]


def nobody(_: int) -> Answer | None:
    raise AssertionError("no witness is asked here")


@pytest.mark.parametrize(("outcome", "state"), list(itertools.product(TABLE, STATES)))
def test_every_answer_in_every_state(outcome: str, state: str) -> None:
    breaker = CircuitBreaker()
    if state != "closed":
        breaker.trip(60)
    answer = fetched(outcome, probe="outage" if state == "half-open" else "")
    assert decide(answer, breaker, Witnesses(nobody, list)) is TABLE[outcome][STATES.index(state)]


def test_the_probe_of_a_quota_is_no_probe_of_the_service() -> None:
    breaker = CircuitBreaker()
    breaker.trip(60)
    answer = fetched("transient", probe="quota")
    assert decide(answer, breaker, Witnesses(nobody, list)) is Action.POSTPONE


def test_the_breaker_counts_different_ids_only() -> None:
    breaker = CircuitBreaker()
    for _ in range(3 * FAILURES):
        assert not breaker.hold(fetched("transient", 1))
    speaks_for_an_outage = [breaker.hold(fetched("transient", 1 + n)) for n in range(FAILURES)]
    assert speaks_for_an_outage == [False] * (FAILURES - 1) + [True]
    assert len(breaker.held()) == FAILURES
    breaker.release()
    assert not breaker.hold(fetched("transient", 99))


def test_404s_are_trusted_until_the_witnesses_are_missing_too() -> None:
    asked: list[int] = []

    def ask(record_id: int) -> Answer:
        asked.append(record_id)
        return Answer("gone")

    breaker, witnesses = CircuitBreaker(), Witnesses(ask, lambda: [7, 8, 9, 10])
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

    witnesses = Witnesses(ask, lambda: range(len(testimony)))
    for _ in range(MISSING + 1):
        assert decide(fetched("gone"), CircuitBreaker(), witnesses) is Action.SETTLE
