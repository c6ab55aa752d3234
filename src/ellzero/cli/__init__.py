"""The command line: ``ellzero compare | take | apply | train | browse | methods | config``.

Lives here: options, tables, progress and one-line errors; each command maps onto one function of the library.
Does not live here: anything that fits, reads or writes a result. Importing it loads no torch, scikit-learn or plotly.
"""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with its exit code."""
    from ellzero.cli.app import run

    raise SystemExit(run(arguments))
