"""Throw damaged dumps at the splitter: never a traceback, never a hang, never a wrong "whole".

    python -m tests.fuzz.dump [--inputs N] [--seed N]

Each input is a small dump with bytes flipped, cut out, doubled, put elsewhere or replaced by what
confuses parsers, sometimes compressed, before or after. What the splitter takes for whole and
undamaged must be well-formed for lxml, with the same records. An input that fails is printed.
"""

import argparse
import contextlib
import gzip
import logging
import random
import sys
import time
import traceback

from lxml import etree

from discogs_crawler.dumps.metadata import Damage
from tests.dumps.slow_split import our_split, slow_split

# Seconds for an input of a few hundred bytes: a hang.
PATIENCE_S = 20

SEEDS = (
    b'<releases>\n<release id="1"><title>A &amp; B</title></release>\n'
    b'<release id="2" status="Accepted"><notes>one\n\ntwo</notes></release>\n'
    b'<release id="30"><!-- </release> --><labels><label id="7"/></labels></release>\n'
    b"</releases>\n",
    b"<labels>\n<label><id>1</id><name>x</name><sublabels><label id='2'>y</label></sublabels>"
    b"</label>\n<label><images><image uri=''/></images><id>3</id></label>\n"
    b"<label><id>4</id></label>\n</labels>",
    b'<?xml version="1.0" encoding="UTF-8"?>\r\n<masters>\r\n\t<master id="5">\r\n'
    b"\t\t<year>2000</year>\r\n\t</master>\r\n\t<master id='4'/>\r\n</masters>\r\n",
    b"<artists><artist><id>9</id><name>\xc3\xbc<![CDATA[</artist>]]></name></artist><?x y?>"
    b"</artists>",
)
TOKENS = (
    *(b"<", b">", b"&", b"&amp;", b"'", b'"', b"/", b"\n", b"\r\n", b"\x00", b"\x07", b"\xff"),
    *(b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?", b"?>", b"<!DOCTYPE a>", b"\xef\xbb\xbf"),
    *(b"<release>", b"</release>", b'</release>\n<release id="8">', b"</release >", b"<release/>"),
    *(b"<label>", b"</label>", b"</label>\n<label><id>8</id>", b"</releases>", b"<releases>"),
    *(b"<id>6</id>", b' id="7"', b' id="0"', b"<id>", b"</id>", b"]]&gt;", b"&#0;", b"&#x41;"),
)


def mutate(dump: bytes, chance: random.Random) -> bytes:
    """The dump with one to four pieces of damage."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        start, stop = sorted(chance.randrange(len(dump) + 1) for _ in range(2))
        near = min(start + chance.randrange(1, 12), len(dump))
        dump = chance.choice(
            (
                dump[:start],
                dump[:start] + dump[near:],
                dump[:start] + dump[stop:],
                dump[:stop] + dump[start:],
                dump[:start] + chance.choice(TOKENS) + dump[start:],
                dump[:start] + chance.choice(TOKENS) + dump[near:],
                dump[:start] + bytes([chance.randrange(256)]) + dump[start + 1 :],
                dump + chance.choice(TOKENS),
            )
        )
    return dump


def make_input(chance: random.Random) -> bytes:
    dump = mutate(chance.choice(SEEDS), chance)
    form = chance.randrange(4)
    if form == 0:
        return gzip.compress(dump, mtime=0)
    if form == 1:
        return mutate(gzip.compress(dump, mtime=0), chance)
    return dump


def check(dump: bytes, block_size: int) -> str:
    """What is wrong with our answer; "" if nothing is."""
    started = time.monotonic()
    try:
        result, _, counts = our_split(dump, block_size)
    except Damage:
        result = b""
    except Exception:
        return traceback.format_exc()
    if time.monotonic() - started > PATIENCE_S:
        return "it hangs"
    if not result or counts.damaged:
        return ""
    try:
        xml = gzip.decompress(dump) if dump.startswith(b"\x1f\x8b") else dump
        expected = slow_split(xml)
    except (OSError, EOFError, etree.XMLSyntaxError) as error:
        return f"taken for whole, but: {error}"
    return "" if result == expected else f"{result!r} instead of {expected!r}"


def fuzz(inputs: int, seed: int) -> int:
    """The number of inputs that were answered wrongly."""
    chance = random.Random(seed)
    wrong = 0
    for _ in range(inputs):
        dump, block_size = make_input(chance), chance.choice((1, 7, 64, 1 << 19))
        if fault := check(dump, block_size):
            wrong += 1
            print(f"{dump!r}, blocks of {block_size}: {fault}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="how many [20000]")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random numbers")
    flags = parser.parse_args()
    logging.disable()
    print(f"seed {flags.seed}", flush=True)
    wrong = 0
    with contextlib.suppress(KeyboardInterrupt):
        wrong = fuzz(flags.inputs, flags.seed)
    print(f"{flags.inputs} inputs, {wrong} answered wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
