"""Model functions that are no families."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from hetmodels.data.particles import Particles
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import uniform
from hetmodels.model import observe, per_particle
from hetmodels.observation import FixedNoise, Observation
from hetmodels.problem import ParticleProblem
from hetmodels.volumes.gaussians import Gaussians

SIZE, SPACING = 8, 8.0

SCHOOLS = {
    "count": 8,
    "sd": np.array([15.0, 10, 16, 11, 9, 11, 10, 18], np.float32),
    "effect": np.array([28.0, 8, -3, 7, -1, 1, 18, 12], np.float32),
}


def eight_schools(count, sd, effect):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", count):
        white = numpyro.sample("white", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * white)
        numpyro.sample("effects", dist.Normal(theta, sd), obs=effect)


def dumbbell(gap):
    """Two beads, the second lighter, `gap` Å apart along x."""
    centres = jnp.array([[-0.5, 0, 0], [0.5, 0, 0]]) * gap
    return Gaussians(centres, jnp.array([1.0, 0.6]) * 8e3, jnp.full(2, 8.0))


def one_gap(data):
    """All particles have the same gap."""
    gap = numpyro.sample("gap", dist.Normal(16, 6))
    numpyro.deterministic("half_gap", gap / 2)
    with data.plate():
        observe("images", dumbbell(gap), data)


def own_gaps(data):
    """Each particle has its own, about an unknown mean."""
    centre = numpyro.sample("centre", dist.Normal(16, 6))
    with data.plate():
        z = numpyro.sample("z", dist.Normal(0, 1))
        observe("images", per_particle(lambda z: dumbbell(centre + 3 * z), z), data)


def imaged(gaps, seed=0, noise=0.5):
    """Images of dumbbells with these gaps, noise of the given standard deviation."""
    import jax

    count, disc = len(gaps), Disc(SIZE)
    rotation = uniform(jax.random.key(seed), count)
    slices = jax.vmap(lambda gap, turn: dumbbell(gap).project(turn, disc.grid(SPACING)))(jnp.asarray(gaps), rotation)
    clean = np.asarray(disc.inverse(slices))
    images = clean + noise * np.random.default_rng(seed).normal(size=clean.shape)
    particles = Particles.from_arrays(
        images.astype(np.float32), np.asarray(rotation), np.zeros((count, 2)), Ctf.ideal(count), SPACING
    )
    return particles.with_holdout(0.0)


def task(model, particles, sd=0.5, **choices):
    level = FixedNoise(tuple(map(tuple, (sd**2 / particles.reference).tolist())))
    observation = Observation(particles.disc, particles.spacing, 1, len(particles), noise=level, **choices)
    return ParticleProblem.of(model, particles, observation)
