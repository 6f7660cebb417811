"""One content, one hash, however it is spelled; another content, another hash."""

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps.canonical import (
    CANONICAL_VERSION,
    Malformed,
    canonical_form,
    content_hash,
)
from tests.discogs import dump, elements
from tests.discogs.world import invented
from tests.dumps.slow_split import our_split

TODAY = """<release id="5"><artists><artist><id>1</id><name>A &amp; B</name></artist></artists>\
<title>T</title><labels><label name="L" catno="C 1" id="7"/></labels><notes>one\ntwo &gt;</notes>\
<videos><video src="u" duration="3" embed="true"><title>V</title></video></videos></release>"""


def hashed(text: str) -> bytes:
    return content_hash(text.encode(), "releases")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name="L" catno="C 1" id="7"', "id='7'  catno='C 1'\nname='L'"),
        ('name="L" catno="C 1" id="7"/>', 'name="L" catno="C 1" id="7" ></label>'),
        ("A &amp; B", "<![CDATA[A & B]]>"),
        ("A &amp; B", "A &#38; B"),
        ("A &amp; B", "A &#x26;<!-- said somebody --> B"),
        ("two &gt;", "two >"),
        ("\n", "\r\n"),
        ("<title>", "<?note well?><title>"),
        ("<title>", "<country/><series></series><tracks><a><b/></a></tracks><title>"),
        ("<title>", "<images><image uri='' width='3'/></images><title>"),
        ("<title>", "<resource_url>https://api</resource_url><title>"),
        ("</name>", "</name><anv></anv><join/>"),
        ('id="7"/>', 'id="7" text=""/>'),
        ('<release id="5">', '<release status="Accepted" id="5">'),
        ('duration="3"', 'duration="4"'),
        ("<videos>", "<videos><video/>"),
    ],
)
def test_another_spelling_has_the_same_hash(old: str, new: str) -> None:
    assert old in TODAY
    assert hashed(TODAY.replace(old, new)) == hashed(TODAY)


@pytest.mark.parametrize("old", ["5", "A ", "&amp;", "T", "L", "C 1", "7", "one", "\n", "&gt;"])
def test_a_change_of_what_the_store_keeps_changes_the_hash(old: str) -> None:
    kept = TODAY[: TODAY.index("<videos>")]
    assert hashed(kept.replace(old, "8", 1) + "</release>") != hashed(kept + "</release>")


def test_what_only_looks_like_the_end_of_an_instruction_is_text() -> None:
    mixed = '<release id="5">\n%s <title>T</title>\n </release>'
    assert hashed(mixed % "?>") == hashed(mixed % "?&gt;")


@given(st.lists(st.sampled_from(["\n", "\r", "\t", " ", "x"]), min_size=1).map("".join))
def test_line_ends_in_a_text_are_what_xml_says(text: str) -> None:
    record = f'<release id="5"><title>{text}</title></release>'
    lines = record.replace("\r\n", "\n").replace("\r", "\n")
    assert canonical_form(record.encode(), "releases") == lines.encode()


def test_a_space_that_is_all_of_a_text_is_kept() -> None:
    assert hashed('<release id="5"><t> </t></release>') != hashed('<release id="5"><t/></release>')


@pytest.mark.parametrize(
    ("record", "sha1"),
    [
        (TODAY, "ed0f40d026380c66824e1b2fe82512c05cc304d4"),
        (
            '<release id="6"><images><image uri="" width="3"/></images>'
            '<t a_b="1" ab="2" a="" b="3">x</t><a><b><C>1</C><resource_url>u</resource_url></b></a>'
            '<e f="&quot;&amp;&gt;&#9;"/></release>',
            "33f94cd4f0b51886fa9576163384eea2f3458db8",
        ),
        (
            '<release><id>7</id><notes>\xfc ="x" &#13;\n\u20ac &lt;b&gt; "q"</notes></release>',
            "8648eb2d99065924da0ad949b8c0070d6c05155a",
        ),
        (
            '<release status="x" id=\'8\'>\n <t>=""</t><!-- c --> <a x=""> <b/></a>\n'
            "<n><![CDATA[<&]]> y</n></release>",
            "b29adac68ec5ef77bcfdf9957ff9805e9d9dcdac",
        ),
    ],
)
def test_a_record_has_the_hash_that_ledgers_hold(record: str, sha1: str) -> None:
    assert CANONICAL_VERSION == 1
    assert hashed(record).hex() == sha1


@given(st.lists(st.sampled_from(["\n", "\t", "  ", "\r\n"]), min_size=1).map("".join))
def test_indentation_does_not_matter(blank: str) -> None:
    indented = re.sub(r"(?<=>)(?=<)", blank, TODAY)
    assert hashed(indented) == hashed(TODAY)
    assert hashed(indented.replace("<title>", "<!-- c --><title>")) == hashed(TODAY)


@pytest.mark.parametrize("kind", ["releases", "artists", "labels", "masters"])
def test_all_eras_give_one_hash_for_one_record(kind: str) -> None:
    world = invented(40, [kind])
    results = {our_split(dump.compressed(world, kind, era))[0] for era in elements.ERAS}
    assert len(results) == 1
    assert results.pop().count(b"\n") == 40


@pytest.mark.parametrize(
    "record",
    [
        b"<release id='5'>&</release>",
        b"<release id='5'>\x07</release>",
        b"<release id='5' xmlns:a='relative'><a:x>1</a:x></release>",
        b"<release id='5'>\xff</release>",
        b"<release id='5'><a></release>",
        b"<release id='5'/><release id='6'/>",
        b"<release id='5'>&xxe;</release>",
        b"<master id='5'/>",
        b"",
    ],
)
def test_what_is_not_one_well_formed_record_has_no_content_hash(record: bytes) -> None:
    with pytest.raises(Malformed):
        content_hash(record, "releases")


def test_real_records_of_two_eras_agree_where_only_the_spelling_changed(samples: Path) -> None:
    old = gzip.decompress((samples / "xml/discogs_20200806_releases.sample.xml.gz").read_bytes())
    new = (samples / "xml/discogs_20260401_releases.head10000lines.xml").read_bytes()
    forms = []
    for text in (old, new):
        records = re.findall(rb'(?s)<release id="\d+".*?</release>', text)
        forms.append({form[:20]: form for form in (canonical_form(r, "releases") for r in records)})
    common = forms[0].keys() & forms[1].keys()
    assert sum(forms[0][n] == forms[1][n] for n in common) >= 33
