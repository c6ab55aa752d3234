"""File formats: how arrays, texts and results are read and written.

Lives here: ``atomic`` (whole or not at all), ``artefacts`` (one file), ``manifest`` (many files), ``readers``
(the user's tables, matrices and texts), ``container`` (the safetensors layout), ``versions`` (older formats),
``pages`` (HTML in one file).
Does not live here: data sets and generators (``data``), or what a wing's artefact means (the wing).
Nothing here pickles, and nothing here needs torch.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"Table": "readers", "read_matrix": "readers", "read_table": "readers", "read_texts": "readers"},
    ("arrays", "artefacts", "atomic", "container", "delimited", "frames", "manifest", "pages", "readers", "versions"),
)
