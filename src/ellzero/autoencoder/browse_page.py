"""The page of latents: one HTML file with style, script and data inside.

Lives here: ``render``. Does not live here: what is shown (``browse``), style and drawing (``page/``).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from ellzero.io.pages import document

__all__ = ["render"]

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M3 14V9M8 14V2M13 14v-3' stroke='%23c8501e' stroke-width='3'/%3E%3C/svg%3E"
)

BODY = """<main>
<h1>{title}</h1>
<dl>{facts}</dl>
<form id="choice" class="bar">
<label>Sort by <select id="sort"><option value="density">density</option><option value="largest">largest activation\
</option><option value="number">number</option></select></label>
<label><input type="checkbox" id="rising"> lowest first</label>
<label><input type="checkbox" id="dead"> show dead ones</label>
<label>Peaks on <input type="search" id="word" placeholder="a token" size="12" autocomplete="off"></label>
<label>Latent <input type="number" id="number" min="0" size="7"></label>
</form>
<div class="halves">
<section aria-label="List of latents">
<div class="bar"><button type="button" id="back">previous</button><span id="where" role="status"></span>\
<button type="button" id="on">next</button></div>
<div class="scroll" tabindex="0" role="region" aria-label="Latents"><table><thead><tr><th scope="col">latent</th>\
<th scope="col">density</th><th scope="col">largest</th><th scope="col" class="text">peaks on</th></tr></thead>\
<tbody id="list"></tbody></table></div>
</section>
<section id="detail" aria-live="polite"></section>
</div>
</main>
<noscript><p>The latents are drawn by a script in this file.</p></noscript>"""


def render(title: str, facts: Sequence[tuple[str, str]], payload: Mapping[str, Any]) -> str:
    """The page as HTML; arrays of the payload are stored as base64 of their little-endian bytes."""
    page = files("ellzero.autoencoder") / "page"
    data = {key: _packed(value) if isinstance(value, np.ndarray) else value for key, value in payload.items()}
    shown = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return document(
        title,
        icon=ICON,
        css=(page / "browse.css").read_text(encoding="utf-8"),
        body=BODY.format(title=escape(title), facts=shown),
        data=("data", data),
        scripts=[(page / "browse.js").read_text(encoding="utf-8")],
        compact=True,
    )


def _packed(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
