"""The stand-in API behaves as the real one was seen to."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from urllib3.exceptions import HTTPError

from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.config import Settings
from tests.conftest import ROOT
from tests.discogs.api import GONE, Api
from tests.discogs.faults import FAULTS, Faults
from tests.discogs.journal import busiest
from tests.discogs.quota import Quota
from tests.discogs.world import KINDS, World, invented

AGENT = {"User-Agent": "test/1.0"}


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(20, KINDS), Quota(limit=1_000, limit_without=1_000)) as api:
        yield api


def get(api: Api, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
    wanted = AGENT | {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request("GET", api.url + path, headers=wanted, retries=False, timeout=5)


def first(api: Api, kind: str = "releases") -> int:
    return min(api.world.alive[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_differs_at_every_request_in_what_is_volatile_only(
    api: Api, kind: str, settings: Settings
) -> None:
    rules = cleaning.rules_for(settings, kind)
    for record_id in api.world.alive[kind]:
        one, other = (get(api, f"/{kind}/{record_id}").data for _ in range(2))
        if kind in ("releases", "masters"):
            assert one != other
        cleaned = {cleaning.clean(exact_json.loads(data), rules) for data in (one, other)}
        assert len(cleaned) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_has_the_fields_of_a_real_one(kind: str, samples: Path) -> None:
    world = invented(300, [kind])
    documents = [world.document(kind, record_id, 1) for record_id in world.alive[kind]]
    ours = {name for document in documents if document for name in document}
    real = [json.loads(path.read_text()) for path in (samples / kind).glob("*.json")]
    # One capture, of 2012, spells contact_info so.
    assert {name for document in real for name in document} - ours <= {"contactinfo"}


def test_an_edit_changes_what_lasts_and_a_new_video_does_not(settings: Settings) -> None:
    world, rules = invented(10), cleaning.rules_for(settings, "releases")

    def stored(record_id: int) -> bytes:
        document = world.document("releases", record_id, 1)
        return cleaning.clean(exact_json.loads(json.dumps(document).encode()), rules)

    one, other = sorted(world.alive["releases"])[:2]
    before = stored(one), stored(other)
    world.edit("releases", [one])
    world.edit_videos("releases", [other])
    assert stored(one) != before[0]
    assert stored(other) == before[1]


def test_what_does_not_exist_is_404_with_the_words_of_its_kind(api: Api) -> None:
    for kind in KINDS:
        answer = get(api, f"/{kind}/999999")
        assert answer.status == 404
        assert answer.json() == {"message": GONE[kind]}
        assert answer.headers["X-Discogs-Ratelimit"] == "1000"
    assert get(api, "/nothing").json() == {"message": "The requested resource was not found."}


def test_who_gives_no_name_gets_a_page_that_says_no(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port)) as client:
        client.sendall(b"GET /releases/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"<html>" in answer
    assert b"Ratelimit" not in answer


def test_the_front_page_counts_what_there_is(api: Api) -> None:
    assert get(api, "/").json()["statistics"] == {"releases": 20, "artists": 20, "labels": 20}


def test_gzip_is_for_those_who_ask(api: Api) -> None:
    path = f"/releases/{first(api)}"
    assert "Content-Encoding" not in get(api, path, Accept_Encoding="identity").headers
    assert get(api, path, Accept_Encoding="gzip").headers["Content-Encoding"] == "gzip"


def test_drafts_appear_later_and_merged_records_are_gone(api: Api) -> None:
    one, other = sorted(api.world.alive["releases"])[:2]
    api.world.draft("releases", [888])
    api.world.merge("releases", [(one, other)])
    assert [get(api, f"/releases/{number}").status for number in (888, one)] == [404, 404]
    api.world.add("releases", [888, one])
    assert [get(api, f"/releases/{number}").status for number in (888, one)] == [200, 200]


def test_the_sixth_of_five_requests_is_refused_without_a_hint_when_to_come_back() -> None:
    with Api(World(), Quota(limit=60, limit_without=5)) as api:
        answers = [get(api, "/releases/1") for _ in range(7)]
        assert [answer.status for answer in answers] == [404] * 5 + [429] * 2
        remaining = [int(a.headers["X-Discogs-Ratelimit-Remaining"]) for a in answers]
        assert remaining == [4, 3, 2, 1, 0, 0, 0]
        assert answers[5].json() == {"message": "You are making requests too quickly."}
        assert "Retry-After" not in answers[5].headers
        with_token = get(api, "/releases/1", Authorization="Discogs token=abc")
        assert with_token.headers["X-Discogs-Ratelimit"] == "60"


def test_the_window_is_exact_and_a_refused_request_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = Quota(limit=2, window_s=60)

    def allowed_at(now_s: float) -> bool:
        monkeypatch.setattr("tests.discogs.quota.time.monotonic", lambda: now_s)
        return counting.count("client", token=True).allowed

    assert [allowed_at(t) for t in (0, 30, 59.999, 60, 89.999, 90, 90)] == [
        *(True, True, False, True, False, True, False)
    ]


def test_no_window_ever_holds_more_than_the_limit_however_many_threads_ask() -> None:
    with Api(World(), Quota(limit_without=20, window_s=0.2)) as api:
        stop = time.monotonic() + 0.8

        def ask() -> None:
            pool = urllib3.PoolManager(headers=AGENT)
            while time.monotonic() < stop:
                pool.request("GET", api.url + "/releases/1")

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        allowed = [request for request in api.journal.since() if request.status == 404]
        # The journal's times are taken just before the count's.
        assert busiest(allowed, 0.19) <= 20
        assert len(allowed) > 20


def test_the_limit_can_be_changed_while_it_counts(api: Api) -> None:
    api.quota.limit_without = 2
    statuses = [get(api, "/").status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_addresses_have_windows_of_their_own() -> None:
    with Api(World(), Quota(limit_without=1), host="0.0.0.0") as api:
        urls = [f"http://127.0.0.{host}:{api.port}/" for host in (1, 2, 1, 2)]
        statuses = [urllib3.request("GET", url, headers=AGENT).status for url in urls]
    assert statuses == [200, 200, 429, 429]


EXPECTED = {
    "429": 429,
    "429-empty": 429,
    "500": 500,
    "502": 502,
    "503-html": 503,
    "520-html": 520,
    "401": 401,
    "403-html": 403,
    "403-json": 403,
    "404": 404,
    "404-html": 404,
    "moved": 301,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planned_fault_meets_its_request_and_no_other(api: Api, fault: str) -> None:
    record_id = first(api)
    path = f"/releases/{record_id}"
    api.faults.plan("releases", record_id, fault)
    try:
        answer = urllib3.request(
            "GET",
            api.url + path,
            headers={**AGENT, "Accept-Encoding": "gzip"},
            retries=False,
            redirect=False,
            timeout=0.3,
        )
        well = answer.status == 200 and answer.json()["id"] == record_id
        assert answer.status == EXPECTED.get(fault, 200)
    except (HTTPError, ValueError):
        well = False
        assert fault in {
            *("html", "empty", "cut", "cut-json", "hang", "hang-body", "reset", "not-gzip", "flood")
        }
    assert well == (fault in ("odd-headers", "no-headers"))
    assert api.journal.since()[-1].fault == fault
    assert get(api, path).json()["id"] == record_id


def test_faults_by_chance_are_as_frequent_as_they_should_be_and_repeatable() -> None:
    def drawn() -> list[str]:
        faults = Faults(7, empty=0.1)
        faults.set_probabilities({"empty": 0.1, "500": 0.2})
        return [faults.next("releases", number) for number in range(2_000)]

    found = drawn()
    assert found == drawn()
    assert 130 < found.count("empty") < 270
    assert 320 < found.count("500") < 480
    with pytest.raises(ValueError, match="no such fault"):
        Faults(0, nonsense=1)


def test_captures_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "5.json").write_bytes(b'{"id": 5,\n "name": "x"}')
    with Api(World(), captures=tmp_path) as api:
        assert get(api, "/labels/5").data == b'{"id": 5,\n "name": "x"}'
        assert get(api, "/labels/6").status == 404


def test_it_speaks_tls_with_the_certificate_it_is_given(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    with Api(invented(1), certificate=(certificate, key)) as api:
        pool = urllib3.PoolManager(ca_certs=str(certificate), headers=AGENT)
        assert pool.request("GET", api.url).status == 200
        with pytest.raises(HTTPError):
            urllib3.request("GET", api.url, headers=AGENT, retries=False)


def test_in_a_process_of_its_own_it_is_told_what_to_do_over_http() -> None:
    command = [sys.executable, "-m", "tests.discogs", "--records", "20", "--limit-without", "999"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        api, site = (process.stdout.readline().strip() for _ in range(2))
        try:
            assert "data%2F" in urllib3.request("GET", site).data.decode()

            def post(path: str, **wish: object) -> urllib3.BaseHTTPResponse:
                return urllib3.request("POST", api + path, body=json.dumps(wish).encode())

            assert urllib3.request("GET", api + "/releases/1", headers=AGENT).status == 200
            assert post("/-/world", remove={"releases": [1]}).status == 200
            assert urllib3.request("GET", api + "/releases/1", headers=AGENT).status == 404
            assert post("/-/faults", everywhere="500").status == 200
            assert urllib3.request("GET", api + "/releases/1", headers=AGENT).status == 500
            assert post("/-/faults", everywhere="nonsense").status == 400
            assert post("/-/settings", limit_without=1).status == 200
            assert post("/-/month").json()["releases"]["edited"]
            journal = urllib3.request("GET", api + "/-/journal?since=1").data.decode()
            assert [json.loads(line)["status"] for line in journal.splitlines()] == [404, 500]
            world = urllib3.request("GET", api + "/-/world").json()
            assert 1 in world["releases"]["gone"]
        finally:
            process.terminate()
        assert process.wait(10) == 0
