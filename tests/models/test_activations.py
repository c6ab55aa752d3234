"""The stream gives exactly the rows of a direct forward pass, once each, in bounded memory, cached or not."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn

from ellzero.errors import InputError
from ellzero.models import ActivationStream, TransformerConfig, train_tokenizer
from ellzero.models import activations as module
from ellzero.models.activation_cache import fingerprint
from ellzero.models.cnn import CNNConfig
from ellzero.models.mlp import MLPConfig
from ellzero.models.shuffling import shuffled
from ellzero.models.sites import locate

TEXTS = [
    "The first document is a short one.",
    "a",
    "The second, longer document goes on and on: " + "again and again, " * 8,
    "",
    "And a last one, with 3 digits: 1 2 3.",
]
TOKENIZER = train_tokenizer(TEXTS, 290)
MODEL = TransformerConfig(
    vocabulary=TOKENIZER.vocabulary, width=16, depth=3, heads=2, key_heads=1, hidden=24, context=20
).build()
with torch.no_grad():  # large enough that a wrong position or a leak of padding shows
    for weight in MODEL.parameters():
        weight.mul_(10 if weight.ndim == 2 else 1)
OPTIONS = {"hook": "layers.1", "texts": TEXTS, "tokenizer": TOKENIZER, "context": 12, "sequences": 4, "batch_size": 8}


def direct(keep_bos=False):
    """Rows and documents, window by window, without any padding, hook or shuffling."""
    rows, documents = [], []
    model = MODEL.eval()
    with torch.no_grad():
        for d, text in enumerate(TEXTS):
            tokens = TOKENIZER.encode(text)
            for low in range(0, len(tokens), 11):
                window = torch.tensor([[TOKENIZER.bos, *tokens[low : low + 11]]])
                x = model.embedding(window)
                frequency = 10_000.0 ** (-torch.arange(4) / 4)
                angle = torch.arange(window.shape[1])[None, :, None] * frequency
                for layer in model.layers[:2]:
                    x = layer(x, angle, None)
                part = x[0] if keep_bos else x[0, 1:]
                rows.append(part)
                documents += [d] * len(part)
    return torch.cat(rows).numpy(), np.array(documents)


def assert_same_rows(rows, want, tolerance=1e-5):
    """The same rows in any order: the best one-to-one assignment leaves no difference."""
    assert rows.shape == want.shape
    distance = np.abs(rows[:, None] - want[None]).max(-1)
    assert distance[linear_sum_assignment(distance)].max() < tolerance


@pytest.mark.parametrize("drop_bos", [True, False])
@pytest.mark.parametrize("sequences", [1, 3, 50])
def test_rows_are_those_of_a_direct_pass(drop_bos, sequences):
    """Padding and BOS are out, nothing else is, and every row knows its document."""
    stream = ActivationStream(MODEL, **{**OPTIONS, "sequences": sequences}, drop_bos=drop_bos)
    rows, documents = stream.collect(return_documents=True)
    want, want_documents = direct(keep_bos=not drop_bos)
    assert stream.rows == len(want) == len(rows)
    np.testing.assert_array_equal(np.bincount(documents), np.bincount(want_documents))
    for document in np.unique(want_documents):
        assert_same_rows(rows[documents == document], want[want_documents == document])
    assert rows.dtype == np.float32


def test_batches_have_their_size_and_every_row_comes_once():
    stream = ActivationStream(MODEL, **OPTIONS, buffer=16)
    batches = list(stream)
    assert all(batch.shape == (8, 16) for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= 8
    assert all(batch.dtype == torch.float32 and not batch.requires_grad for batch in batches)
    rows = torch.cat(batches).numpy()
    whole = ActivationStream(MODEL, **OPTIONS).collect()
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], whole[np.lexsort(whole.T)], atol=0)


def test_the_seed_decides_the_order_and_epochs_shuffle_anew():
    def rows(seed, epoch=0):
        return torch.cat([r for r, _ in ActivationStream(MODEL, **OPTIONS, seed=seed).batches(epoch)])

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))
    assert not torch.equal(rows(0), rows(0, epoch=1))
    once, again = rows(0).numpy(), rows(0, epoch=1).numpy()
    np.testing.assert_array_equal(once[np.lexsort(once.T)], again[np.lexsort(again.T)])


def test_the_global_generators_stay_where_they_are():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ActivationStream(MODEL, **OPTIONS).collect()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.train()
    model[2].eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    got = ActivationStream(model, hook="1", inputs=[x], batch_size=2).collect()
    want = model[0](x).detach().numpy()
    np.testing.assert_allclose(got[np.lexsort(got.T)], want[np.lexsort(want.T)])
    assert [m.training for m in model] == [True, True, False]
    assert all(not m._forward_hooks for m in model.modules())


def test_later_layers_are_not_computed():
    calls = collections.Counter()
    handle = MODEL.layers[2].register_forward_hook(lambda *a: calls.update(["late"]))
    ActivationStream(MODEL, **OPTIONS).collect()
    handle.remove()
    assert not calls


# The buffer ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=8),
    capacity=st.integers(1, 20),
    batch=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_shuffling_gives_every_row_once_and_holds_few(sizes, capacity, batch, seed):
    capacity = max(capacity, batch)
    taken = given_out = 0

    def source():
        nonlocal taken
        for size in sizes:
            # what was taken before has either gone out or fits the buffer
            assert taken - given_out <= capacity
            yield torch.arange(taken, taken + size)[:, None].float(), np.arange(taken, taken + size) + 100
            taken += size

    out, labels, lengths = [], [], []
    for rows, marks in shuffled(source(), capacity, batch, np.random.default_rng(seed)):
        given_out += len(rows)
        lengths.append(len(rows))
        out += rows[:, 0].int().tolist()
        labels += marks.tolist()
    assert sorted(out) == list(range(sum(sizes)))
    assert [value + 100 for value in out] == labels
    assert all(length == batch for length in lengths[:-1])


def test_the_buffer_is_a_fair_shuffle():
    """With the whole source in the buffer every row is equally likely to come first; with a small one, early rows."""
    first, early = collections.Counter(), 0
    for seed in range(600):
        source = [(torch.arange(6)[:, None].float(), np.arange(6))]
        first[next(iter(shuffled(source, 6, 2, np.random.default_rng(seed))))[1][0]] += 1
        early += next(iter(shuffled(source, 2, 1, np.random.default_rng(seed))))[1][0] < 2
    assert all(60 < first[i] < 140 for i in range(6))
    assert early == 600


def test_only_what_the_buffer_holds_is_computed_ahead():
    model = MLPConfig(3, 2, (4,)).build()
    calls = collections.Counter()
    handle = model.layers[0].register_forward_hook(lambda *a: calls.update(["run"]))
    inputs = [torch.ones(10, 3)] * 50
    stream = iter(ActivationStream(model, hook="layers.0", inputs=inputs, batch_size=5, buffer=30))
    next(stream)
    assert calls["run"] == 3
    for _ in range(4):
        next(stream)
    assert calls["run"] == 5
    handle.remove()


# The cache -----------------------------------------------------------------------------------------------------------


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_cached_and_on_the_fly_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("ellzero.models.activation_cache._SHARD_ENTRIES", 400)
    plain = list(ActivationStream(MODEL, **OPTIONS))
    filling = list(ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "cache"))
    assert equal(plain, filling)
    assert len(list((tmp_path / "cache").glob("shard-*.safetensors"))) > 2
    monkeypatch.setattr(module.ActivationStream, "_record", lambda *a: pytest.fail("the model ran"))
    assert equal(plain, list(ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "cache")))


def test_an_interrupted_cache_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ellzero.models.activation_cache._SHARD_ENTRIES", 400)
    plain = list(ActivationStream(MODEL, **OPTIONS))
    stream = ActivationStream(MODEL, **OPTIONS, cache=tmp_path, buffer=8)
    next(iter(stream))
    done = len(list(tmp_path.glob("shard-*")))
    calls = collections.Counter()
    record = module.ActivationStream._record
    monkeypatch.setattr(module.ActivationStream, "_record", lambda *a: (calls.update(["run"]), record(*a))[1])
    again = ActivationStream(MODEL, **OPTIONS, cache=tmp_path)
    assert equal(plain, list(again))
    assert done >= 1
    assert 0 < calls["run"] < len(again.plan)


def test_a_cache_of_something_else_is_refused(tmp_path):
    ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "a").collect()
    with pytest.raises(InputError, match=r"hook 'layers\.1', now it is 'layers\.2'"):
        ActivationStream(MODEL, **{**OPTIONS, "hook": "layers.2"}, cache=tmp_path / "a")
    with pytest.raises(InputError, match="with windows"):
        ActivationStream(MODEL, **{**OPTIONS, "texts": TEXTS[:2]}, cache=tmp_path / "a")
    other = MODEL.config.build(1)
    with pytest.raises(InputError, match="with model"):
        ActivationStream(other, **OPTIONS, cache=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "b")
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="cannot make the folder"):
        ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "b" / "thesis.txt" / "c")
    (tmp_path / "a" / "activations.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        ActivationStream(MODEL, **OPTIONS, cache=tmp_path / "a")


def test_a_torn_shard_is_refused(tmp_path):
    ActivationStream(MODEL, **OPTIONS, cache=tmp_path).collect()
    shard = next(tmp_path.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(InputError, match="shard-000000"):
        ActivationStream(MODEL, **OPTIONS, cache=tmp_path).collect()


@pytest.mark.parametrize("change", [lambda t: t + 1e-7, lambda t: t.double(), lambda t: t.reshape(2, 3), lambda t: -t])
def test_fingerprints_see_every_change(change):
    x = torch.arange(6.0)
    assert fingerprint({"a": x}) == fingerprint({"a": x.clone()})
    assert fingerprint({"a": x}) != fingerprint({"a": change(x)})
    assert fingerprint({"a": x}) != fingerprint({"b": x})


# Tokens and inputs ---------------------------------------------------------------------------------------------------


def test_tokens_are_taken_as_they_are():
    documents = [[TOKENIZER.bos, 5, 6, 7], [8, 9], np.array([TOKENIZER.bos, 3], dtype=np.int32)]
    options = {"hook": "layers.1", "tokens": documents, "context": 3}
    assert ActivationStream(MODEL, **options).rows == 8
    assert ActivationStream(MODEL, **options, tokenizer=TOKENIZER).rows == 6
    assert ActivationStream(MODEL, **options, tokenizer=TOKENIZER, drop_bos=False).rows == 8
    _, origin = ActivationStream(MODEL, **options, tokenizer=TOKENIZER).collect(return_documents=True)
    assert np.bincount(origin).tolist() == [3, 2, 1]
    assert ActivationStream(MODEL, hook="layers.1", tokens=np.ones((3, 4), dtype=np.int64)).rows == 12


def test_a_model_that_takes_no_mask_gets_windows_of_equal_length():
    class Bag(nn.Module):
        """Sees the whole window from both sides, so padding would change every row."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 4)
            self.mixed = nn.Identity()

        def forward(self, tokens):
            x = self.table(tokens)
            return self.mixed(x + x.mean(1, keepdim=True))

    net = Bag()
    documents = [[1, 2, 3], [4], [5, 6, 7], [8, 9]]
    got, origin = ActivationStream(net, hook="mixed", tokens=documents, sequences=3).collect(return_documents=True)
    for d, tokens in enumerate(documents):
        want = net(torch.tensor([tokens]))[0].detach().numpy()
        assert_same_rows(got[origin == d], want)


def test_masks_of_inputs_count():
    x = torch.tensor([[1, 5, 6, 0], [1, 7, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]])
    stream = ActivationStream(MODEL, hook="layers.0", inputs=[{"tokens": x, "attention_mask": mask}])
    rows, origin = stream.collect(return_documents=True)
    assert rows.shape == (3, 16)
    assert sorted(origin) == [0, 0, 1]
    assert stream.rows is None


def test_channels_of_images_are_the_features():
    net = CNNConfig(1, 3, (4, 6)).build()
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows, origin = ActivationStream(net, hook="convolutions.1", inputs=[x[:3], x[3:]]).collect(return_documents=True)
    assert rows.shape == (5 * 4 * 4, 6)
    assert np.bincount(origin).tolist() == [16] * 5


def test_collect_gives_the_first_rows_and_the_dtype():
    stream = ActivationStream(MODEL, **OPTIONS)
    np.testing.assert_array_equal(stream.collect(11), stream.collect()[:11])
    half = ActivationStream(MODEL, **OPTIONS, dtype=torch.bfloat16)
    assert next(iter(half)).dtype == torch.bfloat16
    assert half.collect(3).dtype == np.float32
    assert ActivationStream(MODEL, **OPTIONS, dtype=torch.float64).collect(3).dtype == np.float64


# Sites ---------------------------------------------------------------------------------------------------------------


def test_sites_of_our_transformer():
    assert locate(MODEL, "layers.1") == "layers.1"
    assert locate(MODEL, "layers.-1") == "layers.2"
    assert locate(MODEL, "layers.0", "mlp") == "layers.0.feed_forward"
    assert locate(MODEL, "layers.0", "attention") == "layers.0.attention"
    assert locate(MODEL, "*.2.attention.value") == "layers.2.attention.value"
    with pytest.raises(InputError, match=r"3 layers, want layers\.0 to layers\.2"):
        locate(MODEL, "layers.3")
    with pytest.raises(InputError, match="fits 3 modules"):
        locate(MODEL, "layers.*.attention")
    with pytest.raises(InputError, match="no attention and MLP"):
        locate(MODEL, "norm", "mlp")
    with pytest.raises(InputError, match="did you mean"):
        locate(MODEL, "layer.1")
    with pytest.raises(InputError, match="site"):
        locate(MODEL, "layers.1", "resid")
    with pytest.raises(InputError, match="hook"):
        locate(MODEL, 3)


def test_two_stacks_need_the_whole_name():
    pair = nn.ModuleDict({"encoder": MODEL, "decoder": MODEL.config.build(1)})
    with pytest.raises(InputError, match="hook: no module"):
        locate(pair, "layers.1")
    assert locate(pair, "decoder.layers.1", "mlp") == "decoder.layers.1.feed_forward"


def test_the_site_is_what_is_added_to_the_stream():
    """residual = residual of the layer before + attention + mlp, row by row."""
    tokens = [[TOKENIZER.bos, 5, 9, 7]]
    parts = {
        key: ActivationStream(MODEL, hook=hook, site=site, tokens=tokens, batch_size=1, buffer=1).collect()
        for key, hook, site in [
            ("before", "layers.0", "residual"),
            ("attention", "layers.1", "attention"),
            ("mlp", "layers.1", "mlp"),
            ("after", "layers.1", "residual"),
        ]
    }
    np.testing.assert_allclose(parts["before"] + parts["attention"] + parts["mlp"], parts["after"], atol=1e-6)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"texts": None}, "exactly one"),
        ({"tokens": [[1]]}, "exactly one"),
        ({"tokenizer": None}, "tokenizer"),
        ({"tokenizer": len}, "tokenizer"),
        ({"texts": "one text"}, "texts"),
        ({"texts": ["a", 3]}, r"texts\[1\]"),
        ({"texts": []}, "texts: got no token"),
        ({"texts": ["", ""]}, "texts: got no token"),
        ({"texts": None, "tokens": [[1.5]]}, r"tokens\[0\]"),
        ({"texts": None, "tokens": "abc"}, "tokens"),
        ({"texts": None, "tokens": [[[1]]]}, r"tokens\[0\]"),
        ({"texts": None, "tokens": [[-1]]}, "tokens: got token -1"),
        ({"texts": None, "tokens": [[10_000]]}, "tokens: got token 10000"),
        ({"context": 1}, "context"),
        ({"context": 21}, "reads at most 20"),
        ({"batch_size": 0}, "batch_size"),
        ({"buffer": 7}, "buffer"),
        ({"sequences": 0}, "sequences"),
        ({"seed": -1}, "seed"),
        ({"dtype": torch.int32}, "dtype"),
        ({"dtype": "float32"}, "dtype"),
        ({"hook": "nothing"}, "hook"),
    ],
)
def test_bad_input(changes, name):
    with pytest.raises(InputError, match=name):
        ActivationStream(MODEL, **{**OPTIONS, **changes})


def test_more_bad_input(tmp_path):
    stream = ActivationStream(MODEL, **OPTIONS)
    with pytest.raises(InputError, match="n: got 0"):
        stream.collect(0)
    with pytest.raises(InputError, match="n: got 100000"):
        stream.collect(100_000)
    with pytest.raises(InputError, match="epoch"):
        next(stream.batches(-1))
    with pytest.raises(InputError, match="model"):
        ActivationStream("gpt2", **OPTIONS)
    net = MLPConfig(3, 2, (4,)).build()
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match="inputs give 2 rows"):
        ActivationStream(net, hook="layers.0", inputs=[x]).collect(3)
    with pytest.raises(InputError, match="cache"):
        ActivationStream(net, hook="layers.0", inputs=[x], cache=tmp_path)
    with pytest.raises(InputError, match="inputs: got str"):
        ActivationStream(net, hook="layers.0", inputs=["x"]).collect()
    with pytest.raises(InputError, match="not finite"):
        ActivationStream(net, hook="layers.0", inputs=[x * float("nan")]).collect()
    with pytest.raises(InputError, match=r"want \(batch, \.\.\., d"):
        ActivationStream(nn.Sequential(nn.Flatten(0)), hook="0", inputs=[x]).collect()
    with pytest.raises(InputError, match=r"want \(batch, time, d"):
        ActivationStream(nn.Sequential(nn.Embedding(9, 3), nn.Flatten(1)), hook="1", tokens=[[1, 2]]).collect()
    net.unused = nn.Linear(2, 2)
    with pytest.raises(InputError, match="did not run"):
        ActivationStream(net, hook="unused", inputs=[x]).collect()
    wrong = {"tokens": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 3)}
    with pytest.raises(InputError, match="attention_mask"):
        ActivationStream(MODEL, hook="embedding", inputs=[wrong]).collect()
