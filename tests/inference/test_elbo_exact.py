"""Where latents are Gaussian and enter linearly they are integrated: the bound is the evidence, at every value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from simulated import problem, simulated

from hetmodels.families import Subspace
from hetmodels.model import render
from inference.engine import run
from inference.guides import Point
from inference.svi import SVI


def dense_evidence(task, shared):
    """log p(images | maps) summed, relative to noise of the reference spectrum: normal laws of full covariance."""
    batch, view = task.whole(), task.observed(shared, task.whole())
    at = [jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])]
    mean, first, second = (np.asarray(render(task.family.volume(shared, z), view, {}), np.complex128) for z in at)
    images, variance, total = np.asarray(batch.images, np.complex128), np.asarray(view.variance, np.float64), 0.0
    for row in range(len(images)):
        scale = np.sqrt(variance[row] / 2)
        parts = [
            np.concatenate([x.real / scale, x.imag / scale]) for x in (images[row], mean[row], first[row], second[row])
        ]
        off, loading = parts[0] - parts[1], np.stack(parts[2:] - parts[1], axis=1)
        covariance = np.eye(len(off)) + loading @ loading.T
        total += -0.5 * off @ np.linalg.solve(covariance, off) - 0.5 * np.linalg.slogdet(covariance)[1]
        total += np.sum(np.abs(images[row]) ** 2 - np.log(variance[row]))
    return total


@pytest.mark.slow
def test_the_bound_of_a_gaussian_family_is_its_evidence():
    """No latent is left to a guide; with the maps given, what is reported is log p(images | maps) + log p(maps)."""
    data = simulated(n=12, size=8, pixel=24.0, snr=0.5)
    task = problem(data.particles.with_holdout(0.0), Subspace(dims=2))
    sites = {name: site for name, site in task.sites.items() if site["type"] == "sample"}
    rng = np.random.default_rng(0)
    given = {name: jnp.asarray(rng.normal(size=site["value"].shape), jnp.float32) for name, site in sites.items()}
    task = dataclasses.replace(task, given=given)
    engine = SVI(guide=Point(), batch_size=None, iterations=1, optimiser=optax.sgd(0.0))
    result = run(engine, task, key=jax.random.key(0))
    assert engine._machine(task)[0].latents is None
    shared = engine.draw(jax.random.key(1), task, result.state)
    prior = sum(float(-0.5 * np.sum(v**2) - 0.5 * v.size * np.log(2 * np.pi)) for v in given.values())
    expected = (dense_evidence(task, shared) + prior) / task.size
    assert abs(result.trace[-1]["objective"] / expected - 1) < 1e-5
