"""The frontier of a collection: nDCG@10 against terms per document, BM25 cut to its largest weights and trained heads.

    python examples/retrieval_frontier.py [OUT.html] [SEEDS] [MODEL] [STEPS] [CORPUS.jsonl QUERIES.tsv QRELS]

Without a collection of yours, passages that ship are found again by a sentence that was cut out of them. MODEL is the
folder of a sentence encoder; without one BM25 stands alone. A point is the mean over seeds on validation queries, its
bar the standard error; the broken line is BM25 with all its terms.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from plotly.graph_objects import Figure

from ellzero.compare.tasks.retrieval import Retrieval
from ellzero.data import sets
from ellzero.rng import rng

BUDGETS = (4, 8, 16, 32, 64)


def passages(home: Path) -> list[str]:
    """A collection of its own: a sentence of each passage asks for the rest of it."""
    texts = [text.split(". ") for text in sets.texts("wikitext2") if text.count(". ") >= 3][:400]
    with (
        open(home / "corpus", "w") as corpus,
        open(home / "queries", "w") as queries,
        open(home / "qrels", "w") as qrels,
    ):
        for number, parts in enumerate(texts):
            asked = parts.pop(int(rng(0, "passages", number).integers(len(parts))))
            corpus.write(json.dumps({"id": f"d{number}", "text": ". ".join(parts)}) + "\n")
            queries.write(f"q{number}\t{' '.join(asked.split()[:8])}\n")
            qrels.write(f"q{number} 0 d{number} 1\n")
    return [str(home / name) for name in ("corpus", "queries", "qrels")]


def main(
    out: str = "retrieval_frontier.html", seeds: str = "3", model: str = "", steps: str = "160", *files: str
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        task = Retrieval(*(files or passages(Path(home))), model or None, steps=int(steps))
        draw(task, [task.data(seed) for seed in range(int(seeds))], out)


def draw(task: Retrieval, parts: list, out: str) -> None:
    figure = Figure()
    for name in task.default_methods:
        method = task.methods()[name]
        fits = [list(method.frontier(data, BUDGETS, seed)) for seed, data in enumerate(parts)]
        scores = np.array([[fit.score(data.validation) for fit in each] for each, data in zip(fits, parts)])
        terms = np.array([[fit.realised for fit in each] for each in fits]).mean(0)
        error = scores.std(0, ddof=1) / len(parts) ** 0.5 if len(parts) > 1 else np.zeros(scores.shape[1])
        for place, fit in enumerate(fits[0]):
            touched = fit.facts(parts[0].validation)["postings_touched"]
            print(f"{name}: {terms[place]:.0f} terms, nDCG@10 {scores[:, place].mean():.4f}, {touched:.0f} postings a "
                  f"query, index of {fit.nbytes / 1e3:.0f} kB")  # fmt: skip
        if method.dense:
            figure.add_hline(y=scores.mean(), line_dash="dash", annotation_text=f"{name}, {terms[0]:.0f} terms",
                             annotation_position="bottom right")  # fmt: skip
        else:
            figure.add_scatter(x=terms, y=scores.mean(0), error_y={"array": error}, name=name, mode="lines+markers")
    figure.update_xaxes(type="log", title="terms per document", tickvals=BUDGETS)
    figure.update_yaxes(title="nDCG@10")
    figure.update_layout(template="plotly_white", height=480, width=800, margin={"l": 70, "r": 20, "t": 40, "b": 60},
                         showlegend=True)  # fmt: skip
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(parts)} seeds, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
