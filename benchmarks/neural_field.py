"""Training of a neural field with an amortized encoder: images per CPU second, beside the matrix products alone.

    python benchmarks/neural_field.py FOLDER [IMAGES] [--box D] [--hidden H] [--dims d] [--batch B] [--half]

The floor is the time of the decoder's and encoder's matrix products of a step, forward and backward, in the same
process. For comparison: cryoDRGN 4.3.1 on the same two cores, 64 x 64, 256 x 3, z = 8, batch 16: 46.5 CPU ms per image.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from common import record, simulate

from hetmodels.data import Particles
from hetmodels.families import NeuralField
from hetmodels.observation import Known, Radial
from inference import SVI
from inference.encoder import Encoder, circle
from inference.fitting import make_problem

REPEATS = 3


def seconds(work):
    """Least wall and CPU seconds of some calls, after one that compiles."""
    jax.block_until_ready(work())
    found = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(work())
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(w for w, _ in found), min(c for _, c in found)


def products(problem, args):
    """Seconds of the matrix products of one step, and their floating-point operations."""
    family, points = problem.family, args.batch * problem.observation.disc.pixels
    waves = 2 * len(family.waves.displacements(args.box))
    decoder = [(waves, args.hidden)] + family.layers * [(args.hidden, args.hidden)]
    pixels = len(circle(args.box, Encoder().radius))
    encoder = [(pixels, args.hidden)] + 3 * [(args.hidden, args.hidden)]
    kind = jnp.bfloat16 if args.half else jnp.float32
    wall = cpu = operations = 0.0
    for rows, layers in ((points, decoder), (args.batch, encoder)):
        for number, (inputs, outputs) in enumerate(layers):
            x, w, y = (jnp.ones(shape, kind) for shape in ((rows, inputs), (inputs, outputs), (rows, outputs)))
            parts = [("ni,io->no", x, w), ("ni,no->io", x, y)] + [("no,io->ni", y, w)] * (number > 0)
            for what, a, b in parts:
                call = jax.jit(lambda a, b, what=what: jnp.einsum(what, a, b, preferred_element_type=jnp.float32))
                one = seconds(lambda call=call, a=a, b=b: call(a, b))
                wall, cpu, operations = wall + one[0], cpu + one[1], operations + 2 * rows * inputs * outputs
    return wall, cpu, operations


def main(args):
    options = ("--phantom", "5", "--box", str(args.box), "--pixel", "4", "--snr", "0.1", "--shift-sd", "4")
    star = simulate(args.folder, "-n", str(args.images), *options)
    kind = "bfloat16" if args.half else "float32"
    family = NeuralField(dims=args.dims, hidden=args.hidden, products=kind)
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": None, "given": None}
    problem = make_problem(family, Particles.open(star), pose=Known(), noise=Radial(), **choices)
    engine = SVI(batch_size=args.batch, local=Encoder(hidden=args.hidden), iterations=20)
    state = engine.init(jax.random.key(0), problem)
    batches = list(problem.batches(0, jax.random.key(0), args.batch, True))[:-1]

    def some():
        nonlocal state
        for batch in batches[:5]:
            state, _ = engine.step(jax.random.key(1), problem, state, batch)
        return state.params

    wall, cpu = (value / (5 * args.batch) for value in seconds(some))
    floor_wall, floor_cpu, operations = products(problem, args)
    record(
        f"neural field, {args.box}^2, {args.hidden}x3, z={args.dims}, batch {args.batch}",
        products=kind,
        device=str(jax.devices()[0]),
        cpu_ms_per_image=1e3 * cpu,
        wall_ms_per_image=1e3 * wall,
        products_cpu_ms_per_image=1e3 * floor_cpu / args.batch,
        products_wall_ms_per_image=1e3 * floor_wall / args.batch,
        products_gflops_per_image=operations / args.batch / 1e9,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("images", nargs="?", type=int, default=200)
    for name, value in (("box", 64), ("hidden", 256), ("dims", 8), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--half", action="store_true", help="matrix products in bfloat16")
    main(parser.parse_args())
