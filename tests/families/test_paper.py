"""The contracts, rehearsed: families with a latent per particle and with a network run under variational inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper import Field, NeuralField, TwoBodies

from hetmodels.data.particles import Particles
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.observation import FixedNoise, Observation
from hetmodels.problem import ParticleProblem
from hetmodels.testing import check_family, check_volume
from hetmodels.volumes.gaussians import Gaussians
from inference.catalogue import engines_for
from inference.engine import run
from inference.map import MAP
from inference.moments import Moments
from inference.svi import SVI

SIZE, SPACING, NOISE = 8, 8.0, 0.3
CENTRES = np.array([[-14.0, 2, 0], [2, -10, 6], [12, 1, 2], [17, 9, -1]])


def task(family, turns):
    """Images of two bodies, the second turned by each particle's rotation vector."""
    count, disc = len(turns), Disc(SIZE)
    rotation = uniform(jax.random.key(0), count)
    truth = jnp.asarray(CENTRES, jnp.float32)

    def image(turn, pose):
        centres = jnp.concatenate([truth[:2], truth[2:] @ from_rotvec(turn).T])
        return Gaussians(centres, jnp.full(4, 8e3), jnp.full(4, 8.0)).project(pose, disc.grid(SPACING))

    clean = np.asarray(disc.inverse(jax.vmap(image)(jnp.asarray(turns, jnp.float32), rotation)))
    images = clean + NOISE * np.random.default_rng(1).normal(size=clean.shape)
    poses = (np.asarray(rotation), np.zeros((count, 2)))
    particles = Particles.from_arrays(images.astype(np.float32), *poses, Ctf.ideal(count), SPACING).with_holdout(0.0)
    level = FixedNoise(tuple(map(tuple, (NOISE**2 / particles.reference).tolist())))
    return ParticleProblem.of(family, particles, Observation(disc, SPACING, 1, count, noise=level))


def rank_correlation(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def table(state):
    return np.asarray(state.table.value[:, :3])


@pytest.mark.parametrize("family", [TwoBodies(), NeuralField()])
def test_they_keep_the_contract(family):
    check_family(family)
    assert engines_for(family) == ["svi", "mcmc"]
    assert "family" in MAP.lacks(family)
    assert "protocol Linear" in Moments.lacks(type(family))


def test_a_field_is_a_volume():
    key = jax.random.key(0)
    import numpyro

    with numpyro.handlers.block():
        shared = numpyro.handlers.seed(NeuralField().shared, key)()
    check_volume(Field(shared, jnp.ones(1)), size=16, spacing=8.0)


def test_rotations_of_a_body_are_found():
    turns = 0.3 * np.random.default_rng(0).normal(size=(60, 3))
    problem, engine = task(TwoBodies(), turns), SVI(batch_size=30, iterations=500, learning_rate=0.05)
    result = run(engine, problem, key=jax.random.key(0))
    assert result.trace[-1]["objective"] > result.trace[0]["objective"] + 1
    found = table(result.state)
    assert found.shape == (60, 3)
    assert min(rank_correlation(found[:, i], turns[:, i]) for i in (1, 2)) > 0.8
    assert np.abs(result.draws["centres"].mean((0, 1)) - CENTRES).max() < 3.0


def test_a_network_learns_the_density():
    turns = np.random.default_rng(0).normal(size=(80, 3)) * [0, 0, 0.3]
    problem, engine = task(NeuralField(), turns), SVI(batch_size=40, iterations=300, learning_rate=0.02, draws=3)
    result = run(engine, problem, key=jax.random.key(1))
    assert result.trace[-1]["objective"] > result.trace[0]["objective"] + 100
    shared = engine.draw(jax.random.key(0), problem, result.state)
    found = np.asarray(NeuralField().volume(shared, jnp.zeros(1)).density(SIZE, SPACING))
    truth = np.asarray(Gaussians(jnp.asarray(CENTRES), jnp.full(4, 8e3), jnp.full(4, 8.0)).density(SIZE, SPACING))
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.98
