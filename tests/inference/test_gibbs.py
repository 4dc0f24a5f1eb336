"""Gibbs sampling between exact blocks: each block has its law on dense problems, and so have the chains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.errors import UsageError
from hetmodels.families import Classes, Subspace
from hetmodels.imaging.poses import Support
from hetmodels.model import Observed, image_ratio, render
from hetmodels.observation import Contrast, FixedNoise, Outliers, Unknown
from inference.engine import run
from inference.gibbs import LinearGibbs, draw_latents, perturb_and_solve
from inference.mcmc import MCMC
from inference.testing import map_posterior


def test_perturb_and_solve_has_the_exact_law():
    """Mean and covariance of a dense problem in 12 unknowns."""
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(30, 4, 12)) + 1j * rng.normal(size=(30, 4, 12))) * np.geomspace(0.05, 1, 12)
    variance, weight = rng.uniform(0.5, 2, (30, 4)), (np.arange(30) < 25).astype(float)
    y = rng.normal(size=(30, 4)) + 1j * rng.normal(size=(30, 4))
    scale = 2 * weight[:, None] / variance
    precision = np.eye(12) + np.einsum("bm,bmi,bmj->ij", scale, matrix.conj(), matrix).real
    mean = np.linalg.solve(precision, np.einsum("bm,bmi,bm->i", scale, matrix.conj(), y).real)
    dense = jnp.asarray(matrix, jnp.complex64)
    data = jnp.asarray(y, jnp.complex64), jnp.asarray(variance, jnp.float32), jnp.asarray(weight, jnp.float32)
    draw = lambda key: perturb_and_solve(key, lambda u: dense @ u, jnp.zeros(12), data, LinearGibbs())  # noqa: E731
    draws, residual = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
    white = (np.asarray(draws, float) - mean) @ np.linalg.cholesky(precision)
    assert np.abs(white.mean(0)).max() < 4 / np.sqrt(4000)
    assert np.abs(white.T @ white / 4000 - np.eye(12)).max() < 5 * np.sqrt(2 / 4000)
    assert float(residual.max()) < 2e-4


@pytest.fixture(scope="module")
def classes():
    data = simulated(n=6, size=12, pixel=12.0, snr=0.05, states=2)
    task = problem(data.particles.with_holdout(0.0), Classes(classes=2), contrast=Contrast(), noise=FixedNoise())
    shared = {"maps": jnp.asarray(data.truth, jnp.float32), "weights": jnp.array([0.3, 0.7])}
    return task, shared | {"maps_tau2": jnp.ones(6), "noise": jnp.ones((1, task.observation.disc.shells))}


def test_class_and_pose_are_drawn_jointly(classes):
    """Frequencies of the draws are the probabilities of each (class, pose) as images are seen one by one."""
    task, shared = classes
    batch = task.batch(np.arange(4))
    turned = jnp.stack([batch.rotation, jnp.roll(batch.rotation, 1, 0)], axis=1)
    shifts = jnp.stack([batch.shift, batch.shift + 6.0], axis=1)
    poses = Support(turned, shifts, jnp.log(jnp.array([[0.4, 0.6]] * 4)))
    expected = np.zeros((4, 2, 2))
    for p in range(2):
        placed = dataclasses.replace(batch, rotation=turned[:, p], shift=shifts[:, p])
        seen = Observed(placed, task.observation, shared["noise"], None)
        for k in range(2):
            ratio = image_ratio(seen, render(task.family.volume(shared, k), seen, {}))
            expected[:, p, k] = ratio + poses.log_prior[:, p] + jnp.log(shared["weights"][k])
    expected = np.exp(expected - expected.max((1, 2), keepdims=True))
    expected /= expected.sum((1, 2), keepdims=True)
    full = dataclasses.replace(batch, poses=poses)
    draw = lambda key: draw_latents(key, task.family, shared, full, task.observation)  # noqa: E731
    _, node, placed = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 3000))
    second = np.asarray(jnp.abs(placed.shift - batch.shift).sum(-1) > 1)
    for p in range(2):
        for k in range(2):
            share = ((second == p) & (np.asarray(node) == k)).mean(0)
            assert np.abs(share - expected[:, p, k]).max() < 4 * 0.5 / np.sqrt(3000)
    assert (expected > 0.03).all((1, 2)).any()


def test_what_it_cannot_draw_is_refused(classes):
    task = classes[0]
    with pytest.raises(UsageError, match="neither junk"):
        LinearGibbs().bind_problem(problem(task.particles, Classes(classes=2), outliers=Outliers()), 0)
    searched = problem(task.particles, Classes(classes=2), pose=Unknown().framed(12.0))
    with pytest.raises(UsageError, match="search_every=1"):
        LinearGibbs().bind_problem(searched, 0)
    with pytest.raises(UsageError, match="Gaussian latent's contrast"):
        LinearGibbs().bind_problem(problem(task.particles, Subspace(dims=1), contrast=Contrast()), 0)


@pytest.mark.slow
def test_a_map_is_drawn_independently():
    """Without latents every sweep is an independent draw of the closed-form posterior."""
    task, mean, sd = map_posterior(jax.random.key(0))
    engine = MCMC(draws=500, warmup=1, chains=2, block=100, kernel=LinearGibbs())
    result = run(engine, task, key=jax.random.key(1))
    flat = result.draws["map"].reshape(-1, *mean.shape)
    assert np.sqrt(np.mean(((flat.mean(0) - mean) / sd) ** 2)) < 1.3 / np.sqrt(1000)
    assert abs(np.mean(flat.std(0) / sd) - 1) < 0.01
    assert not result.stats["diverging"].any()
