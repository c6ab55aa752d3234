"""The table of variants, read off the presets themselves.

Lives here: ``variants_table``. Does not live here: the presets (``presets``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ellzero.autoencoder.presets import PRESETS
from ellzero.registry import entries

__all__ = ["variants_table"]

_HEAD = ("preset", "paper", "encoder", "selection", "in evaluation", "decoder", "loss terms")
_DEFAULTS = {"Linear": {"rule": "relu", "centred": True, "tied": False}}


def variants_table(d_in: int = 768, d_sae: int = 12_288, k: int = 32) -> str:
    """A Markdown table with a row for each preset: its parts at these sizes."""
    papers = {entry.name: entry.paper for entry in entries(kind="preset", wing="autoencoder")}
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for name, build in PRESETS.items():
        sae = build(d_in, d_sae, k)
        by = f"{_shown(sae.score)}, " if sae.score is not None else ""
        infer = "the same" if sae.infer is None else _shown(sae.infer)
        row = (
            f"`{name}`", papers.get(name) or "", _shown(sae.encoder), by + _shown(sae.select), infer,
            "unit rows" if sae.decoder is not None else "free", ", ".join(map(_shown, sae.objective)),
        )  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _shown(part: Any) -> str:
    """A part by its name and its plain settings that are not the usual ones."""
    if not dataclasses.is_dataclass(part):
        return type(part).__name__
    usual = _DEFAULTS.get(type(part).__name__, {})
    settings = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        default = usual.get(field.name, field.default)
        if not isinstance(value, int | float | str | tuple) or value == default:
            continue
        if isinstance(value, tuple):
            shown = [f"{entry:.3g}" if isinstance(entry, float) else str(entry) for entry in value]
            value = ", ".join(shown if len(shown) <= 4 else [*shown[:2], "...", shown[-1]])
        elif isinstance(value, float):
            value = f"{value:.3g}"
        settings.append(f"{field.name} {value}")
    return type(part).__name__ + (f"({'; '.join(settings)})" if settings else "")
