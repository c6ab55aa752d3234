"""Quadratic latents: the closed form against the error written out, prefixes, spectra, training and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.autoencoder.bilinear import BilinearAutoencoder, hoyer_density
from ellzero.errors import InputError


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def make(d=5, m=11, seed=0, **options):
    model = BilinearAutoencoder(d, m, seed=seed, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * draw(*parameter.shape, seed=seed + 1))
    return model


def written_out(model, x, upto=None):
    """||u u^T - sum f l r^T||^2 with every matrix formed; ``upto`` latents or clusters only."""
    u = x / x.norm(dim=1, keepdim=True)
    f = (u @ model.left.T) * (u @ model.right.T)
    if model.mix is None:
        f = f[:, :upto] if upto else f
    else:
        rows = model.mix[:upto] if upto else model.mix
        f = f @ rows.T @ rows
    n = f.shape[1]
    told = torch.einsum("ni,id,ie->nde", f, model.left[:n], model.right[:n])
    return (u[:, :, None] * u[:, None, :] - told).square().sum((1, 2)).mean()


@settings(deadline=None)
@given(
    rows=st.integers(1, 6), d=st.integers(1, 6), m=st.integers(1, 13), tile=st.integers(1, 14), ordered=st.booleans(),
    mixed=st.booleans(), seed=st.integers(0, 40),
)  # fmt: skip
def test_the_closed_form_is_the_error_written_out_and_so_is_its_gradient(rows, d, m, tile, ordered, mixed, seed):
    model = make(d, m, seed, tile=tile, ordered=ordered, mixed=max(m // 2, 1) if mixed else None)
    x = draw(rows, d, seed=seed + 5)
    n = m if model.mix is None else len(model.mix)
    wanted = sum(written_out(model, x, p) for p in range(1, n + 1)) / n if ordered else written_out(model, x)
    found = model.loss(x)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    for one, two in zip(*(torch.autograd.grad(loss, [*model.parameters()]) for loss in (found, wanted))):
        torch.testing.assert_close(one, two, atol=1e-8, rtol=1e-8)


def test_prefix_errors_are_those_of_prefixes_and_decode_tells_the_same():
    for options in ({}, {"mixed": 4}):
        model, x = make(**options), draw(7, 5)
        errors = model.prefix_errors(x)
        n = len(errors)
        torch.testing.assert_close(errors, torch.stack([written_out(model, x, p) for p in range(1, n + 1)]).detach())
        u = x / x.norm(dim=1, keepdim=True)
        told = model.decode(model.encode(x))
        whole = (u[:, :, None] * u[:, None, :] - told).square().sum((1, 2)).mean()
        torch.testing.assert_close(whole, model.loss(x))


def test_a_spectrum_is_that_of_the_symmetric_form_and_knows_no_gauge():
    model = make()
    for latent in range(3):
        left, right = model.left[latent].detach(), model.right[latent].detach()
        form = (left[:, None] * right + right[:, None] * left) / 2
        found = model.spectrum(latent)
        values = torch.linalg.eigvalsh(form)
        torch.testing.assert_close(found.values, torch.stack([values[-1], values[0]]))
        torch.testing.assert_close((found.vectors.T * found.values) @ found.vectors, form)
        x = draw(4, 5)
        u = x / x.norm(dim=1, keepdim=True)
        torch.testing.assert_close((u @ found.vectors.T).square() @ found.values, model.features(x)[:, latent].detach())
        with torch.no_grad():
            model.left[latent] *= 3
            model.right[latent] /= 3
        torch.testing.assert_close(model.spectrum(latent).values, found.values)


def test_hoyer_density_is_one_for_the_same_everywhere_and_zero_for_once():
    f = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    torch.testing.assert_close(hoyer_density(f)[:2], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    assert torch.isfinite(hoyer_density(f)).all()
    with pytest.raises(InputError, match="at least 2"):
        hoyer_density(f[:1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_training_lowers_the_error_repeats_and_goes_on_after_a_kill(optimizer, tmp_path):
    x = draw(600, 8).float().numpy()
    options = {"steps": 40, "batch_size": 100, "optimizer": optimizer, "warm": 10, "lr": 0.02}
    whole = BilinearAutoencoder(8, 24)
    before = float(whole.loss(torch.from_numpy(x)))
    whole.fit(x, **options)
    assert float(whole.loss(torch.from_numpy(x))) < 0.85 * before
    cut, count = BilinearAutoencoder(8, 24), []
    plain = cut.loss

    def dies(batch):
        count.append(1)
        if len(count) == 26:
            raise Killed
        return plain(batch)

    cut.loss = dies
    with pytest.raises(Killed):
        cut.fit(x, checkpoint=tmp_path, every=10, **options)
    resumed = BilinearAutoencoder(8, 24)
    assert min(resumed.fit(x, checkpoint=tmp_path, every=10, **options).losses) == 21
    for one, two in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(one, two)


def test_files_give_the_same_back(tmp_path):
    for options in ({"ordered": True}, {"mixed": 4, "tile": 3}):
        model, x = BilinearAutoencoder(5, 11, **options), draw(4, 5).float()
        model.save(tmp_path)
        again = BilinearAutoencoder.load(tmp_path)
        assert torch.equal(again.encode(x), model.encode(x))
        assert (again.ordered, again.tile) == (model.ordered, model.tile)
        torch.testing.assert_close(again.loss(x), model.loss(x))


def test_rows_of_zeros_tell_nothing_and_bad_input_is_told():
    model = BilinearAutoencoder(5, 11)
    assert float(model.loss(torch.zeros(3, 5))) == 1.0
    for options, message in (({"d_sae": 0}, "d_sae"), ({"mixed": 12}, "mixed: got 12"), ({"tile": 0}, "tile")):
        with pytest.raises(InputError, match=message):
            BilinearAutoencoder(**{"d_in": 5, "d_sae": 11, **options})
    with pytest.raises(InputError, match="x"):
        model.encode(torch.zeros(3, 4))
    with pytest.raises(InputError, match="optimizer"):
        model.fit(np.ones((3, 5), dtype=np.float32), optimizer="sgd")
    with pytest.raises(InputError, match="latent"):
        model.spectrum(11)
