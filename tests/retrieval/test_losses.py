"""Losses of score tables and teachers, against formulas written out and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.parts.activity import Flops, L1Activity
from ellzero.parts.schedules import Constant
from ellzero.registry import entries
from ellzero.retrieval.losses import DistilKL, InfoNCE, MarginMSE, SpladeLoss, Total
from ellzero.retrieval.teachers import DenseTeacher, SparseTeacher, TeacherEnsemble, minmax

SCORES = torch.tensor([[2.0, 1.0, -0.5], [0.3, 0.7, 0.1]], dtype=torch.float64)
TEACHER = torch.tensor([[5.0, 4.5, 1.0], [3.0, 2.0, 2.5]], dtype=torch.float64)


def test_info_nce_is_the_formula_with_columns_the_diagonal_and_a_temperature():
    def by_hand(scores, columns, T):
        return -np.mean(
            [math.log(math.exp(r[c] / T) / sum(math.exp(s / T) for s in r)) for r, c in zip(scores, columns)]
        )

    found = InfoNCE(0.5)(SCORES, positive=torch.tensor([1, 0])).item()
    assert found == pytest.approx(by_hand(SCORES.tolist(), [1, 0], 0.5), rel=1e-6)
    assert InfoNCE()(SCORES).item() == pytest.approx(by_hand(SCORES.tolist(), [0, 0], 1), rel=1e-6)
    assert InfoNCE()(SCORES, positive="diagonal").item() == pytest.approx(by_hand(SCORES.tolist(), [0, 1], 1), rel=1e-6)


def test_scores_of_hundreds_do_not_overflow():
    assert math.isfinite(InfoNCE()(300 * SCORES).item())
    assert math.isfinite(DistilKL()(300 * SCORES, TEACHER).item())


def test_margin_mse_is_the_formula_and_zero_for_the_teachers_margins():
    want = np.mean([(1.0 - 0.5) ** 2, (2.5 - 4.0) ** 2, (-0.4 - 1.0) ** 2, (0.2 - 0.5) ** 2])
    assert MarginMSE()(SCORES, TEACHER).item() == pytest.approx(want, rel=1e-6)
    assert MarginMSE(20.0)(20 * TEACHER + 7, TEACHER).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="without a negative"):
        MarginMSE()(SCORES[:, :1], TEACHER[:, :1])


def test_distil_kl_is_the_divergence_and_zero_at_the_teacher():
    p, q = torch.softmax(TEACHER, 1), torch.softmax(SCORES, 1)
    want = (p * (p / q).log()).sum(1).mean().item()
    assert DistilKL()(SCORES, TEACHER).item() == pytest.approx(want, rel=1e-5)
    assert DistilKL(2.0)(TEACHER + 3, TEACHER).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "loss", [InfoNCE(), MarginMSE(), DistilKL(), DistilKL(0.1), Total(DistilKL(), (0.5, InfoNCE()))]
)
def test_a_candidate_of_minus_infinity_counts_for_nothing(loss):
    longer = torch.cat([SCORES, torch.full((2, 1), -torch.inf, dtype=torch.float64)], 1).requires_grad_()
    taught = torch.cat([TEACHER, torch.full((2, 1), 9.0, dtype=torch.float64)], 1)
    value = loss(longer, taught, positive="diagonal")
    assert value.item() == pytest.approx(loss(SCORES, TEACHER, positive="diagonal").item(), rel=1e-5)
    value.backward()
    assert torch.isfinite(longer.grad).all()
    assert (longer.grad[:, 3] == 0).all()


@pytest.mark.parametrize("loss", [InfoNCE(0.7), MarginMSE(2.0), DistilKL(1.5)])
def test_derivatives_by_finite_differences(loss):
    scores = SCORES.clone().requires_grad_()
    grad = torch.autograd.grad(loss(scores, TEACHER), scores)[0]
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(SCORES)
            step[i, j] = 1e-2
            slope = (loss(SCORES + step, TEACHER) - loss(SCORES - step, TEACHER)).item() / 2e-2
            assert grad[i, j].item() == pytest.approx(slope, abs=2e-3)


def test_the_penalties_join_by_weight_and_ramp():
    queries, documents = torch.rand(2, 5), torch.rand(3, 5)
    loss = SpladeLoss(InfoNCE(), L1Activity(), Flops(), 0.1, 0.3)
    bare = InfoNCE()(SCORES).item()
    penalty = (0.1 * L1Activity().value(queries) + 0.3 * Flops().value(documents)).item()
    for progress, factor in ((0.0, 0.0), (1 / 6, 0.25), (1 / 3, 1.0), (0.9, 1.0)):
        found = loss(SCORES, queries, documents, progress=progress).item()
        assert found == pytest.approx(bare + factor * penalty, rel=1e-5)
    assert SpladeLoss(InfoNCE(), ramp=Constant(1.0))(SCORES, queries, documents).item() == pytest.approx(bare)
    assert [type(part) for part in loss.parts()] == [L1Activity, Flops]


def test_every_loss_is_registered():
    assert {entry.name for entry in entries(kind="loss", wing="retrieval")} >= {
        "InfoNCE", "MarginMSE", "DistilKL", "Total", "SpladeLoss"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: InfoNCE(0), "temperature: got 0"),
        (lambda: InfoNCE()(SCORES, positive=3), "positive: got 3"),
        (lambda: InfoNCE()(SCORES.T, positive="diagonal"), "positive: got 'diagonal'"),
        (lambda: InfoNCE()(SCORES, positive=torch.tensor([0])), "one column for each of 2"),
        (lambda: InfoNCE()(SCORES[0]), "scores: got shape"),
        (lambda: MarginMSE()(SCORES), "teacher: got none"),
        (lambda: DistilKL()(SCORES, TEACHER[:, :2]), "teacher: got shape"),
        (lambda: Total(), "parts: got none"),
        (lambda: Total(3), "parts: got int"),
        (lambda: SpladeLoss(3), "main: got int"),
        (lambda: SpladeLoss(InfoNCE(), query_penalty=3), "query_penalty: got int"),
        (lambda: SpladeLoss(InfoNCE(), document_weight=-1), "document_weight: got -1"),
        (lambda: TeacherEnsemble([]), "teachers: got"),
        (lambda: TeacherEnsemble([DenseTeacher(np.eye(2), np.eye(2))], weights=[0.5]), "weights: got"),
        (lambda: DenseTeacher(np.eye(2), np.eye(3)), "documents: got 3 features"),
        (lambda: SparseTeacher(np.eye(2), np.eye(3)), "queries: got ndarray"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_a_dense_and_a_sparse_teacher_of_the_same_vectors_agree():
    draw = np.random.default_rng(0)
    Q, X = draw.random((4, 6)), draw.random((9, 6)) * (draw.random((9, 6)) < 0.5)
    rows, columns = np.array([3, 0]), np.array([[8, 8, 1], [0, 5, 7]])
    want = [[Q[r] @ X[c] for c in each] for r, each in zip(rows, columns)]
    for teacher in (DenseTeacher(Q, X), SparseTeacher(sparse.csr_array(Q), sparse.csr_array(X))):
        np.testing.assert_allclose(teacher.scores(rows, columns).numpy(), want, rtol=1e-5)
        np.testing.assert_allclose(teacher.scores(rows, columns[0]).numpy()[0], want[0], rtol=1e-5)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), st.floats(0.1, 50), st.floats(-9, 9))
def test_min_max_lies_in_the_unit_interval_and_ignores_scale_and_shift(values, scale, shift):
    table = torch.tensor([values], dtype=torch.float64)
    scaled = minmax(table)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    spread = max(values) - min(values)
    if spread > 1e-3:
        assert (scaled.amin(), scaled.amax()) == (0, 1)
        torch.testing.assert_close(minmax(table * scale + shift), scaled, atol=1e-9, rtol=0)
    elif spread == 0:
        assert (scaled == 0).all()  # also a list of one


def test_an_ensemble_weighs_lists_alike_whatever_their_units():
    small, large = torch.tensor([[0.1, 0.3, 0.2]]), torch.tensor([[900.0, 100.0, 500.0]])
    both = TeacherEnsemble([DenseTeacher(np.eye(2), np.eye(2))] * 2, weights=[0.25, 0.75], scale=10)
    torch.testing.assert_close(both.combine([small, large]), torch.tensor([[7.5, 2.5, 5.0]]))
    assert TeacherEnsemble(both.teachers, scale=10).scores([0], [[1]]).tolist() == [[0.0]]
