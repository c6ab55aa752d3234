"""Every layout: the dense matrix to the bit, its products, files, slices, and what it refuses."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.layouts import base, butterfly
from ellzero.layouts.bitmask import Bitmask
from ellzero.layouts.block import Block
from ellzero.layouts.butterfly import BlockButterflyLowRank, butterfly_mask
from ellzero.layouts.condensed import Condensed
from ellzero.layouts.grouped import CSR, RowGroup
from ellzero.layouts.nm import NM
from ellzero.layouts.nmg import NMG
from ellzero.parts.constraints import NM as KeepNM
from ellzero.parts.constraints import TopK

ANY = [
    (CSR, {}),
    (RowGroup, {"group": 4}),
    (RowGroup, {"group": 8}),
    (Condensed, {}),
    (Bitmask, {}),
    (Block, {"height": 4, "width": 3}),
]
FORMED = [
    (NM, {"n": 2, "m": 4}),
    (NM, {"n": 1, "m": 12}),
    (NMG, {"n": 2, "m": 4, "g": 1}),
    (NMG, {"n": 1, "m": 3, "g": 4}),
]


def matrix(seed=0, density=0.2, shape=(24, 36), dtype=np.float32):
    g = np.random.default_rng(seed)
    W = np.where(g.random(shape) < density, g.standard_normal(shape), 0).astype(dtype)
    W[3] = 0
    return W


def example(kind, options, dtype=np.float32):
    """A matrix of the layout's form."""
    W = matrix(density=1.0, dtype=dtype)
    if kind is NM:
        W = np.where(KeepNM(options["n"], options["m"]).support(np.abs(W)), W, 0).astype(dtype)
    elif kind is NMG:
        W = NMG.fit(W, **options).to_dense()
    elif kind is BlockButterflyLowRank:
        W = W * np.kron(butterfly_mask(6, 9, options["max_stride"]), np.ones((4, 4), dtype))
    else:
        W = matrix(dtype=dtype)
    return W


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kind", "options"), [*ANY, *FORMED, (BlockButterflyLowRank, {"block": 4, "max_stride": 4})],
    ids=lambda value: value.name if isinstance(value, type) else "-".join(map(str, value.values())),
)  # fmt: skip
class TestEveryLayout:
    def test_the_dense_matrix_comes_back_to_the_bit(self, kind, options, dtype):
        W = example(kind, options, dtype)
        stored = kind.from_dense(W, **options)
        assert stored.to_dense().tobytes() == np.where(W == 0, 0, W).astype(dtype).tobytes()
        assert stored.shape == W.shape
        assert stored.nnz >= np.count_nonzero(W)
        assert stored.nbytes == sum(a.nbytes for a in stored.tensors().values())

    def test_products(self, kind, options, dtype):
        W = example(kind, options, dtype)
        stored, g = kind.from_dense(W, **options), np.random.default_rng(1)
        tol = {"rtol": 1e-4, "atol": 1e-4 if dtype is np.float32 else 1e-11}
        for batch in (1, 5, 40):
            x, y, bias = (g.standard_normal(s).astype(dtype) for s in ((36, batch), (24, batch), 24))
            np.testing.assert_allclose(stored.matmul(x, bias=bias), W @ x + bias[:, None], **tol)
            np.testing.assert_allclose(stored.rmatmul(y), W.T @ y, **tol)
        np.testing.assert_allclose(stored @ x[:, 0], W @ x[:, 0], **tol)
        np.testing.assert_allclose(stored.rmatmul(y[:, 0]), W.T @ y[:, 0], **tol)

    def test_files(self, kind, options, dtype, tmp_path):
        W = example(kind, options, dtype)
        stored = kind.from_dense(W, **options)
        stored.save(tmp_path / "w.safetensors")
        back = base.load(tmp_path / "w.safetensors")
        assert type(back) is kind
        assert back.to_dense().tobytes() == stored.to_dense().tobytes()
        assert {k: v.tobytes() for k, v in back.tensors().items()} == {
            k: v.tobytes() for k, v in stored.tensors().items()
        }

    def test_rows(self, kind, options, dtype):
        W = example(kind, options, dtype)
        stored = kind.from_dense(W, **options)
        slices = [slice(8, 16), slice(3, 20), slice(None, None, 2)]
        if kind is BlockButterflyLowRank:
            slices = [slice(8, 16), slice(0, 0)]
        for rows in slices:
            if kind is Block and rows != slice(8, 16):
                continue
            part = stored[rows]
            np.testing.assert_array_equal(part.to_dense(), W[rows])

    def test_bad_products(self, kind, options, dtype):
        stored = kind.from_dense(example(kind, options, dtype), **options)
        for x, words in [(np.ones((35, 2)), "x: got shape"), (np.ones((36, 2), int), "x"), ("text", "x: got str")]:
            with pytest.raises(InputError, match=words):
                stored.matmul(x)
        with pytest.raises(InputError, match="rows: got 1"):
            stored[1]


@given(st.integers(0, 9), st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.0, 0.1, 0.6, 1.0]))
@settings(max_examples=60, deadline=None)
def test_random_masks_come_back(seed, rows, columns, density):
    W = matrix(seed, density, (4 * rows + 4, columns))[: 4 * rows]
    for kind, options in ((CSR, {}), (RowGroup, {}), (Condensed, {}), (Bitmask, {})):
        stored = kind.from_dense(W, **options)
        np.testing.assert_array_equal(stored.to_dense(), W)
        assert stored.matmul(np.ones((columns, 2), np.float32)).shape == (4 * rows, 2)


def test_sizes_are_what_the_format_promises():
    W = matrix(shape=(64, 256), density=0.1)
    nnz = np.count_nonzero(W)
    assert CSR.from_dense(W).nbytes == nnz * (4 + 2) + 65 * 8
    assert CSR.from_dense(W, dtype="bfloat16").nbytes == nnz * (2 + 2) + 65 * 8
    assert Bitmask.from_dense(W).nbytes == nnz * 4 + 64 * 256 // 8
    W = np.where(KeepNM(2, 4).support(np.abs(matrix(density=1.0, shape=(64, 256)))), 1, 0).astype(np.float32)
    assert NM.from_dense(W, n=2, m=4).nbytes == 64 * 128 * 4 + 64 * 128 // 4


def test_bfloat16_and_int8_values():
    W = matrix()
    for kind in (CSR, RowGroup, Bitmask):
        stored = kind.from_dense(W, dtype="bfloat16")
        np.testing.assert_allclose(stored.to_dense(), W, rtol=2**-8)
        again = type(stored).from_dense(stored.to_dense(), **stored.settings())
        np.testing.assert_array_equal(again.to_dense(), stored.to_dense())
    stored = RowGroup.from_dense(W, dtype="int8")
    assert stored.value.dtype == np.int8
    assert (np.abs(stored.to_dense() - W).max(axis=1) <= np.abs(W).max(axis=1) / 254 + 1e-7).all()
    x = np.random.default_rng(0).standard_normal((36, 7)).astype(np.float32)
    np.testing.assert_allclose(stored.matmul(x), stored.to_dense() @ x, rtol=1e-4, atol=1e-4)
    y = np.random.default_rng(0).standard_normal((24, 7)).astype(np.float32)
    np.testing.assert_allclose(stored.rmatmul(y), stored.to_dense().T @ y, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="int8 cannot hold"):
        RowGroup.from_dense(np.full((4, 2), np.inf, np.float32), dtype="int8")


def test_ablated_rows_cost_nothing():
    W = matrix()
    W[5:20] = 0
    stored = Condensed.from_dense(W)
    assert len(stored.kept) == np.count_nonzero(W.any(axis=1))
    bias = np.arange(24, dtype=np.float32)
    out = stored.matmul(np.ones((36, 3), np.float32), bias=bias)
    np.testing.assert_array_equal(out[5:20], np.repeat(bias[5:20, None], 3, axis=1))


def test_nmg_keeps_more_than_blocks_and_less_than_nm():
    """The order of the paper's figure: unstructured > n:m > n:m:g > blocks, at half of the weights."""
    W = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)

    def energy(kept):
        return float((np.where(kept != 0, W, 0) ** 2).sum() / (W**2).sum())

    free = np.where(np.abs(W) >= np.median(np.abs(W)), W, 0)
    nm = np.where(KeepNM(2, 4).support(np.abs(W)), W, 0)
    nmg = NMG.fit(W, n=2, m=4, g=4).to_dense()
    blocks = W.reshape(24, 4, 24, 4)
    norms = (blocks**2).sum(axis=(1, 3))
    block = (blocks * (norms >= np.median(norms))[:, None, :, None]).reshape(96, 96)
    assert np.count_nonzero(nmg) == W.size // 2
    assert energy(free) > energy(nm) > energy(nmg) > energy(block)


def test_nmg_seats_are_the_best_ones():
    """Against every permutation of a small chunk."""
    from itertools import permutations

    W = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    from itertools import combinations

    patterns = list(combinations(range(4), 2))
    best = max(sum(np.abs(W[r, list(p)]).sum() for r, p in zip(order, patterns)) for order in permutations(range(6)))
    np.testing.assert_allclose(np.abs(NMG.fit(W, n=2, m=4, g=1).value).sum(), best, rtol=1e-6)


def test_the_butterfly_counts_and_links():
    for side, stride in ((8, 1), (8, 4), (16, 16)):
        mask = butterfly_mask(side, side, stride)
        assert (mask.sum(axis=1) == 1 + np.log2(stride)).all()
        assert (mask == mask.T).all()
    reach = np.linalg.matrix_power(butterfly_mask(16, 16, 16).astype(float), 4)
    assert (reach > 0).all()  # log2(16) steps link every block to every other
    assert butterfly_mask(4, 8, 4).sum() == 2 * butterfly_mask(4, 4, 4).sum()
    with pytest.raises(InputError, match="max_stride: got 3, want a power of two up to 8"):
        butterfly_mask(8, 8, 3)


def test_a_plan_keeps_its_budget():
    for density in (0.15, 0.3, 0.6):
        stride, rank = butterfly.plan((256, 512), density, block=32)
        used = butterfly_mask(8, 16, stride).sum() * 32**2 + rank * (256 + 512)
        assert used <= density * 256 * 512
        assert used >= density * 256 * 512 - 768
    with pytest.raises(InputError, match=r"density: got 0\.1, want at least 0\.125"):
        butterfly.plan((256, 512), 0.1)


def test_butterfly_and_low_rank_beat_random_blocks_on_a_product_of_butterflies():
    g = np.random.default_rng(0)
    factors = []
    for stride in (2, 4):
        apart = np.arange(16)[:, None] ^ np.arange(16)[None]
        factors.append(np.kron((apart == 0) | (apart == stride // 2), np.ones((4, 4))) * g.standard_normal((64, 64)))
    W = (factors[0] @ factors[1]).astype(np.float32)
    ours = BlockButterflyLowRank.from_dense(W, block=4, max_stride=4, rank=8)
    scores = g.random((16, 16))
    budget = int(np.ceil((ours.nnz) / 16))
    mask = scores >= np.sort(scores.ravel())[-budget]
    other = W * np.kron(mask, np.ones((4, 4)))
    assert np.linalg.norm(ours.to_dense() - W) < 0.8 * np.linalg.norm(other - W)


def test_a_users_layout_and_operator_join_in_few_lines(tmp_path):
    class Diagonal(base.Layout):
        """Only the diagonal."""

        name = "test-diagonal"

        def __init__(self, value):
            self.value, self.shape = value, (len(value), len(value))

        @classmethod
        def from_dense(cls, matrix, **settings):
            return cls(np.diagonal(matrix).copy())

        def to_dense(self):
            return np.diag(self.value)

        def tensors(self):
            return {"value": self.value}

        @classmethod
        def from_parts(cls, tensors, facts):
            return cls(tensors["value"])

        nnz = property(lambda self: len(self.value))

        def matmul(self, x, *, bias=None, n_threads=None):
            return self.value[:, None] * x

    d = Diagonal(np.arange(3.0))
    d.save(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(base.load(tmp_path / "d.safetensors").to_dense(), d.to_dense())
    with pytest.warns(base.DenseFallbackWarning, match="rmatmul has no implementation for the layout 'test-diagonal'"):
        np.testing.assert_array_equal(d.rmatmul(np.ones(3)), [0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d.rmatmul(np.ones(3))  # said once

    @base.register_operator("rmatmul", Diagonal)
    def turned(layout, x, *, n_threads=None):
        return layout.value * x * 2

    np.testing.assert_array_equal(d.rmatmul(np.ones(3)), [0, 2, 4])

    @base.register_sparsifier(TopK, Diagonal)
    def fill(constraint, matrix, layout, **settings):
        return layout(np.full(len(matrix), 7.0))

    np.testing.assert_array_equal(base.sparsify(np.eye(2), TopK(1), Diagonal).value, [7, 7])
    kept = base.sparsify(matrix(density=1.0), TopK(5), CSR)
    assert (np.count_nonzero(kept.to_dense(), axis=1)[4:] == 5).all()
    assert isinstance(base.convert(kept, RowGroup, group=8), RowGroup)
    with pytest.raises(InputError, match="constraint: got int"):
        base.sparsify(np.eye(2), 3, CSR)
    del base._LAYOUTS["test-diagonal"]


def test_matrices_without_rows_or_columns(tmp_path):
    for shape in ((0, 12), (8, 0), (0, 0)):
        W = np.zeros(shape, np.float32)
        for kind in (CSR, RowGroup, Condensed, Bitmask, NM):
            stored = kind.from_dense(W)
            stored.save(tmp_path / "w.safetensors")
            stored = base.load(tmp_path / "w.safetensors")
            assert stored.to_dense().shape == shape
            for batch in (0, 1, 3):
                assert (
                    stored.matmul(np.ones((shape[1], batch), np.float32)).tolist()
                    == np.zeros((shape[0], batch)).tolist()
                )
                assert stored.rmatmul(np.ones((shape[0], batch), np.float32)).shape == (shape[1], batch)


def test_files_are_read_and_written_by_other_tools(tmp_path):
    """Packed -> safetensors -> dense with NumPy and SciPy alone, and back from arrays that they made, to the bit."""
    import scipy.sparse
    from safetensors.numpy import load_file

    W = matrix()
    W[5, 7], W[6, 8] = np.inf, np.float32(1e-40)  # a subnormal
    CSR.from_dense(W).save(tmp_path / "csr.safetensors")
    raw = load_file(tmp_path / "csr.safetensors")
    theirs = scipy.sparse.csr_matrix((raw["value"][:, 0], raw["index"].astype(np.int32), raw["ptr"]), shape=W.shape)
    assert theirs.toarray().tobytes() == W.tobytes()
    back = CSR.from_parts({"ptr": theirs.indptr.astype(np.int64), "index": theirs.indices.astype(np.int64),
                           "value": theirs.data[:, None]}, {"shape": W.shape, "group": 1})  # fmt: skip
    assert back.to_dense().tobytes() == W.tobytes()
    Condensed.from_dense(W).save(tmp_path / "condensed.safetensors")
    raw = load_file(tmp_path / "condensed.safetensors")
    dense = np.zeros_like(W)
    np.put_along_axis(rows := dense[raw["kept"]], raw["index"].astype(np.int64), raw["value"], axis=1)
    dense[raw["kept"]] = rows
    assert dense.tobytes() == W.tobytes()
    RowGroup.from_dense(W, group=4).save(tmp_path / "groups.safetensors")
    raw = load_file(tmp_path / "groups.safetensors")
    dense = np.zeros((6, 4, 36), np.float32)
    for g in range(6):
        at = slice(*raw["ptr"][g : g + 2])
        dense[g][:, raw["index"][at]] = raw["value"][at].T
    assert dense.reshape(W.shape).tobytes() == W.tobytes()
    Bitmask.from_dense(W).save(tmp_path / "bits.safetensors")
    raw = load_file(tmp_path / "bits.safetensors")
    dense = np.zeros(W.size, np.float32)
    dense[np.unpackbits(raw["bits"])[: W.size].astype(bool)] = raw["value"]
    assert dense.tobytes() == W.tobytes()
    kept = np.where(KeepNM(2, 4).support(np.abs(W)), W, 0)
    NM.from_dense(kept, n=2, m=4).save(tmp_path / "nm.safetensors")
    raw = load_file(tmp_path / "nm.safetensors")
    place = (raw["place"][:, :, None] >> np.uint8([0, 2, 4, 6]) & 3).reshape(24, -1)[:, : raw["value"].shape[1]]
    dense = np.zeros_like(W)
    np.put_along_axis(dense, np.repeat(np.arange(0, 36, 4), 2) + place, raw["value"], axis=1)
    assert dense.tobytes() == kept.tobytes()


def test_refusals(tmp_path):
    W = np.ones((6, 6), np.float32)
    for call, words in [
        (lambda: CSR.from_dense(W.astype(np.int32)), "matrix: got dtype int32"),
        (lambda: CSR.from_dense(W[0]), "matrix: got shape"),
        (lambda: CSR.from_dense(W, dtype="int4"), "dtype: got 'int4'"),
        (lambda: RowGroup.from_dense(W), "matrix: got 6 rows, want a multiple of 4"),
        (lambda: RowGroup.from_dense(W, group=3), "group: got 3"),
        (lambda: Condensed.from_dense(W, fan_in=5), "fan_in: got 5, want at least 6"),
        (lambda: NM.from_dense(W), "m: got 4, want one that divides the 6 columns"),
        (lambda: NM.from_dense(W, n=1, m=2), "has 2 nonzeros within 2 columns, want at most 1"),
        (lambda: NMG.from_dense(W, n=1, m=2, g=1), "does not have the form 1:2:1"),
        (lambda: NMG.fit(W, n=2, m=4), "rows in multiples of 24"),
        (lambda: Block.from_dense(W, height=4, width=2), "multiples of 4 and 2"),
        (lambda: BlockButterflyLowRank.from_dense(W, block=4), "multiples of the block of 4"),
        (lambda: butterfly.plan((64, 64), 0.0), "density"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    CSR.from_dense(W).save(tmp_path / "w.safetensors")
    content = bytearray((tmp_path / "w.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "torn.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="torn"):
        base.load(tmp_path / "torn.safetensors")
