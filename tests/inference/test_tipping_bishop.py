"""EM on the subspace, where all images share one view, ends at the closed form of Tipping & Bishop (1999).

Every image is then the same linear operator applied to the map, and the model is probabilistic principal component
analysis of the images: mean and covariance of the fitted images are known from the eigenvectors of the sample
covariance.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem
from test_em import FIXED, Double

from hetmodels.data.particles import Particles
from hetmodels.families import Subspace
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.local import component_lattice, component_slices
from inference import EM
from inference.engine import run

SIZE, ROWS, DIMS = 8, 200, 2


def one_view():
    """Images of a plane of random pictures, all from one direction, with white noise."""
    rng, disc = np.random.default_rng(0), Disc(SIZE)
    draw = lambda *shape: rng.normal(size=shape) + 1j * rng.normal(size=shape)  # noqa: E731
    basis, spread = draw(DIMS, disc.pixels), rng.normal(size=(ROWS, DIMS)) * np.array([3, 2])
    pixels = 3 * draw(disc.pixels) + spread @ basis + draw(ROWS, disc.pixels)
    images = np.asarray(disc.inverse(jnp.asarray(pixels, jnp.complex64)), np.float32)
    views, shifts = np.tile(np.eye(3), (ROWS, 1, 1)), np.zeros((ROWS, 2))
    return problem(Particles.from_arrays(images, views, shifts, Ctf.ideal(ROWS), 12.0), Subspace(dims=DIMS))


def flat_start(task):
    """Random components under a prior too wide to be felt, in double precision."""
    shared = {name: jnp.asarray(np.asarray(v), jnp.float64) for name, v in task.starting(jax.random.key(0)).items()}
    ball = Ball(SIZE)
    wide = {name: jnp.full_like(shared[name], 1e9) for name in ("map_tau2", "components_tau2")}
    white = jax.random.normal(jax.random.key(1), (DIMS, ball.coordinates), jnp.float64)
    return shared | wide | {"components": ball.colour(white, jnp.ones((DIMS, ball.shells)))}


@pytest.mark.slow
def test_one_view_gives_the_closed_form():
    with jax.enable_x64(True):
        task = one_view()
        task = dataclasses.replace(task, start=flat_start(task))
        # maps that no pixel sees are held by the wide prior alone: the solver's system has a condition number to match
        engine = EM(iterations=300, solver_steps=100, **FIXED)
        state = run(engine, Double(task), key=jax.random.key(0)).state
        batch = next(iter(Double(task).batches(0, jax.random.key(0), ROWS)))
        variance = np.asarray(task.observation.pixel_variance(state.noise, batch.group))[0]

        def real(pixels):
            """Real coordinates in which the noise is N(0, I)."""
            return np.concatenate([pixels.real, pixels.imag], -1) * np.sqrt(2 / np.tile(variance, 2))

        images = real(np.asarray(batch.images))
        values, vectors = np.linalg.eigh(np.cov(images.T, bias=True))
        assert values[-DIMS] > 2 > 1 > values[-DIMS - 1]  # the components stand above the noise, nothing else does
        loadings = vectors[:, -DIMS:] * np.sqrt(values[-DIMS:] - 1)

        lattice = component_lattice(task.family)
        slices, _ = component_slices(lattice, lattice.table(state.maps[0]), batch, task.observation)
        mean, *components = real(np.asarray(slices[0]).T * np.asarray(batch.ctf)[0])
        found, expected = np.stack(components).T @ np.stack(components), loadings @ loadings.T
        assert np.abs(mean - images.mean(0)).max() < 1e-6 * np.abs(images).max()
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
