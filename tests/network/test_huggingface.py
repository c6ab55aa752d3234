"""The callback inside a real ``Trainer``: exact counts, zeros that stay, a resumed run with the same bits."""

from __future__ import annotations

import copy

import pytest
import torch

from ellzero.errors import InputError
from ellzero.network.huggingface import SparsifierCallback
from ellzero.network.learned import pst
from ellzero.network.patterns import sr_ste
from ellzero.network.recipes import gmp, rigl
from ellzero.network.sparsifier import Sparsifier
from ellzero.rng import rng

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 8


def small():
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=20, max_position_embeddings=8, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(0.1 * rng(0, name).standard_normal(tuple(parameter.shape))))
    return model


def rows():
    tokens = rng(0, "tokens").integers(0, 20, (32, 8))
    return [{"input_ids": row, "labels": row} for row in torch.from_numpy(tokens)]


def trainer(folder, callback, model=None, **options):
    settings = {
        "per_device_train_batch_size": 4, "max_steps": STEPS, "learning_rate": 1e-2, "logging_steps": 4,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 3,
        "dataloader_pin_memory": False, "weight_decay": 0.1,
    }  # fmt: skip
    args = transformers.TrainingArguments(str(folder), **{**settings, **options})
    return transformers.Trainer(small() if model is None else model, args, train_dataset=rows(), callbacks=[callback])


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "bf16": True, "max_grad_norm": 0.1}])
@pytest.mark.parametrize("recipe", [rigl(0.25, every=2), gmp(0.25, every=2), sr_ste(2, 4), pst(0.25, every=2, end=0.5)])
def test_a_trainer_prunes_by_the_recipe(tmp_path, recipe, options):
    callback = SparsifierCallback(recipe)
    own = trainer(tmp_path, callback, **options)
    own.train()
    weights = {row.name: own.model.get_parameter(row.name) for row in callback.report.rows}
    assert "model.embed_tokens.weight" in callback.report.excluded
    assert {"lm_head.weight", "model.layers.0.mlp.up_proj.weight"} <= set(weights)
    for row in callback.report.rows:
        assert int(weights[row.name].count_nonzero()) == row.kept
    want = 0.5 if recipe.through is not None and recipe == sr_ste(2, 4) else 0.25
    assert callback.report.density == pytest.approx(want, abs=1e-3)
    assert callback.report.step == STEPS
    assert callback.sparsifier is None
    assert all(type(m).__name__[:12] != "Parametrized" for m in own.model.modules())


def test_the_trainers_weights_are_those_of_a_plain_loop(tmp_path):
    callback = SparsifierCallback(rigl(0.3, every=2))
    own = trainer(tmp_path, callback, lr_scheduler_type="constant", max_grad_norm=0.0, optim="sgd", weight_decay=0.0)
    seen = []
    inner = own.compute_loss
    own.compute_loss = lambda model, inputs, **rest: (seen.append(copy.deepcopy(inputs)), inner(model, inputs))[1]
    own.train()
    model = small().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier = Sparsifier(model, rigl(0.3, every=2), optimizer=optimizer, steps=STEPS)
    for batch in seen:
        optimizer.zero_grad()
        model(**{key: batch[key] for key in ("input_ids", "labels")}).loss.backward()
        optimizer.step()
        sparsifier.step()
    for (name, mine), theirs in zip(model.named_parameters(), own.model.parameters()):
        torch.testing.assert_close(theirs, mine, msg=name)


@pytest.mark.parametrize("recipe", [rigl(0.25, every=2), gmp(0.25, every=2)])
def test_a_resumed_trainer_ends_with_the_same_bits(tmp_path, recipe):
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", SparsifierCallback(recipe), **saving)
    whole.train()
    callback = SparsifierCallback(recipe)
    resumed = trainer(tmp_path / "whole", callback, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(one, two), name
    assert callback.report.density == pytest.approx(0.25, abs=1e-3)


def test_a_log_has_the_density(tmp_path):
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    own = trainer(tmp_path, SparsifierCallback(gmp(0.25, every=2)))
    own.add_callback(Watch)
    own.train()
    densities = [log["density"] for log in seen if "density" in log]
    assert len(densities) == 2
    assert densities[-1] == pytest.approx(0.25, abs=1e-3)
    assert densities[0] > densities[-1]


def test_steps_that_a_gradient_scaler_skips_do_not_count(tmp_path):
    callback = SparsifierCallback(rigl(0.25, every=2))
    own = trainer(tmp_path, callback)

    class Overflow(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 3:  # as the scaler does: gradients overflow, and the step is left out
                for gradient in callback.sparsifier._gradients.values():
                    gradient.fill_(torch.nan)
            type(optimizer).step_was_skipped = property(lambda _: state.global_step == 3)

    kept = None
    from accelerate.optimizer import AcceleratedOptimizer

    kept = AcceleratedOptimizer.step_was_skipped
    try:
        own.add_callback(Overflow)
        own.train()
    finally:
        AcceleratedOptimizer.step_was_skipped = kept
    assert callback.report.step == STEPS - 1


def test_what_cannot_go_on_is_refused(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, SparsifierCallback(gmp(0.25, every=2)), **saving).train()
    checkpoint = tmp_path / "checkpoint-4"
    with pytest.raises(InputError, match="recipe: got"):
        trainer(tmp_path, SparsifierCallback(gmp(0.5, every=2)), **saving).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "sparsifier.safetensors").unlink()
    with pytest.raises(InputError, match=r"resume_from: there is no sparsifier\.safetensors"):
        trainer(tmp_path, SparsifierCallback(gmp(0.25, every=2))).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(InputError, match="recipe: its weights stay dense underneath"):
        trainer(tmp_path, SparsifierCallback(sr_ste(2, 4))).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(InputError, match="recipe"):
        trainer(tmp_path, SparsifierCallback("rigl")).train()
