"""Shared by the claims: collections with judgements and the token states of their texts."""

import pytest


@pytest.fixture(scope="session")
def bed(request):
    """``bed(name, few=False)``: a ``retrieval_bed.Bed``, its states kept beside pytest's own cache."""
    pytest.importorskip("transformers", reason="the extra `hf`")
    from tests.claims import retrieval_bed

    kept = request.config.rootpath / ".pytest_cache" / "d" / "states"
    return lambda name, few=False: retrieval_bed.load(name, kept, few)
