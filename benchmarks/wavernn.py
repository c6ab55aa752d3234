"""Sampling from a sparse WaveRNN: a step of the recurrent layer and of the whole network against their dense twins.

    python benchmarks/wavernn.py [--repeats 15] [--steps 200] [--rate 22050] [--density 0.05]

Jobs take turns in one process on one thread, warm-up not counted, by CPU time; the recurrent layer's matrices are the
product of all gates ``[3 width, width]``. A real-time factor is seconds of sound per second of computing: above 1 the
sound is ready before it has been heard. With subscale B a step draws B samples of one signal.
"""

import argparse
import statistics

import numpy as np
import torch
from table import race, ratio, setting

from ellzero.models.wavernn import PRUNED, WaveRNNConfig
from ellzero.network.sampling import Sampler
from ellzero.parts.constraints import Block
from ellzero.rng import rng

BLOCKS = ((16, 1), (4, 4), (1, 1))


def samplers(width, density, subscale):
    """The dense sampler and one for each shape of block, of random weights: the time depends on the pattern alone."""
    config = WaveRNNConfig(width, subscale=subscale)
    found = {"dense": Sampler(config.build(), layout="dense")}
    for block in BLOCKS:
        model = config.build()
        with torch.no_grad():
            for name in PRUNED:
                weight = model.get_parameter(name)
                k = int(density * weight.numel() / (block[0] * block[1]))
                weight.mul_(Block(k, block).support(weight.abs()))
        found[f"{block[0]} x {block[1]}"] = Sampler(model)
    return found


def recurrent(sampler, columns, steps):
    h = rng(0, "h").standard_normal((sampler.config.width, columns), dtype=np.float32)
    R = sampler.matrices["R"]

    def job():
        for _ in range(steps):
            R @ h

    return job


def whole(sampler, streams, steps):
    length = steps * sampler.config.subscale
    return lambda: sampler.sample(length, streams=streams)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("repeats", 15), ("steps", 200), ("rate", 22050)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"density {args.density}, {args.steps} steps a turn; {setting()}")
    for width in (512, 896):
        for subscale in (1, 8):
            made = samplers(width, args.density, subscale)
            print(f"\nwidth {width}, {subscale} columns: the product of all gates")
            times = race({name: recurrent(s, subscale, args.steps) for name, s in made.items()}, args.repeats)
            for name in list(made)[1:]:
                print(f"    dense / {name}: {ratio(times['dense'], times[name]):.1f}")
            print(f"width {width}, subscale {subscale}: whole steps")
            times = race({name: whole(s, 1, args.steps) for name, s in made.items()}, args.repeats)
            for name in made:
                each = statistics.median(times[name].cpu) / args.steps / subscale
                faster = "" if name == "dense" else f", {ratio(times['dense'], times[name]):.1f} times dense"
                print(f"    {name}: {1e6 * each:.0f} us a sample, real-time factor {1 / each / args.rate:.3f}{faster}")


if __name__ == "__main__":
    main()
