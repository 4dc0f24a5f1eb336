"""The held-out density finds the number of latent dimensions, and that a mask helps."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.analysis.compare import compare
from hetmodels.families import Subspace
from hetmodels.imaging.ball import Ball
from inference import EM, fit

sys.path.append(str(Path(__file__).parents[1] / "inference"))
from simulated import problem, simulated  # noqa: E402
from test_component_analysis import with_components  # noqa: E402


def drawn(seed, region=None):
    """2,000 particles drawn from a subspace of two dimensions, whose components are strong, inside a region."""
    p = simulated(n=2000, size=16, snr=0.2, seed=seed).particles
    task = problem(p.with_holdout(0.0), Subspace(dims=2))
    shared = with_components(task, (8.0, 4.0), seed)
    if region is not None:
        ball = Ball(16)
        shared["components"] = 3 * ball.filter(shared["components"] * region, jnp.ones(ball.shells))
    images = task.simulate(jax.random.key(seed), shared, task.batch(np.arange(2000)))[0].images
    scale = np.sqrt(np.asarray(p.reference))[0][p.disc.shell]
    images = np.asarray(p.disc.inverse(images * scale), np.float32)
    return type(p).from_arrays(images, p.rotation, p.shift, p.ctf, p.spacing)


@pytest.mark.slow
def test_the_true_number_of_dimensions_is_the_simplest_that_the_data_support():
    right = 0
    for seed in range(3):
        particles = drawn(seed)
        runs = {
            str(dims): fit(Subspace(dims=dims), particles, EM(iterations=25), key=jax.random.key(0), holdout=0.2)
            for dims in (1, 2, 3)
        }
        tied = compare(runs).supported
        right += min(tied, key=lambda row: row.numbers).run == "2"
    assert right == 3, right


@pytest.mark.slow
def test_a_mask_where_the_motion_is_predicts_better():
    line = np.arange(16) - 8
    region = jnp.asarray((line[:, None, None] ** 2 + line[:, None] ** 2 + line**2 < 20), jnp.float32)
    particles = drawn(5, region)
    runs = {
        name: fit(family, particles, EM(iterations=25), key=jax.random.key(0), holdout=0.2)
        for name, family in (("whole", Subspace(dims=2)), ("masked", Subspace(dims=2, region=region)))
    }
    found = compare(runs)
    assert found.rows[0].run == "masked" and found.rows[1].worse, found.verdict()
