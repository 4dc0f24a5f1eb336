"""What bfloat16 products cost a neural field: held-out bound per particle, beside float32, after the same passes.

    python benchmarks/neural_precision.py FOLDER [IMAGES] [--box D] [--hidden H] [--dims d] [--passes P] [--seeds S]

Both begin with the same weights and see the same batches. The spread over seeds of the float32 runs says what the
difference is worth.
"""

import argparse

import jax
import numpy as np
from common import record, simulate

from hetmodels.data import Particles
from hetmodels.families import NeuralField
from hetmodels.observation import Known, Radial
from inference import SVI
from inference.encoder import Encoder
from inference.engine import run
from inference.fitting import make_problem


def bound(particles, args, kind, seed):
    """Held-out evidence lower bound of a fit, nats per particle, the mean over some draws."""
    family = NeuralField(dims=args.dims, hidden=args.hidden, products=kind)
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.2, "start": None, "given": None}
    problem = make_problem(family, particles, pose=Known(), noise=Radial(), **choices)
    engine = SVI(local=Encoder(hidden=args.hidden), iterations=args.passes, patience=None)
    state = run(engine, problem, key=jax.random.key(seed)).state
    machine = engine._machine(problem)[0]
    return np.mean([machine.held_out(state.params, jax.random.key(100 + draw)) for draw in range(8)])


def main(args):
    options = ("--phantom", "5", "--box", str(args.box), "--pixel", "6", "--snr", "0.2")
    particles = Particles.open(simulate(args.folder, "-n", str(args.images), *options))
    found = {kind: [bound(particles, args, kind, s) for s in range(args.seeds)] for kind in ("float32", "bfloat16")}
    difference = np.subtract(found["bfloat16"], found["float32"])
    record(
        f"neural field precision, {args.box}^2, {args.hidden}x3, z={args.dims}, {args.images} images",
        device=str(jax.devices()[0]),
        passes=args.passes,
        **{f"held_out_{kind}": [round(float(v), 3) for v in values] for kind, values in found.items()},
        bfloat16_minus_float32=[round(float(v), 3) for v in difference],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("images", nargs="?", type=int, default=1000)
    for name, value in (("box", 32), ("hidden", 128), ("dims", 2), ("passes", 15), ("seeds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    main(parser.parse_args())
