"""Heads: the pooled logits against the whole tensor and against differences, weights by hand, cut vocabularies."""

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.retrieval import pooled_logits as module
from ellzero.retrieval.heads import (
    BinaryHead,
    ClsMLMHead,
    DictionaryHead,
    ExpMLPHead,
    IDFHead,
    MLMHead,
    MLMTransform,
    MLPHead,
    UnitTransform,
    head_from,
    idf_of,
)
from ellzero.retrieval.pooled_logits import POOLINGS, SATURATIONS, pooled_logits
from ellzero.retrieval.states import TokenBatch


def draw(*shape, seed=0, dtype=np.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def batch(b=3, L=5, d=4, vocabulary=11, seed=0, echo=False):
    """Texts of unlike length, the last without any token; [CLS] is piece 1, [SEP] piece 2, padding 0."""
    draws = np.random.default_rng(seed)
    lengths = [*range(L, L - b + 1, -1), 0]
    mask = torch.arange(L)[None] < torch.tensor(lengths)[:, None]
    pieces = torch.from_numpy(draws.integers(3, vocabulary, (b, L))) * mask
    special = ~mask
    for row, length in enumerate(lengths):
        if length:
            pieces[row, 0], pieces[row, length - 1] = 1, 2
            special[row, 0] = special[row, length - 1] = True
    return TokenBatch(draw(b, L, d, seed=seed), pieces, mask, special, mask & (torch.arange(L) > 1) if echo else None)


def randomised(module, seed=5):
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.add_(draw(*parameter.shape, seed=seed + place).to(parameter))
    return module


def whole(states, mask, E, c, pooling, saturation, transform=None):
    """The definition: every logit at once."""
    h = states if transform is None else transform(states)
    z = (h @ E.T + c).relu()
    z = {"relu": lambda x: x, "log1p": lambda x: (1 + x).log(), "log1p_log1p": lambda x: (1 + (1 + x).log()).log()}[
        saturation
    ](z) * mask[..., None]
    return z.amax(1) if pooling == "max" else z.sum(1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("saturation", list(SATURATIONS))
@pytest.mark.parametrize("transform", [None, MLMTransform, UnitTransform])
def test_pooled_logits_equal_the_whole_tensor(monkeypatch, pooling, saturation, transform):
    """Values and every gradient, with tiles so small that each loop runs more than once."""
    for name, size in (("TOKENS", 10), ("TERMS", 3), ("PAIRS", 4)):
        monkeypatch.setattr(module, name, size)
    given = batch(b=5)
    E, c, w, h = (draw(*shape, seed=4, dtype=np.float64) for shape in ((11, 4), (11,), (5, 11), (5, 5, 4)))
    transform = None if transform is None else randomised(transform(4).double())
    found = []
    for call in (
        lambda h, E, c: pooled_logits(h, given.mask, E, c, pooling=pooling, saturation=saturation, transform=transform),
        lambda h, E, c: whole(h, given.mask, E, c, pooling, saturation, transform),
    ):
        leaves = [one.clone().requires_grad_() for one in (h, E, c)]
        out = call(*leaves)
        learned = [] if transform is None else list(transform.parameters())
        found.append([out, *torch.autograd.grad((out * w).sum(), [*leaves, *learned])])
        with torch.no_grad():
            torch.testing.assert_close(call(*leaves), out)
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain)
    assert not found[0][0][-1].any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("saturation", list(SATURATIONS))
def test_the_gradient_is_that_of_differences(pooling, saturation):
    given = batch(b=2, L=4)
    h, E, c = (draw(*shape, seed=4, dtype=np.float64).requires_grad_() for shape in ((2, 4, 4), (5, 4), (5,)))
    transform = randomised(MLMTransform(4).double())

    def call(h, E, c, *_):
        return pooled_logits(h, given.mask, E, c, pooling=pooling, saturation=saturation, transform=transform)

    torch.autograd.gradcheck(call, (h, E, c, *transform.parameters()))


def test_frozen_parts_get_no_gradient():
    given, E = batch(), draw(11, 4, seed=1)
    c = torch.zeros(11, requires_grad=True)
    pooled_logits(given.states, given.mask, E, c).sum().backward()
    assert c.grad is not None
    assert E.grad is None
    assert pooled_logits(given.states[:, :0], given.mask[:, :0], E, c).shape == (3, 11)


def test_weights_by_hand():
    """Repeats keep the largest weight or add up; special tokens and padding have none."""
    states, pieces = [[[5.0], [1.0], [3.0], [-4.0], [9.0], [9.0]]], [[1, 3, 3, 4, 2, 0]]
    mask, special = [[True] * 5 + [False]], [[True, False, False, False, True, True]]
    one = TokenBatch(*(torch.tensor(part) for part in (states, pieces, mask, special)))
    for repeats, wanted in (("max", [0, 0, 0, 4, 0]), ("sum", [0, 0, 0, 6, 0])):
        head = MLPHead(1, 5, repeats=repeats)
        assert head(one).tolist() == [[0, 0, 0, 2 if repeats == "sum" else 1, 1]]
        torch.nn.init.ones_(head.linear.weight)
        assert head(one).tolist() == [wanted]
        cut = MLPHead(1, 5, repeats=repeats, columns=[0, 3])
        torch.nn.init.ones_(cut.linear.weight)
        assert cut(one).tolist() == [[0, wanted[3]]]
    assert BinaryHead(5)(one).tolist() == [[0, 0, 0, 1, 1]]
    assert IDFHead([0, 1, 2, 3, 4.0])(one).tolist() == [[0, 0, 0, 3, 4]]
    assert ExpMLPHead(1, 5)(one).tolist() == [[0, 0, 0, 1, 1]]


def test_idf_by_hand_and_its_default():
    found = idf_of([[0, 0, 1], [0]], 3)
    np.testing.assert_allclose(found, [np.log(1 + 0.5 / 2.5), np.log(1 + 1.5 / 1.5), np.log(1 + 2.5 / 0.5)], rtol=1e-6)
    assert idf_of([[0, 1]], 3, default=0.25)[2] == 0.25


def test_a_cut_vocabulary_is_the_same_columns():
    given, E, c = batch(), draw(11, 4, seed=1), draw(11, seed=2)
    keep = [1, 4, 5, 9]
    full, cut = MLMHead(E, c), MLMHead(E[keep], c[keep], vocabulary=11, columns=keep)
    torch.testing.assert_close(cut(given), full(given)[:, keep])
    assert cut.names([f"p{i}" for i in range(11)]) == ["p1", "p4", "p5", "p9"]
    for kept in ([4, 1], [], [0, 11], [-1, 2]):
        with pytest.raises(InputError, match="columns"):
            BinaryHead(11, columns=kept)


def test_first_tokens_and_echoes():
    given, E = batch(echo=True), draw(11, 4, seed=1)
    z = torch.log1p((given.states[:2, 0] @ E.T).relu())
    torch.testing.assert_close(ClsMLMHead(E)(given)[:2], z)
    echo = MLMHead(E, positions="echo")(given)
    torch.testing.assert_close(echo, whole(given.states, given.echo, E, 0, "max", "log1p"))
    with pytest.raises(InputError, match="echo"):
        MLMHead(E, positions="echo")(batch())
    quality = MLMHead(E, quality=True)
    share = quality.quality(given.states[:2, 0]).sigmoid()
    torch.testing.assert_close(quality(given)[:2], MLMHead(E)(given)[:2] * share)


def test_a_dictionary_of_the_mean_state():
    from ellzero.autoencoder import SparseAutoencoder

    given = batch()
    sae = SparseAutoencoder.from_preset("topk", d_in=4, d_sae=12, k=3)
    out = DictionaryHead(sae, 12)(given)
    mean = torch.stack([given.states[row, : given.mask[row].sum()].mean(0) for row in range(2)])
    torch.testing.assert_close(out[:2], sae.encode(torch.nn.functional.normalize(mean, dim=1)))
    with pytest.raises(InputError, match=r"encode gave \(3, 12\)"):
        DictionaryHead(sae, 13)(given)
    with pytest.raises(InputError, match="dictionary"):
        DictionaryHead(object(), 3)


def test_heads_come_back_from_settings_and_tensors():
    given, E = batch(), draw(4, 4, seed=1)
    keep = {"vocabulary": 11, "columns": [1, 4, 5, 9]}
    for head in (
        MLMHead(E, 0.3, transform=MLMTransform(4), pooling="sum", quality=True, **keep),
        ClsMLMHead(E, 0.3, transform=UnitTransform(4), saturation="relu", **keep),
        MLPHead(4, repeats="sum", saturation="log1p", **keep),
        ExpMLPHead(4, **keep),
        IDFHead(torch.arange(11.0), trainable=True, columns=[0, 3]),
        BinaryHead(11),
    ):
        again = head_from(head.settings(), head.state_dict())
        torch.testing.assert_close(again(given), head(given), rtol=0, atol=0)
        assert again.settings() == head.settings()


def test_bad_input_is_named():
    E = draw(5, 4)
    for call, message in (
        (lambda: MLMHead(E, pooling="mean"), "pooling: got 'mean'"),
        (lambda: MLMHead(E, saturation="log"), "saturation: got 'log'"),
        (lambda: MLMHead(E, vocabulary=7), r"embeddings: got shape \(5, 4\)"),
        (lambda: MLMHead(E, positions="last"), "positions: got 'last'"),
        (lambda: MLPHead(4, 5, repeats="mean"), "repeats: got 'mean'"),
        (lambda: IDFHead([1.0, -1.0]), "weights: want"),
        (lambda: idf_of([], 3), "pieces: got no text"),
        (lambda: head_from({"kind": "mlq"}, {}), "kind: got 'mlq'"),
        (lambda: pooled_logits(E[None], torch.ones(1, 4).bool(), E, E[:, 0]), "mask: got shape"),
        (lambda: MLMHead(E)(_stateless()), "states"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def _stateless():
    given = batch()
    return TokenBatch(None, given.pieces, given.mask, given.special)
