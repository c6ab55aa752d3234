"""Two processes on one machine take the course of one, by rows and by latents, also after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ellzero.autoencoder.distributed import DistributedTrainer, Shard
from ellzero.autoencoder.inputs import ExpectedNorm
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError

D = np.random.default_rng(0)
# A multiple of the batch and one row more: the last batch of an epoch is of one row.
X = (D.standard_normal((321, 4)) @ D.standard_normal((4, 12)) + 0.3 * D.standard_normal((321, 12)) + 2).astype(
    np.float32
)
OPTIONS = {"lr": 0.01, "batch_size": 64, "steps": 40, "seed": 1}
# name: preset, latents, settings
ROWS = {
    "topk": ("topk", 40, {"dead_after": 200}), "relu_l1": ("relu_l1", 24, {}),
    "hierarchical_topk": ("hierarchical_topk", 40, {"dead_after": 200}), "jumprelu": ("jumprelu", 24, {}),
    "wide": ("topk", 600, {"dead_after": 200}), "gated": ("gated", 24, {}),
}  # fmt: skip
LATENTS = {
    "topk": ("topk", 40, {"dead_after": 200}), "abs_topk": ("abs_topk", 40, {"dead_after": 200}),
    "few": ("topk", 6, {"dead_after": 200, "inputs": ExpectedNorm()}), "wide": ("topk", 600, {"dead_after": 200}),
}  # fmt: skip


def build(kinds, name):
    preset, d_sae, options = kinds[name]
    return SparseAutoencoder.from_preset(preset, d_in=12, d_sae=d_sae, k=4, **options)


def with_ties():
    """Every activation comes twice, once in each half; small whole numbers, so that sums are exact."""
    sae = build(LATENTS, "topk")
    with torch.no_grad():
        drawn = torch.from_numpy(np.random.default_rng(1).integers(-2, 3, (12, 20)).astype(np.float32))
        sae.W_enc.copy_(torch.cat([drawn, drawn], 1))
    return sae, torch.from_numpy(np.random.default_rng(2).integers(-2, 3, (90, 12)).astype(np.float32))


def alone(kinds, name):
    sae = build(kinds, name)
    found = SAETrainer(sae, **OPTIONS).fit(X)
    return sae, list(found.losses.values())


START = textwrap.dedent(
    """
    import importlib.util, os, signal, sys
    import torch
    import torch.distributed as dist
    spec = importlib.util.spec_from_file_location("here", sys.argv[1])
    here = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(here)
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method="file://" + folder + "/meet" + sys.argv[4], rank=rank, world_size=2)
    """
)
COURSES = START + textwrap.dedent(
    """
    out = {}
    for way, kinds in (("rows", here.ROWS), ("latents", here.LATENTS)):
        for name in kinds:
            sae = here.build(kinds, name)
            sae = here.Shard(sae) if way == "latents" else sae
            found = here.DistributedTrainer(sae, **here.OPTIONS).fit(here.X)
            told = sae(torch.from_numpy(here.X)).detach()
            sae = sae.whole() if way == "latents" else sae
            out[way, name] = list(found.losses.values()), sae.state_dict(), told
    whole, x = here.with_ties()
    out["ties"] = here.Shard(whole).encode(x).detach()
    torch.save(out, folder + "/rank" + str(rank) + ".pt")
    dist.destroy_process_group()
    """
)
KILLED = START + textwrap.dedent(
    """
    stop = int(sys.argv[5])
    for way, kinds in (("rows", here.ROWS), ("latents", here.LATENTS)):
        sae = here.build(kinds, "topk")
        sae = here.Shard(sae) if way == "latents" else sae
        trainer, count, plain = here.DistributedTrainer(sae, **here.OPTIONS), [], here.DistributedTrainer.loss

        def loss(sae, batch):
            count.append(1)
            if len(count) == stop and rank == 1 and way == "latents":
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(trainer, sae, batch)

        trainer.loss = loss
        found = trainer.fit(here.X, checkpoint=folder + "/" + way, every=10)
        torch.save((min(found.losses, default=0), sae.state_dict()), folder + "/" + way + str(rank) + ".pt")
    dist.destroy_process_group()
    """
)


def together(code, folder, *arguments):
    """Both processes of a script; their exit codes and errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen([sys.executable, "-c", code, __file__, str(rank), str(folder), *arguments], env=environment,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    try:
        errors = [one.communicate(timeout=300)[1] for one in both]
    finally:
        for one in both:
            one.kill()
    return [one.returncode for one in both], errors


@pytest.fixture(scope="module")
def courses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("courses")
    codes, errors = together(COURSES, folder, "0")
    assert codes == [0, 0], errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    ("way", "name"), [*(("rows", name) for name in ROWS), *(("latents", name) for name in LATENTS)]
)  # fmt: skip
def test_the_course_is_that_of_one_process(courses, way, name):
    one, losses = alone(ROWS if way == "rows" else LATENTS, name)
    first, second = (rank[way, name] for rank in courses)
    assert first[0] == second[0]
    np.testing.assert_allclose(first[0], losses, rtol=2e-3)
    np.testing.assert_allclose(first[0][:5], losses[:5], rtol=1e-5)
    for key, tensor in one.state_dict().items():
        assert torch.equal(first[1][key], second[1][key]), key
        torch.testing.assert_close(first[1][key], tensor, rtol=0.05, atol=0.02, msg=key)
    torch.testing.assert_close(first[2], second[2])


def test_ties_go_to_the_lowest_latent_of_all(courses):
    sae, x = with_ties()
    want = sae.encode(x)
    assert ((want[:, :20] > 0) & (want[:, 20:] == 0)).any()  # of a pair only the first was kept
    assert torch.equal(torch.cat([rank["ties"] for rank in courses], 1), want)


def test_dead_latents_play_a_part():
    sae = build(LATENTS, "wide")
    trainer = SAETrainer(sae, **OPTIONS)
    trainer.fit(X)
    assert (trainer.state.silent > 200).sum() > 20


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    codes, errors = together(KILLED, whole, "0", "0")
    assert codes == [0, 0], errors
    codes, _ = together(KILLED, killed, "0", "27")
    assert codes[1] == -9
    assert codes[0] != 0
    (killed / "latents" / "rank-0").mkdir(exist_ok=True)
    newest = sorted((killed / "latents" / "rank-1").glob("step-*"))
    newest[-1].unlink()  # as if it had died while this was written: the other process has one more
    codes, errors = together(KILLED, killed, "1", "0")
    assert codes == [0, 0], errors
    for way in ("rows", "latents"):
        for rank in range(2):
            first, want = torch.load(whole / f"{way}{rank}.pt")
            again, got = torch.load(killed / f"{way}{rank}.pt")
            assert (first, again) == (1, 11 if way == "latents" else 0)
            for key, tensor in want.items():
                assert torch.equal(got[key], tensor), (way, key)


class TestOne:
    """A group of one process."""

    @pytest.fixture(autouse=True)
    def _group(self, tmp_path):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    def test_a_shard_of_one_is_the_autoencoder(self):
        _, losses = alone(LATENTS, "topk")
        shard = Shard(build(LATENTS, "topk"))
        found = DistributedTrainer(shard, **OPTIONS).fit(X)
        np.testing.assert_allclose(list(found.losses.values()), losses, rtol=1e-3)
        whole, x = shard.whole(), torch.from_numpy(X)
        torch.testing.assert_close(whole(x), shard(x))
        torch.testing.assert_close(whole.encode(x), shard.encode(x))
        assert whole.preset == "topk"

    @pytest.mark.parametrize("preset", ["batchtopk", "relu_l1", "msae", "gated"])
    def test_what_cannot_be_sharded_is_refused_by_name(self, preset):
        with pytest.raises(InputError, match="whole: "):
            Shard(SparseAutoencoder.from_preset(preset, d_in=4, d_sae=8, k=2))

    @pytest.mark.parametrize("preset", ["batchtopk", "csr", "msae", "feature_choice"])
    def test_what_is_no_mean_over_rows_is_refused_by_name(self, preset):
        with pytest.raises(InputError, match="sae: "):
            DistributedTrainer(SparseAutoencoder.from_preset(preset, d_in=4, d_sae=8, k=2))


def test_without_a_group_it_is_refused():
    with pytest.raises(InputError, match="no process group"):
        DistributedTrainer(build(ROWS, "topk"))
    with pytest.raises(InputError, match="no process group"):
        Shard(build(ROWS, "topk"))
