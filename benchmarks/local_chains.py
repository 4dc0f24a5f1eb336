"""Chains of one particle each, side by side: gradients and effective draws per CPU second, and compilations.

    python benchmarks/local_chains.py [--particles 24] [--batches 3]

A molecule of 120 beads whose arm swings about a known hinge, 32 px; latents are the angle and the pose (six numbers).
About two minutes on two idle cores; the first batch, which compiles, is not counted.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from common import record, timed

from hetmodels.arviz_bridge import ess
from hetmodels.data.particles import Particles
from hetmodels.data.phantom import phantom
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.observation import FixedNoise, Observation, Refined
from hetmodels.problem import ParticleProblem
from hetmodels.tree import pytree
from hetmodels.volumes.gaussians import Gaussians
from inference.local_chains import LocalHMC

SIZE, PIXEL, ARM, SNR = 32, 6.0, 84, 0.1
REST = phantom(1, SIZE, PIXEL)[0]


@pytree
class Swing:
    """An angle per particle about a known axis through the first bead of the arm."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 0.5)

    def volume(self, shared, z):
        turn = from_rotvec(z * jnp.array([0.906, 0.0, -0.423]))
        arm = (REST.centres[ARM:] - REST.centres[ARM]) @ turn.T + REST.centres[ARM]
        return Gaussians(jnp.concatenate([REST.centres[:ARM], arm]), REST.weights, REST.widths)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=24, help="of a batch")
    parser.add_argument("--batches", type=int, default=3)
    args = parser.parse_args()
    count = args.particles * args.batches
    rng, turned = np.random.default_rng(0), uniform(jax.random.key(0), count)
    blank = rng.standard_normal((count, SIZE, SIZE)).astype(np.float32)
    particles = Particles.from_arrays(blank, np.asarray(turned), np.zeros((count, 2)), Ctf.ideal(count), PIXEL)
    particles = particles.with_holdout(0.0)
    pose = Refined(rotation_sd=0.05, shift_sd=3.0)
    observation = Observation(particles.disc, PIXEL, 1, count, pose, FixedNoise())
    problem = ParticleProblem.of(Swing(), particles, observation)
    signal = jax.jit(jax.vmap(lambda r: REST.project(r, particles.disc.grid(PIXEL))))(turned)
    level = float((np.abs(signal) ** 2).mean() / SNR)
    shared = {"noise": jnp.full((1, particles.disc.shells), level)}
    sampler = LocalHMC()
    program, spent = sampler.program(problem), []
    effective = []
    for number in range(args.batches):
        rows = np.arange(args.particles) + number * args.particles
        batch, _, _ = problem.simulate(jax.random.key(number), shared, problem.batch(rows))
        with timed() as clock:
            found = jax.block_until_ready(program(jax.random.key(number), shared, batch))
        spent.append(clock["cpu_s"])
        z = np.moveaxis(np.asarray(found.latents["z"]), 0, -1)
        effective.append(ess({"z": z}, "bulk")["z"].sum())
    seconds = float(np.median(spent[1:]))
    gradients = args.particles * sampler.chains * int(found.gradients)
    record(
        "local chains, swing and pose, 32 px",
        particles=args.particles,
        gradients_per_cpu_s=gradients / seconds,
        ess_per_cpu_s=float(np.median(effective[1:])) / seconds,
        compilations=program._cache_size(),
    )


if __name__ == "__main__":
    main()
