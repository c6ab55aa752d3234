"""``python -m ellzero.cli`` is ``ellzero``."""

from ellzero.cli import main

main()
