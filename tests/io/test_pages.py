"""Pages in one file: what stands in them cannot break out of its element."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.io.pages import document


class Reader(HTMLParser):
    """The elements of a page, the text of its scripts, and its title."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.title, self._within, self.opened = [], "", None, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._within = None

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within == "title":
            self.title += data


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=40)
HOSTILE = st.one_of(TEXT, st.sampled_from(["</script><b>", "<!-- <script>", "</SCRIPT>", "a & b <i>"]))


@given(title=HOSTILE, value=st.dictionaries(HOSTILE, HOSTILE, max_size=3), compact=st.booleans())
def test_titles_and_data_come_back_as_they_were(title, value, compact):
    page = Reader(
        document(title, icon="data:,", css="", body="<main></main>", data=("d", value), scripts=["1;"], compact=compact)
    )
    assert page.title == title
    assert json.loads(page.scripts[0]) == value
    assert page.opened == [
        "html",
        "head",
        "meta",
        "meta",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "main",
        "script",
        "script",
    ]


def test_what_is_not_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        document("t", icon="", css="", body="", data=("d", float("nan")), scripts=[])
