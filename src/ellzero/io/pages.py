"""HTML pages in one file, with style, script and data inside, that ask no host for anything.

Lives here: ``document``. Does not live here: what a page shows, its style and its drawing (whoever makes the page).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["document"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="{icon}">
<style>
{css}</style>
</head>
<body>
{body}
<script type="application/json" id="{name}">{data}</script>
{scripts}
</body>
</html>
"""


def document(
    title: str, *, icon: str, css: str, body: str, data: tuple[str, Any], scripts: Sequence[str], compact: bool = False
) -> str:
    """The page as text.

    Parameters
    ----------
    title : plain text; it is escaped.
    icon : an address that holds the picture itself (``data:``).
    body : HTML, escaped where it must be.
    data : the id of the element, and a value that is written into it as JSON, for the scripts to read; no NaN.
    scripts : texts, each in an element of its own. None of them, nor the data, can end the element it stands in.
    compact : leaves out the blanks of the JSON.
    """
    name, value = data
    text = json.dumps(value, allow_nan=False, separators=(",", ":") if compact else None)
    elements = "\n".join(f"<script>\n{_inside(script)}</script>" for script in scripts)
    return _PAGE.format(
        title=escape(title), icon=icon, css=css, body=body, name=name, data=text.replace("<", "\\u003c"),
        scripts=elements,
    )  # fmt: skip


def _inside(text: str) -> str:
    """Text that cannot end the script element it stands in."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
