"""Rate of the pose search's arithmetic against a bare matrix product of the same shapes.

    python benchmarks/search_rate.py --box 64 --order 2 --images 200

One record per part: the first level of a search (bank of slices, cross and Gram products, log-sum-exp and choice) in
GFLOP of its products per second of one processor, `jnp.dot` at the cross product's shapes, numpy's (its BLAS), and the
images of a whole search. Processor time, not the clock, so that other work on the machine counts little.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import record

from hetmodels.data.batch import Batch
from hetmodels.data.phantom import phantom
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.poses import PosePrior, shift_lattice
from hetmodels.imaging.rotations import uniform
from hetmodels.observation import FixedNoise, Known, Observation
from hetmodels.scoring import Templates
from hetmodels.search import Search, find_poses

PIXEL = 4.0


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Least processor time of a call, all threads, after one to compile: what other work takes does not count."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        jax.block_until_ready(run())
        times.append(time.process_time() - begun)
    return min(times)


def problem(box: int, images: int, snr: float) -> tuple[Templates, Batch]:
    """White images of the phantom at random poses."""
    disc, volume = Disc(box), phantom(1, box, PIXEL)[0]
    values = np.asarray(volume.density(box, PIXEL))
    frame = Frame(box, PIXEL, (1.0,) * (box // 2))
    obs = Observation(disc, PIXEL, 1, images, Known(), FixedNoise())
    keys = jax.random.split(jax.random.key(0), 3)
    rotation = uniform(keys[0], images)
    clean = jax.jit(jax.vmap(lambda r: volume.project(r, disc.grid(PIXEL))))(rotation)
    scale = np.sqrt(snr * box**2 / (2 * disc.pixels * float(jnp.mean(jnp.abs(clean) ** 2))))
    real, imaginary = jax.random.normal(keys[1], (2, *clean.shape)) / np.sqrt(2)
    zero, one = jnp.zeros(images, jnp.int32), jnp.ones(images)
    eye = lambda n: jnp.broadcast_to(jnp.eye(n), (images, n, n))  # noqa: E731
    batch = Batch(scale * clean + real + 1j * imaginary, jnp.ones(clean.shape), eye(3), jnp.zeros((images, 2)), eye(2),
                  zero, zero, zero, one, jnp.arange(images))  # fmt: skip
    shared = {"map": jnp.asarray(values * scale), "map_tau2": jnp.ones(box // 2)}
    return Templates.of(Homogeneous(frame=frame), shared, obs, jnp.ones((1, disc.shells))), batch


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("box", 64), ("order", 2), ("images", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--snr", type=float, default=0.1)
    args = parser.parse_args()
    templates, batch = problem(args.box, args.images, args.snr)
    rows, device = args.images, str(jax.devices()[0])
    eye, zero = jnp.broadcast_to(jnp.eye(3), (rows, 3, 3)), jnp.zeros((rows, 2))
    prior = PosePrior(eye, zero, np.inf, 2 * PIXEL)
    whole = Search(args.order, 1, args.box // 2 - 1, 5 * PIXEL, 2 * PIXEL, kept=128, top=32)
    pixels = templates.observation.disc.narrowed(whole.band(0)).pixels
    one = Search(args.order, 0, whole.band(0), 5 * PIXEL, 2 * PIXEL, top=1)
    shifts, rotations = len(shift_lattice(5 * PIXEL, 2 * PIXEL)), one.first_grid().cells
    flops = 2.0 * rows * rotations * pixels * (2 * shifts + 1)
    rng = np.random.default_rng(0)
    left = rng.normal(size=(rows * shifts, 2 * pixels)).astype(np.float32)
    right = rng.normal(size=(2 * pixels, rotations)).astype(np.float32)
    dot = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))
    device_left, device_right = jnp.asarray(left), jnp.asarray(right)
    product = 4.0 * rows * shifts * rotations * pixels
    shape = {"box": args.box, "order": args.order, "images": rows, "shifts": shifts, "rotations": rotations,
             "pixels": pixels, "device": device}  # fmt: skip
    level = flops / seconds(lambda: find_poses(one, templates, batch, prior, eye, zero).weight) / 1e9
    jax_rate = product / seconds(lambda: dot(device_left, device_right)) / 1e9
    blas = product / seconds(lambda: left @ right) / 1e9
    record("search rate", part="first level", gflops_per_processor=level, of_dot=level / jax_rate, **shape)
    record("search rate", part="jnp.dot", gflops_per_processor=jax_rate, **shape)
    record("search rate", part="numpy.dot", gflops_per_processor=blas, **shape)
    took = seconds(lambda: find_poses(whole, templates, batch, prior, eye, zero).weight)
    record("search rate", part="search with one split", images_per_processor_second=rows / took, **shape)


if __name__ == "__main__":
    main()
