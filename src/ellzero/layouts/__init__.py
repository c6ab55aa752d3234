"""Layouts: how a sparse matrix is stored so that products with it are fast and its file small.

Lives here: one module per layout, the registries that join layouts, operators and sparsifiers (``base``). Does not
live here: the compiled products (``kernels.sparse``), the choice of what is kept (``parts``, the wings).
Importing this package loads none of its modules.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ButterflyLinear": "butterfly_nn",
        "CSR": "grouped",
        "InvertedLists": "inverted",
        "NM": "nm",
        "NMG": "nmg",
        "Bitmask": "bitmask",
        "Block": "block",
        "BlockButterflyLowRank": "butterfly",
        "Condensed": "condensed",
        "Layout": "base",
        "RowGroup": "grouped",
        "SparseConv2d": "nn",
        "SparseLinear": "nn",
        "load": "base",
        "rearrange": "rearranging",
        "sparsify": "base",
    },
    (
        "base",
        "bitmask",
        "block",
        "butterfly",
        "butterfly_nn",
        "condensed",
        "grouped",
        "inverted",
        "nm",
        "nmg",
        "nn",
        "rearranging",
    ),
)
