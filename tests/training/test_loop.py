"""The loop: a killed and resumed run ends with the same bits; clipping, averaging, schedules, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.parts.schedules import Cosine, Linear
from ellzero.training import checkpoints
from ellzero.training.loop import Batches, train

RUN = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np
    import torch
    from torch import nn
    from ellzero.models.mlp import MLPConfig
    from ellzero.network.recipes import gmp, rigl
    from ellzero.network.sparsifier import Sparsifier
    from ellzero.parts.schedules import Cosine
    from ellzero.rng import rng, torch_generator
    from ellzero.training.checkpoints import pack
    from ellzero.training.loop import Batches, train

    folder, out, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    X = torch.from_numpy(rng(0, "x").standard_normal((70, 8), dtype="float32"))
    y = (X[:, 0] * X[:, 1] > 0).long()
    found, steps_run = {}, 0
    for name, recipe, make in (
        ("rigl", rigl(0.3, every=4), lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1)),
        ("gmp", gmp(0.2, every=5), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    ):
        model = nn.Sequential(
            MLPConfig(8, 16, (24,)).build(1), nn.ReLU(), nn.Dropout(0.2), MLPConfig(16, 2, ()).build(2)
        )
        optimizer = make(model.parameters())
        noise = torch_generator(5, "noise")
        sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=60)

        def loss(model, batch):
            X, y = batch
            return nn.functional.cross_entropy(model(X + 0.1 * torch.randn(X.shape, generator=noise)), y)

        def killer(step, value):
            global steps_run
            steps_run += 1
            if steps_run == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        done = train(model, loss, Batches(X, y, batch_size=16, seed=3), optimizer=optimizer, steps=60,
                     schedule=Cosine(1.0, 0.1), clip=1.0, average=0.9, parts={"sparsifier": sparsifier},
                     generators={"noise": noise}, checkpoint=os.path.join(folder, name), every=7, callbacks=[killer])
        tensors, skeleton = pack({
            "model": model.state_dict(), "averaged": done.averaged, "optimizer": optimizer.state_dict(),
            "sparsifier": sparsifier.state_dict(), "noise": noise,
        })
        found |= {f"{name}.{key}": value.numpy() for key, value in tensors.items()}
        found[f"{name}.skeleton"] = np.array(repr(skeleton))
    np.savez(out, **found)
    """
)


def test_a_run_killed_at_a_random_step_and_resumed_ends_with_the_same_bits(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def run(folder, kill_at):
        command = [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / f"{folder}.npz"), str(kill_at)]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr.decode()
    step = 1 + os.urandom(1)[0] % 119  # in the one run or the other
    killed = run("killed", step)
    assert killed.returncode == -signal.SIGKILL, (step, killed.stderr.decode())
    assert not (tmp_path / "killed.npz").exists()
    resumed = run("killed", 0)
    assert resumed.returncode == 0, resumed.stderr.decode()
    with np.load(tmp_path / "whole.npz") as want, np.load(tmp_path / "killed.npz") as got:
        assert want.files == got.files
        for part in ("rigl.state.sparsifier.masks.", "gmp.state.sparsifier.masks.", "gmp.state.optimizer."):
            assert any(name.startswith(part) for name in want.files)
        assert "momentum_buffer" in str(want["gmp.skeleton"])
        for name in want.files:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, killed at {step}")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys, torch
        from ellzero.io import atomic
        from ellzero.training import checkpoints
        checkpoints.save(sys.argv[1], 1, {"x": torch.ones(1000)})
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)  # all bytes written, nothing renamed
        checkpoints.save(sys.argv[1], 2, {"x": torch.zeros(1000)})
        """
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list(tmp_path.iterdir())) == 2  # the half of step 2 lies there under its temporary name
    step, state = checkpoints.latest(tmp_path)
    assert step == 1
    assert (state["x"] == 1).all()


def linear(lr=0.1, **kwargs):
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    return model, torch.optim.SGD(model.parameters(), lr=lr, **kwargs)


def squared(model, X):
    return model(X).square().mean()


ROWS = torch.from_numpy(np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32))


def test_the_loop_is_gradient_descent_with_the_scheduled_rate_and_clipping():
    model, optimizer = linear()
    done = train(model, squared, Batches(ROWS, batch_size=10), optimizer=optimizer, steps=5, clip=0.5,
                 schedule=Linear(1.0, 0.0), average=0.75)  # fmt: skip
    w = np.array([1.0, -2.0, 0.5])
    X, average = ROWS.double().numpy(), w.copy()
    for t in range(5):
        assert done.losses[t + 1] == pytest.approx(((X @ w) ** 2).mean(), rel=1e-4)
        g = 2 * X.T @ (X @ w) / 10
        w = w - 0.1 * (1 - t / 5) * g * min(1, 0.5 / np.linalg.norm(g))
        average = 0.75 * average + 0.25 * w
    np.testing.assert_allclose(model.weight.detach().numpy()[0], w, rtol=1e-4)
    np.testing.assert_allclose(done.averaged["weight"].numpy()[0], average, rtol=1e-4)


def test_bfloat16_keeps_float32_weights_and_is_close():
    found = {}
    for precision in ("float32", "bfloat16"):
        model, optimizer = linear()
        seen = []
        train(model, lambda m, X, seen=seen: (seen.append(m(X).dtype), squared(m, X))[1], Batches(ROWS, batch_size=5),
              optimizer=optimizer, steps=10, precision=precision)  # fmt: skip
        assert model.weight.dtype == torch.float32
        assert set(seen) == {getattr(torch, precision)}
        found[precision] = model.weight.detach()
    assert torch.allclose(found["float32"], found["bfloat16"], atol=0.05)
    assert not torch.equal(found["float32"], found["bfloat16"])


def test_dropout_repeats_by_seed_and_the_global_generator_stays():
    before = torch.get_rng_state()

    def run(seed):
        model, optimizer = linear()
        torch.set_rng_state(before)  # the layer's own first weights draw from it
        dropped = nn.Sequential(nn.Dropout(0.5), model)
        train(dropped, squared, Batches(ROWS, batch_size=5), optimizer=optimizer, steps=5, seed=seed)
        return model.weight.detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_cover_each_epoch_once_in_a_new_order_and_resume_in_the_middle():
    rows = torch.arange(11)
    batches = Batches(rows, batch_size=4, seed=1)
    drawn = [next(batches) for _ in range(6)]
    assert [len(batch) for batch in drawn] == [4, 4, 3, 4, 4, 3]
    epochs = torch.cat(drawn[:3]), torch.cat(drawn[3:])
    assert all(sorted(epoch.tolist()) == list(range(11)) for epoch in epochs)
    assert not torch.equal(*epochs)
    again = Batches(rows, batch_size=4, seed=1)
    for _ in range(4):
        next(again)
    later = Batches(rows, batch_size=4, seed=1)
    later.load_state_dict(again.state_dict())
    assert torch.equal(next(later), drawn[4])
    with pytest.raises(InputError, match="seed: got 2, want 1"):
        Batches(rows, batch_size=4, seed=2).load_state_dict(again.state_dict())


def test_a_plain_iterator_is_passed_over_to_its_place_on_resume(tmp_path):
    def run(stop):
        model, optimizer = linear()

        def callback(step, loss):
            if step == stop:
                raise KeyboardInterrupt

        source = (ROWS[i : i + 2] for i in range(8))
        train(model, squared, source, optimizer=optimizer, steps=6, checkpoint=tmp_path / "run", every=3,
              callbacks=[callback])  # fmt: skip
        return model.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        run(5)
    resumed = run(None)
    model, optimizer = linear()
    train(model, squared, (ROWS[i : i + 2] for i in range(8)), optimizer=optimizer, steps=6)
    assert torch.equal(resumed, model.weight.detach())


def test_a_finished_run_is_not_run_again(tmp_path):
    model, optimizer = linear()
    arguments = {"optimizer": optimizer, "steps": 4, "checkpoint": tmp_path}
    train(model, squared, Batches(ROWS, batch_size=5), **arguments)
    done = train(model, squared, Batches(ROWS, batch_size=5), **arguments)
    assert done.losses == {}


def test_a_progress_bar_changes_nothing(capsys):
    found = []
    for progress in (False, True):
        model, optimizer = linear()
        train(model, squared, Batches(ROWS, batch_size=5), optimizer=optimizer, steps=3, progress=progress)
        found.append(model.weight.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"steps": 0}, "steps"), ({"steps": 1.5}, "steps"), ({"clip": 0}, "clip"), ({"average": 1.0}, "average"),
        ({"precision": "float8"}, "precision"), ({"every": 0}, "every"), ({"seed": -1}, "seed"),
        ({"batches": 5}, "batches"), ({"batches": [ROWS]}, "batches: got 1, want 3"),
        ({"loss": lambda m, X: m(X).sum() * torch.nan}, "loss: got nan at step 1"),
        ({"loss": lambda m, X: m(X)}, r"loss: gave shape \(5, 1\)"), ({"loss": lambda m, X: 0.5}, "loss: gave float"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    model, optimizer = linear()
    given = {"loss": squared, "batches": Batches(ROWS, batch_size=5), "steps": 3, **changed}
    with pytest.raises(InputError, match=named):
        train(model, given.pop("loss"), given.pop("batches"), optimizer=optimizer, **given)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    model, optimizer = linear()
    train(model, squared, Batches(ROWS, batch_size=5), optimizer=optimizer, steps=3, checkpoint=tmp_path)
    batches = Batches(ROWS, batch_size=5)
    with pytest.raises(InputError, match="steps: got 4, want 3"):
        train(model, squared, batches, optimizer=optimizer, steps=4, checkpoint=tmp_path)
    with pytest.raises(InputError, match="generators"):
        train(model, squared, batches, optimizer=optimizer, steps=3, checkpoint=tmp_path,
              generators={"a": torch.Generator()})  # fmt: skip
    with pytest.raises(InputError, match="average"):
        train(model, squared, batches, optimizer=optimizer, steps=3, checkpoint=tmp_path, average=0.9)
    with pytest.raises(InputError, match="rows: got 9, want 10"):
        train(model, squared, Batches(ROWS[1:], batch_size=5), optimizer=optimizer, steps=3, checkpoint=tmp_path)
    with pytest.raises(InputError, match="batches: cannot be put"):
        train(model, squared, (ROWS for _ in range(9)), optimizer=optimizer, steps=3, checkpoint=tmp_path)
    other = nn.Linear(4, 1)
    with pytest.raises(InputError, match="another model"):
        train(other, squared, batches, optimizer=torch.optim.SGD(other.parameters(), lr=0.1), steps=3,
              checkpoint=tmp_path)  # fmt: skip


@pytest.mark.parametrize("arguments", [((), 2), ((torch.zeros(0),), 2), ((torch.zeros(2), torch.zeros(3)), 2)])
def test_bad_batches_are_refused(arguments):
    with pytest.raises(InputError, match="tensors"):
        Batches(*arguments[0], batch_size=arguments[1])
    with pytest.raises(InputError, match="batch_size"):
        Batches(torch.zeros(2), batch_size=0)


def test_cosine_is_a_learning_rate_schedule_with_the_base_rate_kept(tmp_path):
    model, optimizer = linear(lr=0.3)
    rates = []
    train(model, squared, Batches(ROWS, batch_size=5), optimizer=optimizer, steps=4, schedule=Cosine(1.0, 0.0),
          callbacks=[lambda step, loss: rates.append(optimizer.param_groups[0]["lr"])])  # fmt: skip
    np.testing.assert_allclose(rates, 0.15 * (1 + np.cos(np.pi * np.arange(4) / 4)))
