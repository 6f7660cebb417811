"""Throw records in nearly the usual spelling at what reads them without a parser.

    python -m tests.fuzz.spelling [--inputs N] [--seed N]

Whatever it gives an answer for must be well-formed for lxml, and the answer lxml's.
"""

import argparse
import random
import re
import time

from discogs_crawler.dumps.canonical import Malformed, parsed_form
from discogs_crawler.dumps.usual_form import usual_form

SEEDS = (
    b'<release id="5"><artists><artist><id>1</id><name>A &amp; B</name></artist></artists>'
    b'<title>T</title><labels><label name="L" catno="C 1" id="7"/></labels><notes>one\ntwo &gt;'
    b'</notes><videos><video src="u" duration="3" embed="true"><title>V</title></video></videos>'
    b"</release>",
    b'<release id="6"><images><image uri="" width="3"/></images><t a_b="1" ab="2" a="" b="3">x</t>'
    b'<a><b><C>1</C><resource_url>u</resource_url></b></a><e f="&quot;&amp;&gt;&#9;"/></release>',
    b'<release><id>7</id><notes>\xc3\xbc ="x" &#13;\n\xe2\x82\xac &lt;b&gt; "q"</notes></release>',
)
TOKENS = (
    *(b"", b" ", b"\n", b"\t", b"\r", b"\x07", b"'", b'"', b"=", b"/", b"<", b">", b"&", b"]]>"),
    *(b"&quot;", b"&gt;", b"&apos;", b"&#9;", b"&#13;", b"&#10;", b"&#x41;", b"&#0;", b"&nbsp;"),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbf\xbf",
        b"\xef\xbf\xbd",
        b"\xc0\xaf",
        b"\x7f",
        b"\xc2\x85",
    ),
    *(b"<a>", b"</a>", b"<a/>", b"<b></b>", b"<c>d</c>", b"<a:b/>", b"<!-- -->", b"<?p?>"),
    *(b' a=""', b' b="2"', b' id="9"', b' xmlns="u"', b' x="1" x="2"', b'="', b" y='1'"),
    *(b"<videos>", b"</videos>", b"<videos/>", b'<images x="1">', b"<videos>v</videos>"),
    *(b"<resource_url>", b"</resource_url>", b"<resource_url></resource_url>"),
    *(b"</release>", b'<release id="5">', b"<a>" * 9 + b"x" + b"</a>" * 9),
)
_PLACE = re.compile(rb'[<>/=" ]|\b|$')


def make_input(chance: random.Random) -> bytes:
    """A record into which up to three things were put, perhaps in the place of others."""
    record = chance.choice(SEEDS)
    for _ in range(chance.randrange(4)):
        places = [place.start() for place in _PLACE.finditer(record)]
        start = chance.choice(places)
        stop = start + chance.choice((0, 0, 0, 1))
        if not chance.randrange(4):
            stop = max(start, chance.choice(places))
        record = record[:start] + chance.choice(TOKENS) + record[stop:]
    return record


def fuzz(inputs: int, seed: int) -> tuple[int, int]:
    """How many were answered, and how many of those answers were wrong."""
    chance = random.Random(seed)
    answered = wrong = 0
    for _ in range(inputs):
        record = make_input(chance)
        answer = usual_form(record, "releases")
        if answer is None:
            continue
        answered += 1
        try:
            expected: bytes | str = parsed_form(record, "releases")
        except Malformed as error:
            expected = str(error)
        if answer != expected:
            wrong += 1
            print(f"{record!r}: {answer!r} instead of {expected!r}", flush=True)
    return answered, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="how many [100000]")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random numbers")
    flags = parser.parse_args()
    answered, wrong = fuzz(flags.inputs, flags.seed)
    print(f"seed {flags.seed}: {flags.inputs} inputs, {answered} answered, {wrong} wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
