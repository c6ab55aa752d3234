"""Activations in a folder of files, read one file at a time.

Lives here: ``Shards``. Does not live here: the formats (``ellzero.io.readers``), activations of a model (``sources``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ellzero.autoencoder.sources import read_rows
from ellzero.errors import InputError, check_integer
from ellzero.rng import rng

__all__ = ["Shards"]

_SUFFIXES = (".parquet", ".safetensors", ".npy", ".npz")


class Shards:
    """The rows of all .parquet, .safetensors, .npy and .npz files of a folder; a batch is a file.

    Files come in a new order in each pass, and their rows too, so that neighbours of one text are apart.

    Parameters
    ----------
    folder : where the files are; each holds rows of the same width.
    seed : of the orders.

    Raises
    ------
    InputError : no folder, or none of these files in it; a file of another width, when it is read.
    """

    def __init__(self, folder: str | Path, *, seed: int = 0):
        self.folder, self.seed = Path(folder), check_integer("seed", seed, at_least=0)
        if not self.folder.is_dir():
            raise InputError(f"acts: got {str(folder)!r}, want a folder of {', '.join(_SUFFIXES)} files")
        self.files = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not self.files:
            raise InputError(f"acts: {folder} has none of {', '.join(_SUFFIXES)} files")

    def batches(self, epoch: int) -> Iterator[tuple[Tensor]]:
        """One pass, the same for the same epoch."""
        order = rng(self.seed, "shards", epoch).permutation(len(self.files))
        for place in order:
            rows = read_rows(str(self.files[place]))
            shuffled = rng(self.seed, "shards", epoch, int(place)).permutation(len(rows))
            yield (torch.from_numpy(np.ascontiguousarray(rows[shuffled])),)

    def __iter__(self) -> Iterator[Tensor]:
        return (rows for (rows,) in self.batches(0))
