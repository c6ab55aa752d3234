"""Where dense vectors fall behind as a collection grows: the formula, and nested collections.

    python examples/growing_collection.py [OUT.html] [SIZES]

Documents are planted: 60 topics of words beside common ones, and 40 queries that name words of one document and of its
topic. Dense vectors are the largest singular directions of BM25 rows at several widths. Left, what
``false_positive_rate`` expects of random vectors; right, RR@10 as documents are added that no query looks for.
"""

import sys

import numpy as np
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from ellzero.retrieval.growth import false_positive_plot, grow_index
from ellzero.retrieval.theory import effective_dimension
from ellzero.rng import rng

QUERIES, TERMS, WIDTHS = 40, 4000, (16, 32, 64, 128)


def collection(documents, seed=0):
    """Counts of words ``[documents, TERMS]`` by topic, and queries: six words of a document, two of its topic."""
    draw = rng(seed, "collection")
    topics = draw.integers(0, TERMS, (60, 80))
    topic = draw.integers(0, 60, documents)
    own = topics[topic[:, None], draw.integers(0, 80, (documents, 40))]
    words = np.concatenate([own, (TERMS * draw.random((documents, 20)) ** 2).astype(int)], 1)
    rows = np.repeat(np.arange(documents), words.shape[1])
    X = sparse.coo_array((np.ones(words.size), (rows, words.ravel())), shape=(documents, TERMS)).tocsr()
    asked = draw.permutation(documents)[:QUERIES]
    columns = np.stack([np.concatenate([draw.choice(words[d], 6), draw.choice(topics[topic[d]], 2)]) for d in asked])
    pairs = (np.ones(columns.size), (np.repeat(np.arange(QUERIES), 8), columns.ravel()))
    return X, sparse.coo_array(pairs, shape=(QUERIES, TERMS)).tocsr(), asked


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def main(out: str = "growing_collection.html", sizes: str = "200,1000,5000,20000") -> None:
    sizes = [int(size) for size in sizes.split(",")]
    X, Q, asked = collection(max(sizes))
    idf = np.log(1 + X.shape[0] / (1 + np.bincount(X.indices, minlength=TERMS)))
    weighted = sparse.csr_array(saturated(X) * idf)
    directions = randomized_svd(weighted, max(WIDTHS), random_state=0)[2]
    systems = {"BM25": (Q, weighted)}
    for width in WIDTHS:
        D = unit(weighted @ directions[:width].T)
        systems[f"{width} dimensions"] = unit((Q * idf) @ directions[:width].T), D
        print(f"{width} dimensions vary like {effective_dimension(D):.0f} even ones")
    qrels = {str(q): {str(d): 1} for q, d in enumerate(asked)}
    grown = grow_index(systems, qrels, range(QUERIES), range(X.shape[0]), sizes, measure="RR@10", seeds=range(3))
    for name, lost in grown.losses().items():
        print(f"{name}: {lost:.0%} of RR@10 lost from {sizes[0]} to {sizes[-1]} documents")
    figure = make_subplots(1, 2, subplot_titles=("random vectors, relevant one at cosine 0.5", "planted collection"))
    for column, part in ((1, false_positive_plot(0.5, WIDTHS)), (2, grown.plot())):
        for line in part.data:
            colour = qualitative.D3[list(systems).index(line.name)]
            line.update(line_color=colour, legendgroup=line.name, showlegend=line.name == "BM25" or column == 1)
            figure.add_trace(line, 1, column)
        figure.update_xaxes(part.layout.xaxis, row=1, col=column)
        figure.update_yaxes(part.layout.yaxis, row=1, col=column)
    figure.update_layout(template="plotly_white", height=520, width=1200)
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


def saturated(X):
    """Counts as ``tf / (tf + 1.2)``."""
    X = X.copy()
    X.data = X.data / (X.data + 1.2)
    return X


if __name__ == "__main__":
    main(*sys.argv[1:])
