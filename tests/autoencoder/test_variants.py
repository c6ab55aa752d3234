"""Variants with parts of their own: counts from a probe, from norms, by latent; scores from gradients; contrast."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV
from torch.nn import functional as F

from ellzero.autoencoder.adaptive import AdaptiveTopK, ProbeLoss, RelativeL1, fit_probe, unigram_surprisal
from ellzero.autoencoder.afa import PrefixNorm, _UpToNorm, coherence, zf_plot
from ellzero.autoencoder.choice import AuxZipf, FeatureChoice, Zipf, feature_counts
from ellzero.autoencoder.contrastive import Contrastive
from ellzero.autoencoder.gradient_aware import GradientAware, with_gradients
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.objective import Step
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError
from ellzero.models.reference import reference_language_model, reference_texts
from ellzero.parts.constraints import BatchTopK, FeatureTopK, TopK
from ellzero.training.losses import info_nce, next_token

NAMES = ("mp_sae", "mutual_choice", "feature_choice", "adaptive_k", "top_afa", "g_sae", "csr")


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def planted(rows=3000, d=16, features=32, k=2, seed=0):
    draw = np.random.default_rng(seed)
    atoms = draw.standard_normal((features, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((rows, features))
    for row in codes:
        row[draw.choice(features, k, replace=False)] = draw.uniform(1, 2, k)
    return (codes @ atoms + 3).astype(np.float32)


X = planted()
HARD = np.random.default_rng(3).uniform(0, 10, len(X)).astype(np.float32)
GRADIENT = np.random.default_rng(4).standard_normal(X.shape).astype(np.float32)


def make(name, k=2, d_sae=48, d_in=16, **options):
    sae = SparseAutoencoder.from_preset(name, d_in=d_in, d_sae=d_sae, k=k, **options)
    if name == "adaptive_k":
        fit_probe(sae, X[:, :d_in], HARD)
    return sae


def beside(name):
    return {"adaptive_k": HARD, "g_sae": GRADIENT}.get(name)


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_training_finds_structure_and_goes_on_after_a_kill_with_the_same_bits(name, tmp_path):
    options = {"lr": 0.02, "batch_size": 100, "steps": 40}
    before = make(name)
    whole = make(name)
    SAETrainer(whole, **options).fit(X, beside=beside(name))
    assert evaluate(whole, X)["fvu"] < 0.9
    assert not same(before, whole)
    cut, count = make(name), []
    codes = cut.codes

    def dies(*rows):
        count.append(1)
        if len(count) == 27:
            raise Killed
        return codes(*rows)

    cut.codes = dies
    with pytest.raises(Killed):
        SAETrainer(cut, **options).fit(X, beside=beside(name), checkpoint=tmp_path, every=10)
    resumed = make(name)
    found = SAETrainer(resumed, **options).fit(X, beside=beside(name), checkpoint=tmp_path, every=10)
    assert min(found.losses) == 21
    assert same(whole, resumed)


@pytest.mark.parametrize("name", NAMES)
def test_training_on_scaled_activations_gives_the_scaled_autoencoder(name):
    found = []
    for factor in (1.0, 64.0):
        sae = SparseAutoencoder.from_preset(name, d_in=16, d_sae=48, k=2)
        if name == "adaptive_k":
            fit_probe(sae, X * factor, HARD)
        SAETrainer(sae, lr=0.003, batch_size=64, steps=20).fit(X * factor, beside=beside(name))
        found.append(sae)
    rows = torch.from_numpy(X)
    torch.testing.assert_close(found[1](64 * rows), 64 * found[0](rows), atol=1e-2, rtol=1e-3)


class TestAdaptive:
    def test_the_probe_is_the_ridge_of_scikit_learn_and_the_mean_is_met(self):
        weight = np.random.default_rng(0).standard_normal(16)
        y = np.clip(5 + 0.8 * (X - X.mean(0)) @ weight + np.random.default_rng(1).standard_normal(len(X)), 0, 10)
        sae = SparseAutoencoder.from_preset("adaptive_k", d_in=16, d_sae=64, k=6)
        found = fit_probe(sae, X, y)
        scale = np.sqrt(np.square(X.astype(np.float64)).mean())
        peer = RidgeCV([found.penalty]).fit(X / scale, y)
        np.testing.assert_allclose(sae.probe_weight.detach(), peer.coef_ / scale, atol=1e-4)
        np.testing.assert_allclose(sae.probe_bias.detach(), peer.intercept_, atol=1e-4)
        assert found.r2 > 0.5
        assert found.mean == pytest.approx(6, abs=0.05)
        z = sae.encode(torch.from_numpy(X))
        assert (z != 0).sum(1).double().mean() == pytest.approx(found.mean, abs=0.1)

    @given(rows=st.integers(1, 6), seed=st.integers(0, 30))
    def test_each_row_keeps_as_many_as_its_complexity_says(self, rows, seed):
        sae = SparseAutoencoder(4, 30, select=AdaptiveTopK(2, 12))
        with torch.no_grad():
            sae.probe_weight.copy_(3 * draw(4, seed=seed))
            sae.probe_bias.fill_(4.0)
            sae.probe_start.zero_()
        x = draw(rows, 4, seed=seed + 1)
        told = (x @ sae.probe_weight + 4).clamp(0, 10) / 10
        wanted = (2 + 10 / (1 + (-6 * (told - 0.5)).exp())).round().long()
        support = sae.selection(x).support(draw(rows, 30))
        assert support.sum(1).tolist() == wanted.tolist()

    def test_the_probe_rests_until_the_last_tenth_and_then_learns(self):
        sae = make("adaptive_k")
        start = sae.probe_weight.detach().clone(), sae.probe_bias.detach().clone()
        SAETrainer(sae, lr=0.01, batch_size=64, steps=40).fit(X[:500], beside=HARD[:500])
        assert not torch.equal(sae.probe_weight, start[0])
        still = make("adaptive_k")
        still.objective = tuple(t for t in still.objective if not isinstance(t, ProbeLoss))
        SAETrainer(still, lr=0.01, batch_size=64, steps=40).fit(X[:500], beside=HARD[:500])
        torch.testing.assert_close(still.probe_weight, start[0])
        torch.testing.assert_close(sae.probe_start, torch.cat(start))  # what was fitted is known afterwards too
        term = ProbeLoss(weight=0.5, anchor=0.25, after=0.5)
        x = torch.from_numpy(X[:5])
        step = Step(sae, x, None, sae.encode(x), sae(x), torch.zeros(48), 1.0, progress=0.6, beside=HARD[:5] * 0 + 1)
        told = (x @ sae.probe_weight + sae.probe_bias).clamp(0, 10)
        moved = torch.cat([sae.probe_weight, sae.probe_bias]) - sae.probe_start
        wanted = 0.5 * ((told - 1) / 10).square().mean() + 0.25 * moved.square().mean()
        step = Step(**{**vars(step), "beside": torch.ones(5)})
        torch.testing.assert_close(term(step), wanted)
        assert term(Step(**{**vars(step), "progress": 0.4})) == 0

    def test_relative_l1_is_size_over_size(self):
        sae, x = make("topk"), torch.from_numpy(X[:9])
        z = sae.encode(x)
        step = Step(sae, x, None, z, sae.decode(z), torch.zeros(48), 7.0)
        torch.testing.assert_close(RelativeL1(0.3)(step), 0.3 * z.sum(1).mean() / x.norm(dim=1).mean())

    def test_bad_input_is_told(self):
        sae = SparseAutoencoder.from_preset("adaptive_k", d_in=16, d_sae=48, k=2)
        with pytest.raises(InputError, match="probe: not fitted yet"):
            sae.encode(X[:3])
        with pytest.raises(InputError, match="complexity: got 11"):
            fit_probe(sae, X, np.full(len(X), 11.0))
        with pytest.raises(InputError, match="do not vary"):
            fit_probe(sae, X, np.full(len(X), 5.0))
        with pytest.raises(InputError, match="complexity"):
            fit_probe(sae, X, HARD[:5])
        with pytest.raises(InputError, match="want AdaptiveTopK"):
            fit_probe(make("topk"), X, HARD)
        for options, message in (((0, 3), "k_min"), ((4, 3), "k_max"), ((2, 6, 9.0), "mean")):
            with pytest.raises(InputError, match=message):
                AdaptiveTopK(*options)
        with pytest.raises(InputError, match="k_max: got 99"):
            SparseAutoencoder(4, 30, select=AdaptiveTopK(2, 99))

    def test_unigram_surprisal_is_high_for_rare_tokens(self):
        found = unigram_surprisal(np.array([5, 5, 5, 5, 2, 2, 9]))
        np.testing.assert_allclose(found, [0, 0, 0, 0, 5, 5, 10], atol=1e-6)
        with pytest.raises(InputError, match="equally frequent"):
            unigram_surprisal(np.array([1, 2, 3]))


class TestPrefixNorm:
    @settings(deadline=None)
    @given(rows=st.integers(1, 5), m=st.sampled_from([1, 3, 70, 200]), seed=st.integers(0, 40),
           size=st.sampled_from([0.0, 0.5, 3.0, 100.0]))  # fmt: skip
    def test_no_other_number_of_latents_comes_nearer_to_the_norm(self, rows, m, seed, size):
        scores, norms, target = draw(rows, m, seed=seed), draw(m, seed=1).abs(), size * draw(rows, seed=2).abs()
        support = _UpToNorm(target, norms).support(scores)
        for row, kept, goal in zip(scores.clamp_min(0) * norms, support, target):
            ranked = row.sort(descending=True, stable=True).values
            gaps = [abs(float(ranked[: j + 1].norm()) - float(goal)) for j in range(m)]
            count = int(kept.sum())
            assert gaps[count - 1] == pytest.approx(min(gaps), abs=1e-5, rel=1e-6)
            assert row[kept].min() >= (row[~kept].max() if count < m else -1)

    def test_the_autoencoder_goes_by_the_centred_norm(self):
        sae = make("top_afa")
        with torch.no_grad():
            sae.b_dec.copy_(draw(16))
        x = torch.from_numpy(X[:20])
        wanted = _UpToNorm((x - sae.b_dec).norm(dim=1), torch.ones(48)).support(sae.activations(x))
        assert torch.equal(sae.encode(x) != 0, wanted & (sae.activations(x) > 0))
        assert isinstance(sae.select, PrefixNorm)

    def test_bounds_never_exceed_the_coherence_and_one_is_met(self):
        for seed in range(10):
            sae = make("topk", k=5, seed=seed)
            found = zf_plot(sae, X[:300])
            assert 0 < found.bound <= coherence(sae.W_dec) + 1e-5
        pair = SparseAutoencoder(2, 2, select=TopK(2))
        with torch.no_grad():
            pair.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
            pair.W_enc.copy_(pair.W_dec.T)
        found = zf_plot(pair, np.array([[1.0, 1.0]], dtype=np.float32))
        assert found.bound == pytest.approx(0.6, abs=1e-5)
        assert coherence(pair.W_dec) == pytest.approx(0.6)

    def test_an_orthogonal_dictionary_lies_on_the_diagonal(self):
        sae = SparseAutoencoder(16, 16, select=PrefixNorm())
        atoms = torch.linalg.qr(draw(16, 16))[0]
        with torch.no_grad():
            sae.W_dec.copy_(atoms)
            sae.W_enc.copy_(atoms.T)
        z = draw(50, 16, seed=2).relu()
        found = zf_plot(sae, (z @ atoms).numpy())
        assert found.slope == pytest.approx(1, abs=1e-4)
        assert found.bound < 1e-4
        assert coherence(atoms) < 1e-5
        np.testing.assert_allclose(found.codes, found.reconstructions, rtol=1e-4)


class TestChoice:
    @settings(deadline=None)
    @given(n=st.integers(1, 40), rows=st.integers(1, 30), fill=st.floats(0, 1), gamma=st.floats(0, 3))
    def test_counts_are_exact_within_bounds_and_in_the_order_of_ranks(self, n, rows, fill, gamma):
        total = int(fill * n * rows)
        counts = feature_counts(Zipf(gamma).weights(n), total, rows)
        assert counts.sum() == total
        assert counts.max() <= rows
        assert counts.min() >= (1 if total >= n else 0)
        assert (np.diff(counts) <= 0).all()

    def test_counts_are_proportional_where_nothing_binds(self):
        np.testing.assert_array_equal(feature_counts(np.array([0.5, 0.3, 0.2]), 100, 90), [50, 30, 20])

    @pytest.mark.parametrize(("gamma", "beta"), [(0.7, 0.0), (1.3, 8.0), (2.0, 2.0)])
    def test_the_fit_finds_the_curve(self, gamma, beta):
        found = Zipf.fit(np.random.default_rng(0).permutation(Zipf(gamma, beta).weights(100)))
        assert (found.gamma, found.beta) == (pytest.approx(gamma, abs=1e-6), beta)
        assert Zipf.fit(np.zeros(10)) == Zipf(0.0)

    def test_every_latent_has_its_rows(self):
        sae, x = make("feature_choice", k=4, after=0.0, allocation="uniform").train(), draw(96, 16)
        assert ((sae.activations(x) + 1e-9 > 0) & sae.selection(x).support(sae.activations(x))).sum(0).tolist() == [
            8
        ] * 48
        zipf = make("feature_choice", k=4, gamma=1.0).train()
        zipf.rate = torch.arange(48.0)
        counts = zipf.selection(x).support(zipf.activations(x)).sum(0)
        assert counts.sum() == 96 * 4
        assert counts[47] == counts.max() > counts[0] == counts.min() >= 1
        assert isinstance(zipf.select.at(0.4), BatchTopK)
        assert zipf.select.at(0.5) is zipf.select

    def test_thresholds_keep_on_the_sample_what_the_choice_keeps(self):
        sae = make("feature_choice", k=3)
        SAETrainer(sae, lr=0.01, batch_size=128, steps=80).fit(X)
        assert sae.zipf.isfinite().all()
        sae.calibrate(X)
        x = torch.from_numpy(X)
        select = sae.select.for_rows(sae, x)
        scores = sae.activations(x)
        assert isinstance(select, FeatureTopK)
        assert torch.equal(sae.encode(x) != 0, select.support(scores) & (scores > 0))
        assert evaluate(sae, X)["dead"] == 0

    def test_under_used_latents_learn_from_the_error(self):
        sae = make("mutual_choice")
        rate = torch.full((48,), 0.1)
        rate[[3, 17]] = 1e-5
        dead = torch.zeros(48, dtype=torch.bool)
        dead[5] = True
        x = torch.from_numpy(X[:9])
        step = Step(sae, x, None, sae.train().encode(x), sae(x), dead, 1.0, rate=rate)
        assert AuxZipf(share=0.1).chosen(step).nonzero().flatten().tolist() == [3, 5, 17]
        assert AuxZipf(share=0.0).chosen(step).nonzero().flatten().tolist() == [5]

    def test_bad_input_is_told(self):
        for name, wrong in (("k", 0), ("allocation", "x"), ("after", 2), ("gamma", -1.0)):
            with pytest.raises(InputError, match=name):
                FeatureChoice(**{"k": 1, name: wrong})
        with pytest.raises(InputError, match="share"):
            AuxZipf(share=2.0)


class TestGradientAware:
    @pytest.mark.parametrize("form", ["multiply", "add"])
    def test_the_choice_is_by_the_score_and_the_values_stay(self, form):
        sae, x, g = make("g_sae", k=3, beta=0.7, form=form), torch.from_numpy(X[:30]), torch.from_numpy(GRADIENT[:30])
        a = sae.activations(x)
        slope = torch.stack([torch.stack([(w @ row).abs() for w in sae.W_dec]) for row in g])
        score = a + 0.7 * slope * (a if form == "multiply" else (a > 0))
        wanted = a.where(TopK(3).support(score), torch.zeros_like(a))
        torch.testing.assert_close(sae.encode(x, beside=g), wanted)
        assert not torch.equal(sae.encode(x), wanted)
        torch.testing.assert_close(sae.encode(x), make("topk", k=3).encode(x))

    def test_no_derivative_flows_through_the_score(self):
        sae, x, g = make("g_sae", k=3), torch.from_numpy(X[:30]), torch.from_numpy(GRADIENT[:30])
        support = sae.encode(x, beside=g) != 0
        found = torch.autograd.grad(sae.decode(sae.encode(x, beside=g)).square().sum(), [sae.W_enc, sae.W_dec])
        kept = sae.activations(x) * support
        wanted = torch.autograd.grad(sae.decode(kept).square().sum(), [sae.W_enc, sae.W_dec])
        for one, two in zip(found, wanted):
            torch.testing.assert_close(one, two)

    def test_gradients_of_a_model_are_those_of_its_loss(self):
        model, tokenizer = reference_language_model()
        tokens = [tokenizer.encode(text)[:20] for text in reference_texts("validation")[:3]]
        found = with_gradients(model, "layers.2", tokens=tokens, context=32)
        assert found.x.shape == found.gradients.shape == (60, 128)
        assert np.linalg.norm(found.gradients, axis=1).mean() == pytest.approx(1)
        # moving the activations of a document a little changes its loss by the gradient, up to the common scale
        moved, scales = draw(20, 128, seed=6), []
        for document in (0, 1, 2):
            losses = []
            for step in (1e-2, -1e-2):
                hook = model.layers[2].register_forward_hook(lambda m, i, o, step=step: o + step * moved[: o.shape[1]])
                with torch.no_grad():
                    losses.append(19 * float(next_token(model, torch.tensor([tokens[document]]))))
                hook.remove()
            gradient = torch.from_numpy(found.gradients[found.documents == document])
            scales.append((losses[0] - losses[1]) / 2e-2 / float((gradient * moved).sum()))
        assert scales[0] > 0
        np.testing.assert_allclose(scales, scales[0], rtol=0.02)
        short = with_gradients(model, "layers.2", tokens=tokens, context=32, rows=7, sequences=1)
        assert short.x.shape == (7, 128)

    def test_bad_input_is_told(self):
        with pytest.raises(InputError, match="form"):
            GradientAware(form="divide")
        with pytest.raises(InputError, match="beside"):
            make("g_sae").encode(X[:3], beside=GRADIENT[:2])
        model, _ = reference_language_model()
        with pytest.raises(InputError, match="rows: got 99"):
            with_gradients(model, "layers.2", tokens=[[1, 2, 3]], rows=99)


class TestContrastive:
    def step(self, sae, x, **options):
        z, pre = sae.codes(x)
        return Step(sae, x, pre, z, sae.decode(z), torch.zeros(sae.d_sae, dtype=torch.bool), 1.0, **options)

    def test_info_nce_is_written_out(self):
        a, b = draw(6, 5), draw(6, 5, seed=1)
        s = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.3
        wanted = torch.stack([-(s[i, i].exp() / s[i].exp().sum()).log() for i in range(6)]).mean()
        torch.testing.assert_close(info_nce(a, b, temperature=0.3), wanted)
        labels = torch.tensor([0, 1, 0, 2, 1, 0])
        s = F.normalize(a, dim=1) @ F.normalize(a, dim=1).T / 0.3
        total = 0.0
        for i in range(6):
            others = [j for j in range(6) if j != i]
            friends = [j for j in others if labels[j] == labels[i]]
            room = sum(s[i, j].exp() for j in others).log()
            total += sum(room - s[i, j] for j in friends) / max(len(friends), 1)
        torch.testing.assert_close(info_nce(a, a, temperature=0.3, labels=labels), total / 6)
        with pytest.raises(InputError, match="second"):
            info_nce(a, b[:3])

    def test_each_kind_of_positive(self):
        sae, x = make("csr", k=3).train(), torch.from_numpy(X[:12])
        z, pre = sae.codes(x)
        wide = pre.relu() * TopK(12).support(pre.relu())
        partners = draw(12, 16, seed=7)
        with_pairs = sae.codes(partners * 2.0)[0]
        labels = torch.arange(12) % 3
        for positives, options, other in (
            ("ranks", {}, wide), ("same", {}, z), ("pairs", {"beside": partners, "scale": 2.0}, with_pairs),
            ("labels", {"beside": labels}, z),
        ):  # fmt: skip
            wanted = info_nce(z, other, temperature=0.3, labels=labels if positives == "labels" else None)
            found = Contrastive(0.5, 0.3, positives)(self.step(sae, x, **options))
            torch.testing.assert_close(found, 0.5 * wanted)

    def test_pairs_and_labels_train(self):
        labels = np.arange(len(X)) % 5
        for positives, others in (("pairs", X[::-1].copy()), ("labels", labels), ("same", None)):
            sae = make("csr", positives=positives)
            SAETrainer(sae, lr=0.003, batch_size=64, steps=10).fit(X, beside=others)
            assert torch.isfinite(sae.W_dec).all()

    def test_bad_input_is_told(self):
        for name, wrong in (("positives", "x"), ("temperature", 0.0), ("factor", 1)):
            with pytest.raises(InputError, match=name):
                Contrastive(**{name: wrong})
        for positives, wrong in itertools.product(("pairs", "labels"), (None, torch.zeros(3, 3))):
            sae = make("csr", positives=positives)
            with pytest.raises(InputError, match="beside"):
                Contrastive(positives=positives)(self.step(sae, torch.from_numpy(X[:5]), beside=wrong))
