"""The page's table of variants is the one that the presets give."""

from __future__ import annotations

from pathlib import Path

from ellzero.autoencoder.presets import PRESETS
from ellzero.autoencoder.variants_table import variants_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "autoencoder.md"


def test_the_page_shows_the_presets_as_they_are():
    shown = PAGE.read_text().split("<!-- variants -->\n")[1].split("<!-- /variants -->")[0]
    assert shown == variants_table()


def test_every_preset_has_a_row_with_its_terms():
    rows = variants_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(PRESETS)
    topk = next(row for row in rows if "`topk`" in row)
    assert "TopK(k 32)" in topk
    assert "AuxK(k 384)" in topk
