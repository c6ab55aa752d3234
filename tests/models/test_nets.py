"""Every registered model: seeded, saved and loaded the same, the global generators untouched, bad sizes refused."""

import copy
import dataclasses

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype

from ellzero import models
from ellzero.errors import InputError
from ellzero.models import cnn, mlp, residual, transformer, wavernn
from ellzero.models.attach import attach
from ellzero.models.initial import empty
from ellzero.registry import entries

CONFIGS = {
    "MLP": mlp.MLPConfig(12, 3, (8, 5)),
    "CNN": cnn.CNNConfig(3, 4, (4, 8)),
    "Residual": residual.ResidualConfig(3, 4, 2, (4, 8)),
    "Transformer": transformer.TransformerConfig(
        vocabulary=40, width=16, depth=2, heads=4, key_heads=2, hidden=24, context=16
    ),
    "WaveRNN": wavernn.WaveRNNConfig(8, subscale=3, past=2, future=1, context=4),
}


def batch(name, n=5):
    draw = np.random.default_rng(0)
    if name == "Transformer":
        return torch.from_numpy(draw.integers(40, size=(n, 9)))
    if name == "WaveRNN":
        return torch.from_numpy(draw.integers(-32768, 32768, size=(n, 9)))
    shape = (n, 12) if name == "MLP" else (n, 3, 8, 8)
    return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))


def test_the_list_is_the_registry():
    assert {entry.name for entry in entries("model") if entry.module.startswith("ellzero.models.")} == set(CONFIGS)
    for entry in entries("model"):
        made = entry.example()
        assert isinstance(made, entry.target if isinstance(entry.target, type) else torch.nn.Module)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_decides_all_weights(name):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = CONFIGS[name].build(3), CONFIGS[name].build(3), CONFIGS[name].build(4)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    x = batch(name)
    assert torch.equal(one.eval()(x), same.eval()(x))
    assert not torch.equal(one(x), other.eval()(x))
    for key, value in one.state_dict().items():
        assert value.isfinite().all(), key
        assert value.device.type == "cpu"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_gives_the_same_model(name, tmp_path):
    model = CONFIGS[name].build(1)
    x = batch(name)
    model(x)  # moves the running means of batch norms, which must be kept too
    model.eval()
    path = tmp_path / "model.safetensors"
    models.save(path, model, {"note": [1, "a"]})
    again, extra = models.load(path)
    assert extra == {"note": [1, "a"]}
    assert again.config == model.config
    assert not again.training
    assert torch.equal(model(x), again(x))


def test_the_file_keeps_the_dtype(tmp_path):
    model = CONFIGS["Transformer"].build().to(torch.bfloat16)
    models.save(tmp_path / "m.safetensors", model)
    again, _ = models.load(tmp_path / "m.safetensors")
    assert again.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(again(batch("Transformer")), model.eval()(batch("Transformer")))


def test_foreign_models_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="Linear"):
        models.save(tmp_path / "a", torch.nn.Linear(2, 2))
    (tmp_path / "b").write_bytes(b"not a model")
    with pytest.raises(InputError):
        models.load(tmp_path / "b")
    with pytest.raises(InputError):
        models.load(tmp_path / "absent")
    wide = copy.copy(CONFIGS["MLP"].build())
    wide.config = dataclasses.replace(CONFIGS["MLP"], hidden=(8, 6))
    models.save(tmp_path / "c", wide)
    with pytest.raises(InputError, match="do not fit"):
        models.load(tmp_path / "c")


@pytest.mark.parametrize("name", ["MLP", "CNN", "Residual"])
def test_they_learn(name):
    """Full-batch descent separates three planted classes that the first weights do not."""
    draw = np.random.default_rng(1)
    labels = torch.arange(60) % 3
    x = batch(name, 60) * 0.5
    centre = torch.from_numpy(draw.standard_normal((3, *x.shape[1:])).astype(np.float32))
    x = x + 2 * centre[labels]
    model = CONFIGS[name].build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == labels).float().mean() > 0.95


def test_first_activations_keep_their_size():
    """He initialisation: the mean square stays within a factor of two over ten ReLU layers."""
    model = mlp.MLPConfig(256, 4, (256,) * 10).build()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32))
    sizes = []
    with attach(model, {"layers.?": lambda y: sizes.append(float(y.detach().square().mean()))}):
        model(x)
    assert len(sizes) == 10
    assert all(1.0 < size < 4.0 for size in sizes)  # 2 before the ReLU halves it


def test_empty_draws_nothing():
    state = torch.get_rng_state()
    empty(lambda: torch.nn.Linear(50, 50))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: mlp.MLPConfig(0, 3), "inputs"),
        (lambda: mlp.MLPConfig(3, 3, 8), "hidden"),
        (lambda: mlp.MLPConfig(3, 3, (8, 0)), r"hidden\[1\]"),
        (lambda: cnn.CNNConfig(widths=()), "widths"),
        (lambda: cnn.CNNConfig(channels=1.5), "channels"),
        (lambda: residual.ResidualConfig(blocks=0), "blocks"),
        (lambda: residual.ResidualConfig(widths=()), "widths"),
        (lambda: transformer.TransformerConfig(10, width=30, heads=4), "heads"),
        (lambda: transformer.TransformerConfig(10, width=12, heads=4), "heads"),
        (lambda: transformer.TransformerConfig(10, heads=4, key_heads=3), "key_heads"),
        (lambda: transformer.TransformerConfig(10, epsilon=0.0), "epsilon"),
        (lambda: transformer.TransformerConfig(10, rope_base=float("nan")), "rope_base"),
        (lambda: CONFIGS["MLP"].build()(torch.zeros(2, 11)), "x: got 11"),
        (lambda: CONFIGS["CNN"].build()(torch.zeros(2, 1, 8, 8)), "x: got shape"),
        (lambda: CONFIGS["CNN"].build()(torch.zeros(2, 3, 1, 8)), "x: got shape"),
        (lambda: CONFIGS["Residual"].build()(torch.zeros(3, 8, 8)), "x: got shape"),
    ],
)
def test_bad_input(make, name):
    with pytest.raises(InputError, match=name):
        make()


def test_a_wrong_rank_is_seen_by_the_annotations():
    forward = jaxtyping.jaxtyped(typechecker=beartype)(transformer.RMSNorm.forward)
    norm = CONFIGS["Transformer"].build().norm
    assert forward(norm, torch.ones(2, 3, 16)).shape == (2, 3, 16)
    strict = jaxtyping.jaxtyped(typechecker=beartype)(transformer.Transformer.forward)
    model = CONFIGS["Transformer"].build()
    assert strict(model, batch("Transformer")).shape == (5, 9, 40)
    with pytest.raises(jaxtyping.TypeCheckError):
        strict(model, batch("Transformer")[0])
