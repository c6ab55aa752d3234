"""The task ``network``: splits, equal effort, exact densities, artefacts that load elsewhere, the user's own model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ellzero.cli.app import run as command
from ellzero.compare.specs import changed, contenders, decode, encode
from ellzero.compare.tasks.n_of_m import NOfM
from ellzero.compare.tasks.network import Network
from ellzero.compare.tasks.pruning_at_initialisation import PruningAtInitialisation
from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.models.mlp import MLPConfig
from ellzero.network import frontier, packed
from ellzero.network.contenders import initial_masks
from ellzero.network.initial import synflow
from ellzero.network.recipes import rigl
from ellzero.protocol import Fitted, Method, Task

SHORT = Network(steps=40)
NUMEL = 64 * 256 + 256 * 128 + 128 * 10


def fit(task, name, budget, seed=0):
    method = task.methods()[name]
    return next(iter(method.frontier(task.data(seed), [budget], seed)))


@pytest.fixture(scope="module")
def fitted():
    return fit(SHORT, "gradual-global", 0.1)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(
        textwrap.dedent(
            """
            import torch

            def build():
                return torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))

            def narrow():
                return torch.nn.Linear(5, 2)

            def wide():
                return torch.nn.Linear(6, 3)

            def number():
                return 3

            def bare():
                return torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Flatten(), torch.nn.AdaptiveAvgPool1d(3))

            def negative_loss(model, X, y):
                with torch.no_grad():
                    return -torch.nn.functional.cross_entropy(model(torch.from_numpy(X)), torch.from_numpy(y))

            def broken(model, X, y):
                return float("nan")
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    draw = np.random.default_rng(0)
    X = draw.standard_normal((150, 5)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", X=X, y=X[:, :3].argmax(1))
    return tmp_path


def test_it_keeps_the_contract(fitted):
    assert isinstance(SHORT, Task)
    assert isinstance(fitted, Fitted)
    for name, method in SHORT.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
    assert Network.from_spec(json.loads(json.dumps(SHORT.to_spec()))) == SHORT
    assert json.loads(json.dumps(SHORT.describe())) == SHORT.describe()
    assert SHORT.describe() != Network(steps=41).describe()


def test_the_parts_are_disjoint_and_the_test_rows_stay():
    parts = {seed: SHORT._split(seed) for seed in (0, 1)}
    for train, validation, test in parts.values():
        assert sorted(np.concatenate([train, validation, test]).tolist()) == list(range(1797))
        assert len(validation) == len(test) == 1797 // 5
    assert set(parts[0][2]) == set(parts[1][2])
    assert set(parts[0][1]) != set(parts[1][1])
    everything = SHORT.refit_data(0, "all").train
    assert len(everything[1]) == 1797 - 1797 // 5
    assert len(SHORT.test()[1]) == 1797 // 5


def bounds(name, budget):
    """What the counted density may be: exact, but for what a method rounds or leaves at zero."""
    if name in ("set", "dst-ee", "sparse-momentum"):
        return budget - 0.005, budget + 4 / NUMEL  # weights of pixels that are never lit stay at zero
    if name == "srigl":
        return 0.5 * budget, 1.2 * budget  # whole fan-ins
    return budget, budget + 4 / NUMEL


@pytest.mark.parametrize("name", [name for name in SHORT.methods() if name != "net-trim"])
def test_each_method_lands_on_its_density_exactly(name):
    method = SHORT.methods()[name]
    budgets = [1.0] if method.dense else [0.3, 0.05]
    found = list(method.frontier(Network(steps=12).data(0), budgets, 0))
    assert len(found) == len(budgets)
    for budget, point in zip(budgets, found):
        assert [row.name for row in point.report.rows] == [f"layers.{i}.weight" for i in range(3)]
        low, high = bounds(name, budget)
        assert low <= point.realised < high
        assert point.report.density == point.report.cost.inference == point.realised
        assert 0 < point.report.cost.training <= 1 + 1e-9


def test_the_usual_methods_are_few_and_the_others_join_by_name():
    usual, every = [c.name for c in contenders(SHORT)], SHORT.methods()
    assert usual == ["dense", "one-shot", "gradual-uniform", "gradual-erk", "gradual-global", "rigl"]
    assert set(every) - set(usual) == {
        "set", "static-erk", "static-uniform", "dst-ee", "sparse-momentum", "srigl", "ac-dc", "hyper-sparse",
        "irrelevance", "autosparse", "net-trim",
    }  # fmt: skip
    assert [c.name for c in contenders(SHORT, ["set", "net-trim"])] == ["set", "net-trim"]
    with pytest.raises(InputError, match="did you mean 'srigl'"):
        contenders(SHORT, ["srigle"])
    assert len(contenders(NOfM())) == 7
    assert len(contenders(PruningAtInitialisation())) == 9


@pytest.mark.parametrize("task", [Network(), PruningAtInitialisation(), NOfM()], ids=lambda task: task.name)
def test_settings_are_built_again_from_their_json(task):
    methods, again = task.methods(), task.methods()
    assert again == methods
    for method in methods.values():
        candidate = method.candidates(2, 0)[1]
        assert encode(decode(json.loads(json.dumps(encode(candidate))))) == encode(candidate)
        assert set(changed(candidate, method)) <= {"lr", "weight_decay", *method.settings, *method.space}


def test_what_a_cut_leaves_is_trained_on_at_the_same_number_of_steps(monkeypatch):
    seen = []
    train = frontier.train
    monkeypatch.setattr(frontier, "train", lambda *a, steps, **k: (seen.append(steps), train(*a, steps=steps, **k))[1])
    found = fit(Network(steps=20), "autosparse", 0.1)
    assert seen == [12, 8]
    assert 0.6 * 0.1 + 0.4 * 0.1 < found.report.cost.training < 0.6 + 0.4 * 0.11
    seen.clear()
    fit(Network(steps=20), "rigl", 0.1)
    assert seen == [20]


def test_net_trim_trims_the_dense_network_without_training_it_again():
    dense, method = fit(SHORT, "dense", 1.0), SHORT.methods()["net-trim"]
    few = dataclasses.replace(method, settings={**method.settings, "samples": 100})
    found = next(few.frontier(SHORT.data(0), [0.2], 0))
    assert found.score(SHORT.data(0).train) > dense.score(SHORT.data(0).train) - 0.1
    assert found.report.cost.training == 1
    assert 0.2 - 0.02 < found.realised < 0.2 + 4 / NUMEL


def test_the_residual_network_reads_the_pixels_as_an_image(tmp_path):
    task = Network(steps=20, net="residual")
    found = fit(task, "gradual-global", 0.2)
    assert 0.2 <= found.realised < 0.2 + 1 / 19_000
    assert {"stem.weight", "blocks.2.shortcut.weight", "head.weight"} <= {row.name for row in found.report.rows}
    X, y = task.test()
    found.save(tmp_path)
    np.save(tmp_path / "rows.npy", X * 16)
    answers = task.apply(tmp_path, str(tmp_path / "rows.npy")).columns["class"]
    assert (answers == y.astype(str)).mean() == found.score((X, y))
    assert "net-trim" not in task.methods()


def test_the_transformer_is_judged_by_nats_per_token(tmp_path):
    task = Network.from_options(extra={"net": "transformer", "steps": "15", "batch_size": "8"})
    assert (task.fidelity, task.better, task.bound, task.dataset) == ("nats per token", "lower", None, "texts")
    assert Network.from_spec(json.loads(json.dumps(task.to_spec()))) == task
    data = task.data(0)
    X, y = data.train
    assert (X[:, 1:] == y[:, :-1]).all()
    assert (X[:, 0] == X[0, 0]).all()
    few = (data.validation[0][:64], data.validation[1][:64])
    found = fit(task, "gradual-global", 0.1)
    assert 0.1 <= found.realised < 0.1 + 1 / 90_000
    assert not any("embedding" in row.name for row in found.report.rows)
    untrained = frontier.nats_per_token(data.info["build"](0), *few)
    assert untrained == pytest.approx(np.log(2048), abs=0.1)
    assert found.score(few) < untrained - 0.2
    log_p = found.model(torch.from_numpy(few[0])).detach().double().log_softmax(-1)
    want = -log_p.gather(2, torch.from_numpy(few[1])[..., None]).mean()
    assert found.score(few) == pytest.approx(float(want), rel=1e-5)
    found.save(tmp_path)
    (tmp_path / "new.txt").write_text("A line of words.\n\nAnother, with more words than the one before it.\n")
    columns = task.apply(tmp_path, str(tmp_path / "new.txt")).columns
    assert columns["text"].tolist() == [0, 1]
    assert (columns["tokens"] > 2).all()
    assert ((columns["nats_per_token"] > 3) & (columns["nats_per_token"] < 12)).all()


class TestPruningAtInitialisation:
    task = PruningAtInitialisation(steps=3)

    @pytest.mark.parametrize("name", list(task.methods()))
    def test_masks_are_exact_and_stay(self, name):
        method = self.task.methods()[name]
        data = self.task.data(0)
        if method.dense:
            return
        found = next(method.frontier(data, [0.1], 0))
        extra = 3 / NUMEL if name == "random-uniform" else 1 / NUMEL
        assert 0.1 - 0.01 < found.realised < 0.1 + extra  # weights of pixels that are never lit have no derivative
        model = data.info["build"](0)
        masks = initial_masks(model, data, 0.1, 0, **method.settings)
        assert 0.1 <= sum(int(mask.sum()) for mask in masks.values()) / NUMEL < 0.1 + extra
        weights = dict(found.model.named_parameters())
        assert all(not weights[key][~mask].any() for key, mask in masks.items())

    def test_a_score_is_judged_by_a_random_mask_of_its_ratios(self):
        data = self.task.data(0)
        snip, ratio = (
            initial_masks(data.info["build"](0), data, 0.1, 0, by=by, scale=False) for by in ("snip", "snip-ratio")
        )
        assert {name: int(mask.sum()) for name, mask in snip.items()} == {n: int(m.sum()) for n, m in ratio.items()}
        assert not torch.equal(snip["layers.0.weight"], ratio["layers.0.weight"])

    def test_only_the_scale_of_units_changes_the_first_weights(self):
        data = self.task.data(0)
        plain, scaled = data.info["build"](0), data.info["build"](0)
        initial_masks(plain, data, 0.1, 0, by="snip", scale=False)
        masks = initial_masks(scaled, data, 0.1, 0, by="snip")
        first = data.info["build"](0).state_dict()
        assert all(torch.equal(value, first[name]) for name, value in plain.state_dict().items())
        factor = (64 / masks["layers.0.weight"].sum(1).clamp(min=1)).sqrt()
        assert torch.allclose(scaled.layers[0].weight, first["layers.0.weight"] * factor[:, None])

    def test_the_flow_is_that_of_inputs_of_ones_where_columns_are_standardised(self, wines):
        task = PruningAtInitialisation(str(wines), steps=2)
        data = task.data(0)
        model = data.info["build"](0)
        masks = initial_masks(model, data, 0.2, 0, by="synflow", scale=False)
        plain = MLPConfig(15, 3, (256, 128)).build(0)
        want = synflow(plain, torch.ones(1, 15), 0.2)
        assert all(torch.equal(masks[name], want[name]) for name in want)

    def test_batch_norms_are_not_moved_by_a_score(self):
        data = PruningAtInitialisation(steps=2, net="residual").data(0)
        model = data.info["build"](0)
        initial_masks(model, data, 0.2, 0, by="snip")
        assert not model.stem_norm.running_mean.any()

    def test_bad_options(self):
        with pytest.raises(InputError, match="net: got 'transformer'"):
            PruningAtInitialisation.from_options(extra={"net": "transformer"})
        with pytest.raises(InputError, match="the task pruning-at-initialisation takes none"):
            PruningAtInitialisation.from_options(extra={"patterns": "2:4"})


class TestNOfM:
    task = NOfM(steps=8)

    @pytest.mark.parametrize("name", list(task.methods()))
    def test_every_group_keeps_n(self, name):
        method = self.task.methods()[name]
        for found, (n, m) in zip(method.frontier(self.task.data(0), [1 / 16, 0.5], 0), [(1, 16), (2, 4)]):
            weights = dict(found.model.named_parameters())
            for row in found.report.rows:
                groups = weights[row.name].detach().reshape(-1, m)
                assert method.dense or int((groups != 0).sum(1).max()) == n
            assert method.dense or n / m - 0.01 < found.realised <= n / m

    def test_budgets_are_the_shares_of_the_patterns(self):
        assert self.task.budgets(None) == (1 / 16, 1 / 8, 1 / 4, 1 / 2)
        assert NOfM.from_options(extra={"patterns": "4:8,1:8"}).data(0).info["patterns"] == {0.5: (4, 8), 0.125: (1, 8)}
        assert NOfM.from_spec(json.loads(json.dumps(self.task.to_spec()))) == self.task
        with pytest.raises(InputError, match=r"budgets: got 0\.3, want the shares of patterns: 0\.5 \(2:4\)"):
            self.task.check_budgets([0.3])

    @pytest.mark.parametrize(
        ("patterns", "named"),
        [("4:4", "want n:m"), ("0:4", "want n:m"), ("2-4", "want n:m"), ("", "want n:m"), ("1:2,2:4", "1:2 and 2:4")],
    )
    def test_bad_patterns(self, patterns, named):
        with pytest.raises(InputError, match=f"patterns: .*{named}"):
            NOfM.from_options(extra={"patterns": patterns})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["network", "--option", "net=resnet"], "net: got 'resnet'"),
        (["network", "--option", "net=transformer", "--data", "rows.npz"], "data: got 'rows.npz'"),
        (["network", "--option", "net=transformer", "--target", "y"], "target: got 'y'"),
        (["network", "--option", "net=residual", "--data", "rows.npz"], "want digits or mnist"),
        (["network", "--option", "net=residual", "--model", "my_network:build"], "beside a model of your own"),
        (["network", "--methods", "rigl,rigle"], "did you mean 'rigl'"),
        (["n-of-m", "--option", "patterns=5"], "want n:m"), (["n-of-m", "--budgets", "0.3"], "budgets: got 0.3"),
        (["pruning-at-initialisation", "--option", "net=transformer"], "net: got 'transformer'"),
        (["prune-at-init"], "task"),
    ],
)  # fmt: skip
def test_what_the_new_options_cannot_do_is_one_line(plugin, monkeypatch, capfd, arguments, named):
    monkeypatch.chdir(plugin)
    assert command(["compare", *arguments, "--out", "run"]) == 2
    _, err = capfd.readouterr()
    assert named in err
    assert err.count("\n") == 1
    assert not (plugin / "run").exists()


def test_a_method_by_name_goes_the_whole_road(plugin, monkeypatch, capfd):
    monkeypatch.chdir(plugin)
    given = ["--option", "steps=8", "--methods", "set,srigl", "--budgets", "0.2", "--trials", "2", "--seeds", "2"]
    assert command(["compare", "network", *given, "--out", "run"]) == 0
    points = [json.loads(line) for line in (plugin / "run" / "points.jsonl").read_text().splitlines()]
    assert len(points) == 8
    assert {name for point in points for name in point["tuned"]} <= {"lr", "weight_decay", "drop", "until", "gamma"}
    assert any(point["tuned"] for point in points)
    assert command(["compare", "network", *given, "--out", "run"]) == 0  # nothing is left to do
    assert len((plugin / "run" / "points.jsonl").read_text().splitlines()) == 8
    assert command(["take", "run", "--method", "srigl", "--budget", "0.2", "--out", "model"]) == 0
    config = json.loads((plugin / "model" / "config.json").read_text())
    assert 0 < config["cost"]["training"] < 1
    capfd.readouterr()


def test_settings_that_nothing_takes_are_refused():
    with pytest.raises(InputError, match="settings: x takes no 'dorp'; did you mean 'drop'"):
        frontier.RecipeMethod("x", rigl, {"dorp": 0.3})
    with pytest.raises(InputError, match="drop"):
        frontier.RecipeMethod("x", rigl, {"drop": 1.3})
    with pytest.raises(InputError, match="tune"):
        frontier.RecipeMethod("x", rigl, tune=1.0)


def test_every_method_starts_from_the_same_weights_and_batches():
    data = Network(steps=1).data(3)
    first = data.info["build"](3).state_dict()
    assert all(torch.equal(value, data.info["build"](3).state_dict()[name]) for name, value in first.items())
    assert not torch.equal(first["layers.0.weight"], data.info["build"](4).state_dict()["layers.0.weight"])


@pytest.mark.parametrize("name", list(SHORT.methods()))
def test_candidates_begin_with_the_method_and_repeat_by_seed(name):
    method = SHORT.methods()[name]
    found = method.candidates(6, 1)
    assert found[0] == method
    assert len(found) == 6
    assert found == method.candidates(6, 1)
    assert found[1:] != method.candidates(6, 2)[1:]
    assert {candidate.name for candidate in found} == {name}
    for bad in ({"lr": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            dataclasses.replace(method, **bad)


def test_it_learns_and_planted_noise_is_chance(tmp_path):
    learned = fit(Network(steps=150), "gradual-global", 0.2)
    assert learned.score(Network().test()) > 0.85
    table = sets.digits()
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", X=table.X, y=draw.integers(0, 10, len(table.X)))
    task = Network(str(tmp_path / "noise.npz"), steps=80)
    noise = fit(task, "gradual-global", 0.2)
    assert noise.score(task.data(0).validation) < 0.18
    assert noise.score(task.test()) < 0.18


def test_accuracy_is_counted(fitted):
    X, y = SHORT.data(0).validation
    with torch.no_grad():
        classes = fitted.model(torch.from_numpy(X)).argmax(1).numpy()
    assert fitted.score((X, y)) == sum(int(a == b) for a, b in zip(classes, y)) / len(y)
    assert fitted.time((X, y)) > 0


def test_the_artefact_has_the_bytes_it_states_and_gives_the_same_answers_in_a_fresh_process(fitted, tmp_path):
    model, rows = tmp_path / "model", tmp_path / "rows.npy"
    model.mkdir()
    fitted.save(model)
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(model / "model.safetensors", "pt") as file:
        assert packed.nbytes({name: file.get_tensor(name) for name in file.keys()}) == fitted.nbytes  # noqa: SIM118
    assert fitted.nbytes < 0.25 * packed.nbytes(fitted.model.state_dict())
    X, y = SHORT.test()
    np.save(rows, X * 16)  # the pixels as they are in the data
    code = textwrap.dedent(
        """
        import sys, numpy as np
        from pathlib import Path
        from ellzero.compare.tasks.network import Network
        found = Network().apply(Path(sys.argv[1]), sys.argv[2])
        np.savez(sys.argv[3], **{name: np.asarray(value) for name, value in found.columns.items()})
        """
    )
    command = [sys.executable, "-c", code, str(model), str(rows), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "out.npz") as out:
        classes, probability = out["class"], out["probability"]
    assert (classes == y.astype(str)).mean() == fitted.score((X, y))
    with torch.no_grad():
        want = torch.softmax(fitted.model(torch.from_numpy(X)).double(), 1).max(1).values.numpy()
    np.testing.assert_allclose(probability, want, rtol=1e-6)


def test_apply_refuses_what_does_not_fit(fitted, tmp_path):
    fitted.save(tmp_path)
    np.save(tmp_path / "wide.npy", np.ones((2, 65)))
    with pytest.raises(InputError, match="65 columns without names, want 64"):
        SHORT.apply(tmp_path, str(tmp_path / "wide.npy"))
    with pytest.raises(InputError):
        SHORT.apply(tmp_path, str(tmp_path / "missing.npy"))
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(InputError, match="safetensors"):
        SHORT.apply(tmp_path, str(tmp_path / "wide.npy"))


@pytest.mark.parametrize("what", ["plain", "kind", "newer", "headless", "none"])
def test_a_foreign_artefact_is_refused(tmp_path, what):
    path, tensors = tmp_path / "model.safetensors", {"layers.0.weight": torch.ones(2, 2)}
    np.save(tmp_path / "rows.npy", np.ones((2, 64)))
    if what == "plain":
        save_file(tensors, path)
    elif what != "none":
        kind, version = ("linear-model", 1) if what == "kind" else (frontier.KIND, frontier.VERSION + (what == "newer"))
        artefacts.save(path, tensors, {}, kind=kind, version=version)
    with pytest.raises(InputError, match=str(tmp_path)) as caught:
        SHORT.apply(tmp_path, str(tmp_path / "rows.npy"))
    assert "\n" not in str(caught.value)


def test_the_users_own_model_judge_and_rows(plugin):
    task = Network.from_options(
        data=str(plugin / "rows.npz"), model="my_network:build", eval="my_network:negative_loss",
        extra={"steps": "60", "batch_size": 16, "exclude": "2"},
    )  # fmt: skip
    assert (task.fidelity, task.bound, task.steps) == ("negative_loss", None, 60)
    found = fit(task, "rigl", 0.5)
    assert [row.name for row in found.report.rows] == ["0.weight"]
    assert found.realised == 0.5
    X, y = task.test()
    logits = found.model(torch.from_numpy(X)).detach().double().numpy()
    likelihood = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(1))
    assert found.score((X, y)) == pytest.approx(likelihood.mean(), rel=1e-5)
    (plugin / "out").mkdir()
    found.save(plugin / "out")
    output = task.apply(plugin / "out", str(plugin / "rows.npz"))
    assert len(output.columns["class"]) == 150
    assert (output.columns["class"][task._split(0)[2]] == logits.argmax(1).astype(str)).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model": "my_network:narrow"}, r"model: gives \(2, 2\)"), ({"model": "my_network:wide"}, "5 features"),
        ({"model": "my_network:number"}, "model: .* gave int"), ({"model": "my_network:bild"}, "build"),
        ({"evaluate": "my_network:broken"}, "eval"), ({"evaluate": "my_network:nothing"}, "nothing"),
        ({"include": "layer"}, "include"), ({"exclude": "layers*"}, "no weight to prune"),
    ],
)  # fmt: skip
def test_a_users_broken_part_is_named(plugin, settings, named):
    task = Network(str(plugin / "rows.npz"), steps=2, **settings)
    with pytest.raises(InputError, match=named):
        fit(task, "dense", 1.0).score(task.data(0).validation)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hook": "x"}, "hook"), ({"texts": "x"}, "texts"), ({"extra": {"stepz": 3}}, "stepz"),
        ({"extra": {"steps": "many"}}, "steps"), ({"extra": {"steps": 0}}, "steps"), ({"model": "resnet"}, "model"),
        ({"eval": "accuracy"}, "eval"), ({"extra": {"batch_size": 0}}, "batch_size"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        Network.from_options(**options)


@pytest.mark.parametrize(
    "y", [np.arange(40) + 0.5, np.zeros(40), np.arange(40), np.r_[np.zeros(2), 1]], ids=["real", "one", "many", "few"]
)
def test_targets_that_are_no_classes_are_refused(tmp_path, y):
    np.savez(tmp_path / "rows.npz", X=np.random.default_rng(0).random((len(y), 3)), y=y)
    with pytest.raises(InputError, match="data: "):
        Network(str(tmp_path / "rows.npz")).data(0)


@pytest.fixture
def wines(tmp_path):
    """A file with names, columns of very different sizes, a column that never changes, and groups."""
    table = sets.wine()
    path = tmp_path / "wine.csv"
    columns = [*(f"c{i}" for i in range(13)), "same", "cellar", "grower"]
    n = len(table.y)
    rows = np.c_[table.X, np.full(n, 7.0), np.arange(n) % 60, table.y + 5]
    np.savetxt(path, rows, "%.8g", ",", header=",".join(columns), comments="")
    return path


def test_the_perceptron_sees_standardised_columns_and_finds_them_by_name(wines, tmp_path):
    task = Network.from_options(data=str(wines), extra={"steps": 60, "groups": "cellar"})
    data = task.data(0)
    assert data.train[0].shape[1] == 14
    network = data.info["build"](0)
    inside = (torch.from_numpy(data.train[0]) - network.mean) / network.scale
    assert torch.allclose(inside.mean(0), torch.zeros(14), atol=1e-4)
    assert torch.allclose(inside.std(0, correction=0)[:13], torch.ones(13), atol=1e-3)
    assert (inside[:, 13] == 0).all()
    found = fit(task, "gradual-global", 0.1)
    assert found.score(task.test()) > 0.85
    (tmp_path / "model").mkdir()
    found.save(tmp_path / "model")
    names = wines.read_text().splitlines()[0].split(",")
    rows = np.loadtxt(wines, delimiter=",", skiprows=1)
    order = [names.index(name) for name in reversed(names[:14])]
    np.savetxt(tmp_path / "turned.csv", rows[:, order], "%.8g", ",", header=",".join(names[i] for i in order),
               comments="")  # fmt: skip
    answers = [task.apply(tmp_path / "model", str(tmp_path / name)).columns for name in ("wine.csv", "turned.csv")]
    assert set(answers[0]["class"]) == {"5", "6", "7"}
    assert (answers[0]["class"] == answers[1]["class"]).all()
    assert (answers[0]["class"] == (rows[:, -1]).astype(int).astype(str)).mean() > 0.85
    np.savetxt(tmp_path / "less.csv", rows[:, :13], "%.8g", ",", header=",".join(names[:13]), comments="")
    with pytest.raises(InputError, match="lacks the column 'same'"):
        task.apply(tmp_path / "model", str(tmp_path / "less.csv"))


def test_groups_stay_together_and_tell_nothing(wines):
    task = Network(str(wines), groups="cellar")
    units = task._rows().units
    parts = [set(units[part]) for part in task._split(1)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    assert "cellar" not in task.data(0).info["spec"]["columns"]
    with pytest.raises(InputError, match=r"groups: got 'cellars'.*did you mean 'cellar'"):
        Network(str(wines), groups="cellars").data(0)
    with pytest.raises(InputError, match="groups: got 'x', but digits has none"):
        Network(groups="x").data(0)


def test_the_users_own_road_on_the_command_line(plugin, monkeypatch, capfd):
    monkeypatch.chdir(plugin)
    given = ["--data", "rows.npz", "--model", "my_network:build", "--eval", "my_network:negative_loss"]
    options = ["--option", "steps=30", "--option", "batch_size=16", "--option", "exclude=2,5*"]
    with pytest.raises(InputError, match="fits '5"):
        Network.from_options(data="rows.npz", model="my_network:build", extra={"exclude": "2,5*"})
    options[-1] = "exclude=2"
    assert command(["compare", "network", *given, *options, "--budgets", "0.3,0.6", "--out", "run"]) == 0
    out = capfd.readouterr().out
    for word in (*SHORT.default_methods, "negative_loss"):
        assert word in out
    points = [json.loads(line) for line in (plugin / "run" / "points.jsonl").read_text().splitlines()]
    assert len(points) == 1 + 2 * (len(SHORT.default_methods) - 1)
    assert all(point["error"] is None for point in points)
    assert {point["realised"] for point in points} == {0.3, 0.6, 1.0}
    assert command(["take", "run", "--method", "rigl", "--budget", "0.6", "--out", "model"]) == 0
    assert command(["apply", "model", "rows.npz", "--out", "classes.csv"]) == 0
    lines = (plugin / "classes.csv").read_text().splitlines()
    assert lines[0] == "class,probability"
    assert len(lines) == 151
    assert {line.split(",")[0] for line in lines[1:]} <= {"0", "1", "2"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--model", "my_network:narrow"], "model: gives (2, 2)"), (["--eval", "my_network:nothing"], "nothing"),
        (["--model", "my_network:bare"], "has no weight to prune"), (["--option", "include=layer"], "no parameter"),
        (["--budgets", "0"], "budgets: got 0"), (["--budgets", "1.5"], "budgets: got 1.5"),
        (["--option", "groops=x"], "did you mean 'groups'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_one_line_before_a_folder_is_made(plugin, monkeypatch, capfd, given, named):
    monkeypatch.chdir(plugin)
    assert command(["compare", "network", "--data", "rows.npz", *given, "--out", "run"]) == 2
    _, err = capfd.readouterr()
    assert named in err
    assert err.count("\n") == 1
    assert not (plugin / "run").exists()


def test_budgets_lie_in_0_to_1():
    SHORT.check_budgets(SHORT.budgets(SHORT.data(0)))
    for bad in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="budgets"):
            SHORT.check_budgets([bad])


def test_mnist_where_it_is_at_hand():
    why = sets.missing("networks/mnist-t10k-images-idx3-ubyte.gz", "networks/mnist-t10k-labels-idx1-ubyte.gz")
    if why:
        pytest.skip(why)
    task = Network("mnist", steps=60)
    found = fit(task, "dense", 1.0)
    assert [row.shape for row in found.report.rows] == [(300, 784), (100, 300), (10, 100)]
    assert found.score(task.data(0).validation) > 0.8
