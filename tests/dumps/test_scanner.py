"""Records are found where lxml finds them, however a dump is written and wherever a block ends."""

import gzip
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps import block_reader, prolog
from discogs_crawler.dumps.block_reader import HEADROOM
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.records import ELEMENTS, KINDS
from tests.dumps.slow_split import our_split, slow_split

TEXT = st.sampled_from(
    ["", "x", "a > b", "Ü&amp;&lt;&#13;\n", "]]&gt;", "</b", " y ", "&quot;'", "\n5\n"]
).map(lambda text: text.replace("</", "&lt;/"))
ODD = st.sampled_from(
    [
        '<!-- </{e}>\n<{e} id="7"><id>7</id> -->',
        '<![CDATA[</{e}>\n<{e} id="8"><id>8</id> > ]]>',
        "<?pi </{e}>\n<{e}><id>9</id> ?>",
        '<{e} id="3"><id>4</id>nested</{e}>',
        "<{e}/>",
        "<{e} a='>'/>",
        "<{e}s>x</{e}s >",
        '<{e}x id="5"/>',
        "<a><{e}><{e}>deep</{e}\n></{e}></a>",
    ]
)
BETWEEN = st.sampled_from(
    ["\n"] * 6
    + ["", "\r\n", "\n\t", "\n<!-- c -->\n", "\n<?p q?>\n", '\n<!--<{e} id="1"></{e}>-->', "\n\n"]
)


@pytest.fixture(scope="module", autouse=True)
def short_prolog() -> Iterator[None]:
    """So that not all of a small dump is in the window from the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prolog, "MAX_PROLOG", 192)
        yield


@st.composite
def dumps(draw: st.DrawFn) -> bytes:
    """A well-formed dump with everything that XML allows and much that Discogs never wrote."""
    kind = draw(st.sampled_from(KINDS))
    element = ELEMENTS[kind]
    ids = draw(st.lists(st.integers(1, 10**9 - 1), min_size=1, max_size=6, unique=True))
    if draw(st.booleans()):
        ids.sort()
    xml = draw(
        st.sampled_from(["", "\ufeff", '<?xml version="1.0" encoding="UTF-8"?>\n', "<!--c-->"])
    )
    xml += f"<{kind}" + draw(st.sampled_from(["", " a='>' b=\"<!--\"", "\n"])).replace("<", "&lt;")
    xml += ">" + draw(BETWEEN)
    for record_id in ids:
        xml += draw(_record(kind, record_id)) + draw(BETWEEN)
    xml += f"</{kind}>" + draw(st.sampled_from(["", "\n", " \n<!-- end -->\n"]))
    return xml.replace("{e}", element).encode()


@st.composite
def _record(draw: st.DrawFn, kind: str, record_id: int) -> str:
    body = "".join(
        draw(st.one_of(TEXT.map(lambda text: f"<title>{text}</title>"), ODD))
        for _ in range(draw(st.integers(0, 3)))
    )
    end = draw(st.sampled_from(["</{e}>", "</{e} >"]))
    if kind in ("releases", "masters"):
        start = draw(
            st.sampled_from(
                [
                    f'<{{e}} id="{record_id}">',
                    f'<{{e}} id="{record_id}" status="Accepted">',
                    f"<{{e}} status='a > b' id='{record_id}' >",
                    f'<{{e}} xid="6"\n id = "{record_id}">',
                ]
            )
        )
        empty = f'<{{e}} status="" id="{record_id}"/>'
        return draw(st.sampled_from([start + body + end] * 5 + [empty]))
    first = draw(st.sampled_from(["", "", "\n\t", "<images><image uri=''/></images>", body]))
    return (
        "<{e}>"
        + first.replace("<id>", "<i>").replace("</id>", "</i>")
        + (f"<id>{record_id}</id>{body}{end}")
    )


@given(dumps(), st.integers(1, 90))
def test_records_are_those_that_lxml_finds_at_any_block_size(xml: bytes, block_size: int) -> None:
    expected = slow_split(xml)
    assert our_split(xml, block_size)[0] == expected
    assert our_split(xml)[0] == expected


@given(dumps(), st.integers(1, 90))
def test_the_hash_cache_changes_nothing(xml: bytes, block_size: int) -> None:
    expected, cache, first = our_split(xml)
    again, cache_again, second = our_split(xml, block_size, cache)
    assert (again, cache_again) == (expected, cache)
    assert second.parsed <= first.parsed


@given(dumps(), dumps())
def test_a_hash_cache_of_another_dump_changes_nothing(xml: bytes, other: bytes) -> None:
    assert our_split(xml, cache=our_split(other)[1])[0] == slow_split(xml)


@given(dumps(), st.data())
def test_no_cut_is_taken_for_whole(xml: bytes, data: st.DataObject) -> None:
    end = xml.rindex(b"</")
    length = data.draw(st.integers(0, len(xml[end:].partition(b">")[0]) + end))
    with pytest.raises(Damage):
        our_split(xml[:length])


@given(dumps(), st.data())
def test_no_cut_of_a_compressed_dump_is_taken_for_whole(xml: bytes, data: st.DataObject) -> None:
    middle = data.draw(st.integers(0, len(xml)))
    compressed = gzip.compress(xml[:middle]) + gzip.compress(xml[middle:])
    hypothesis.assume(xml.rstrip()[-1:] == b">" and b"<!-- end" not in xml)
    assert our_split(compressed)[0] == slow_split(xml)
    member = len(gzip.compress(xml[:middle]))
    length = data.draw(st.integers(0, len(compressed) - 1))
    hypothesis.assume(length != member or xml[middle:].strip())
    with pytest.raises(Damage):
        our_split(compressed[:length], 64)


def test_a_record_larger_than_all_blocks_is_whole() -> None:
    long = b'<release id="2"><notes>' + b"x" * 3 * HEADROOM + b"</notes></release>\n"
    small = b'<release id="%d"><title>y</title></release>\n'
    xml = b"<releases>\n" + small % 1 + long + small % 3 + small % 4 + b"</releases>"
    assert our_split(xml, HEADROOM // 2)[0] == slow_split(xml)


def test_a_start_tag_may_reach_over_many_blocks() -> None:
    tag = b"<release id='2' status='" + b"x > y " * 50 + b"'>"
    xml = b"<releases>\n" + tag + b"<title>y</title></release>\n" + b"</releases>"
    for block_size in (64, 100, 128):
        assert our_split(xml, block_size)[0] == slow_split(xml)


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (b"<releases>" + b'<release id="1">' + b"x" * 90_000, "byte 10: a record without its end"),
        (b"<releases>" + b"<!--" + b"x" * 90_000, "byte 10: a record without its end"),
        (
            b"<releases>" + b"<release " + b"x" * 70_000,
            "byte 10: a malformed start tag: '<release x",
        ),
        (b"<!--" + b"x" * 70_000 + b"--><releases>", "byte 0: it does not begin like a dump"),
        (b"<!--" + b"x" * 60_000, "byte 0: it is cut off"),
    ],
)
def test_what_has_no_end_is_not_read_for_ever(
    xml: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_reader, "MAX_RECORD", 80_000)
    monkeypatch.setattr(prolog, "MAX_PROLOG", 65_536)
    with pytest.raises(Damage, match=said):
        our_split(xml, 1_000)
