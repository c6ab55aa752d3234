"""Real data by name: small tables, images and texts.

Lives here: ``load`` and ``texts`` for sets that come with scikit-learn or with ellzero, and readers of sets that lie
in the folder ``ELLZERO_DATA`` names (``uci``, ``feature_selection``, ``mnist``). Does not live here: anything that
downloads, or a reader of the user's own files (``io.readers``). Terms of the shipped texts: ``NOTICE.md``.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.io.readers import Table, paragraphs
from ellzero.registry import register

__all__ = [
    "Images",
    "available",
    "breast_cancer",
    "data_root",
    "diabetes",
    "digits",
    "feature_selection",
    "iris",
    "load",
    "missing",
    "mnist",
    "names",
    "raw_text",
    "scaling_runs",
    "texts",
    "tinyshakespeare",
    "uci",
    "wikitext2",
    "wine",
]

_HERE = Path(__file__).parent
UCI = ("airfoil", "bike", "elevators", "pol")
FEATURE_SELECTION = ("BASEHOCK", "COIL20", "Isolet", "PCMAC", "colon", "madelon")
_TEXTS = {"tinyshakespeare": "tinyshakespeare.txt.xz", "wikitext2": "wikitext2_valid.txt.xz"}


@dataclass(frozen=True)
class Images:
    """Grey images (n, height, width) of uint8, and an integer label for each."""

    images: np.ndarray
    labels: np.ndarray

    def table(self) -> Table:
        """One row of float64 pixels per image, between 0 and 1."""
        n, height, width = self.images.shape
        columns = tuple(f"pixel_{r}_{c}" for r in range(height) for c in range(width))
        classes = tuple(str(label) for label in np.unique(self.labels))
        X = self.images.reshape(n, -1) / 255.0
        return Table(X, self.labels.astype(np.int64), columns, "label", classes)


def data_root() -> Path:
    """The folder of larger sets, from the environment variable ``ELLZERO_DATA``.

    Raises
    ------
    InputError : the variable is not set, or does not name a folder.
    """
    value = os.environ.get("ELLZERO_DATA", "")
    if not value:
        raise InputError("ELLZERO_DATA: is not set, want the folder that holds the larger data sets")
    root = Path(value).expanduser()
    if not root.is_dir():
        raise InputError(f"ELLZERO_DATA: got {value!r}, want an existing folder")
    return root


def missing(*relative: str) -> str | None:
    """Why a file under ``ELLZERO_DATA`` cannot be used, or ``None`` if all are there: the reason a test skips by."""
    try:
        root = data_root()
    except InputError as error:
        return str(error)
    lacking = [name for name in relative if not (root / name).exists()]
    return f"ELLZERO_DATA: {root} lacks {lacking[0]}" if lacking else None


def _external(relative: str) -> Path:
    reason = missing(relative)
    if reason is not None:
        raise InputError(reason)
    return data_root() / relative


# Tables that come with scikit-learn ---------------------------------------------------------------------------------


def _from_sklearn(name: str, target: str) -> Table:
    from sklearn import datasets  # heavy; only whoever asks for a table pays for it

    bunch = getattr(datasets, f"load_{name}")()
    y = np.asarray(bunch.target)
    labels = tuple(str(label) for label in bunch.target_names) if "target_names" in bunch else None
    y = y.astype(np.float64 if labels is None else np.int64)
    columns = tuple(str(column) for column in bunch.feature_names)
    return Table(np.array(bunch.data, dtype=np.float64), y, columns, target, labels)


@register(kind="dataset", source="Alpaydin and Kaynak (1998), in scikit-learn", example=lambda: digits())
def digits() -> Table:
    """1797 handwritten digits of 8 x 8 pixels (0 to 16), ten classes."""
    return _from_sklearn("digits", "digit")


@register(kind="dataset", source="Efron et al. (2004), in scikit-learn", example=lambda: diabetes())
def diabetes() -> Table:
    """442 patients, ten standardised measurements, and the progression of diabetes after a year."""
    return _from_sklearn("diabetes", "progression")


@register(
    kind="dataset", source="Street, Wolberg and Mangasarian (1993), in scikit-learn", example=lambda: breast_cancer()
)
def breast_cancer() -> Table:
    """569 tumours, 30 measurements of their cell nuclei; malignant 0, benign 1."""
    return _from_sklearn("breast_cancer", "diagnosis")


@register(kind="dataset", source="Aeberhard, Coomans and de Vel (1992), in scikit-learn", example=lambda: wine())
def wine() -> Table:
    """178 wines, 13 chemical measurements, three growers."""
    return _from_sklearn("wine", "grower")


@register(kind="dataset", source="Fisher (1936), in scikit-learn", example=lambda: iris())
def iris() -> Table:
    """150 flowers, four measurements, three species."""
    return _from_sklearn("iris", "species")


# Texts that ship with ellzero ---------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def raw_text(name: str) -> str:
    """A shipped text as one string."""
    check_choice("text", name, _TEXTS)
    return lzma.decompress((_HERE / _TEXTS[name]).read_bytes()).decode()


def texts(name: str) -> list[str]:
    """A shipped text as its paragraphs: ``"tinyshakespeare"`` or ``"wikitext2"``."""
    return paragraphs(raw_text(name))


@register(kind="dataset", source="Karpathy (2015), char-rnn", example=lambda: tinyshakespeare())
def tinyshakespeare() -> list[str]:
    """7,222 speeches from Shakespeare's plays, 1.1 million characters."""
    return texts("tinyshakespeare")


@register(kind="dataset", source="arXiv:1609.07843", example=lambda: wikitext2())
def wikitext2() -> list[str]:
    """The paragraphs of WikiText-2's validation part, 1.1 million characters, tokenised."""
    return texts("wikitext2")


@register(kind="dataset", source="arXiv:2309.08520", example=lambda: scaling_runs())
def scaling_runs() -> dict[str, np.ndarray]:
    """48 language models (T5 on C4), dense and pruned while they trained.

    Returns
    -------
    ``sparsity``, ``nonzeros`` (parameters outside embeddings that are not zero), ``steps`` of training and ``loss``
    (validation, nats a token), each ``[48]``.
    """
    rows = np.genfromtxt(_HERE / "scaling_t5_c4.csv", delimiter=",", skip_header=1)
    _, sparsity, scale, loss, steps = rows.T
    return {"sparsity": sparsity, "nonzeros": 24 * 12 * 768**2 * scale * (1 - sparsity), "steps": steps, "loss": loss}


# Sets under ELLZERO_DATA --------------------------------------------------------------------------------------------


def _gzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _csv_gz(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(_gzip(path).decode().splitlines(), delimiter=",", ndmin=2)
    except ValueError as error:
        raise InputError(f"{path}: is not a table of numbers ({error})") from error


@register(kind="dataset", source="UCI repository, with the ten fixed splits of uci_datasets")
def uci(name: str, fold: int = 0) -> tuple[Table, Table]:
    """``(train, test)`` of a UCI regression set: airfoil, bike, elevators or pol; the last column is the target.

    ``fold`` (0 to 9) picks the fixed test mask. Needs ``ELLZERO_DATA/linear/uci_NAME``.
    """
    check_choice("name", name, UCI)
    check_integer("fold", fold, at_least=0, at_most=9)
    values = _csv_gz(_external(f"linear/uci_{name}/data.csv.gz"))
    path = _external(f"linear/uci_{name}/test_mask.csv.gz")
    mask = _csv_gz(path)
    if mask.shape != (len(values), 10) or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: got shape {mask.shape}, want ({len(values)}, 10) of 0 and 1")
    test = mask[:, fold].astype(bool)
    columns = tuple(str(i) for i in range(values.shape[1] - 1))
    return tuple(Table(values[part, :-1], values[part, -1], columns, "target") for part in (~test, test))


@register(kind="dataset", source="Li et al. (2017), feature-selection benchmarks, arXiv:1601.07996")
def feature_selection(name: str) -> Table:
    """A classification set with many columns: BASEHOCK, COIL20, Isolet, PCMAC, colon or madelon.

    ``y`` counts the classes from 0; ``labels`` are the file's own. Needs ``ELLZERO_DATA/linear/NAME.mat``.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    check_choice("name", name, FEATURE_SELECTION)
    path = _external(f"linear/{name}.mat")
    try:
        content = loadmat(path, variable_names=("X", "Y"))
        X, y = content["X"].astype(np.float64), np.asarray(content["Y"]).ravel()
    except (KeyError, ValueError, TypeError, OSError, NotImplementedError, MatReadError, zlib.error) as error:
        raise InputError(f"{path}: is not a .mat file with X and Y ({error})") from error
    classes, y = np.unique(y, return_inverse=True)
    columns = tuple(str(i) for i in range(X.shape[1]))
    return Table(X, y.astype(np.int64), columns, "class", tuple(str(label) for label in classes))


@register(kind="dataset", source="LeCun et al. (1998)")
def mnist() -> Images:
    """The 10,000 test digits of MNIST, 28 x 28 grey pixels. Needs ``ELLZERO_DATA/networks/mnist-t10k-*.gz``."""
    images = _idx(_external("networks/mnist-t10k-images-idx3-ubyte.gz"), 3)
    path = _external("networks/mnist-t10k-labels-idx1-ubyte.gz")
    labels = _idx(path, 1)
    if len(labels) != len(images):
        raise InputError(f"{path}: has {len(labels)} labels for {len(images)} images")
    return Images(images, labels.astype(np.int64))


def _idx(path: Path, axes: int) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes: a magic number (type 8, axes), big-endian sizes, the bytes."""
    raw = _gzip(path)
    start = 4 + 4 * axes
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{path}: is not an IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise InputError(f"{path}: has {len(raw) - start} bytes for shape {shape}: cut short or damaged")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


# By name ------------------------------------------------------------------------------------------------------------

_SHIPPED: dict[str, Callable[[], Table]] = {f.__name__: f for f in (digits, diabetes, breast_cancer, wine, iris)}


def names() -> tuple[str, ...]:
    """Every name that ``load`` knows, whether its files are here or not."""
    return (*_SHIPPED, *FEATURE_SELECTION, *(f"uci_{name}" for name in UCI), "mnist")


def available(name: str) -> bool:
    """Whether ``load(name)`` finds its files."""
    check_choice("name", name, names())
    if name in _SHIPPED:
        return True
    if name in FEATURE_SELECTION:
        return missing(f"linear/{name}.mat") is None
    if name == "mnist":
        return missing(*(f"networks/mnist-t10k-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))) is None
    return missing(f"linear/{name}/data.csv.gz", f"linear/{name}/test_mask.csv.gz") is None


def load(name: str) -> Table:
    """A table by name: scikit-learn's ``digits``, ``diabetes``, ``breast_cancer``, ``wine``, ``iris``; or one under
    ``ELLZERO_DATA``: the feature-selection sets, ``uci_NAME`` (all rows), ``mnist``.

    Raises
    ------
    InputError : an unknown name (with the nearest one), or files that are not there.
    """
    check_choice("name", name, names())
    if name in _SHIPPED:
        return _SHIPPED[name]()
    if name in FEATURE_SELECTION:
        return feature_selection(name)
    if name == "mnist":
        return mnist().table()
    values = _csv_gz(_external(f"linear/{name}/data.csv.gz"))
    return Table(values[:, :-1], values[:, -1], tuple(str(i) for i in range(values.shape[1] - 1)), "target")
