"""The covariance at all resolutions: columns without bias, and the moments engine on simulated motion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.analysis.metrics import latent_spearman
from hetmodels.families import Subspace
from hetmodels.imaging.grids import phase_ramp
from hetmodels.local import component_lattice
from inference import EM, Moments
from inference.columns import DirectionSums
from inference.covariance import View, residuals
from inference.engine import run
from inference.subspace_start import leading_components, spectra_of

SIZE, DIMS = 16, 2


@pytest.fixture(scope="module")
def swing():
    """Seven states of a swinging arm, the problem, and the answer of the moments engine."""
    made = simulated(n=4000, size=SIZE, snr=0.3, states=7, seed=1)
    task = problem(made.particles, Subspace(dims=DIMS))
    engine = Moments()
    result = run(engine, task, key=jax.random.key(0))
    return made, task, engine.draw(jax.random.key(0), task, result.state)


def directions(truth):
    """Standard deviations along the principal directions of the true maps, and the directions."""
    flat = (truth - truth.mean(0)).reshape(len(truth), -1)
    _, spread, axes = np.linalg.svd(flat, full_matrices=False)
    return spread / np.sqrt(len(truth)), axes


def posed_images(task, batch, view, table, d, noise):
    """The batch with images whose whitened residuals are d."""
    obs = task.observation
    sd = np.sqrt(np.asarray(obs.pixel_variance(noise, batch.group)))
    empty = dataclasses.replace(batch, images=jnp.zeros_like(batch.images))
    mean = -np.asarray(residuals(view, table, noise, empty)[0])
    images = jnp.asarray((d + mean) * sd, jnp.complex64)
    return dataclasses.replace(batch, images=images * phase_ramp(obs.disc.grid(obs.spacing).points, batch.shift))


@pytest.mark.slow
def test_columns_of_noise_alone_have_mean_zero_and_those_of_motion_are_the_maps(swing):
    """The right side of the equations: without motion it vanishes within its error, with z ~ N(0, 1) it is left * C."""
    made, task, shared = swing
    obs, lattice = task.observation, component_lattice(task.family)
    low, full = View(obs, lattice, 4), View(obs, lattice, obs.disc.shells - 1)
    mean, maps = shared["map"], shared["components"]
    table = lattice.table(jnp.concatenate([mean[None], maps]))
    batch, noise, rng = task.batch(np.arange(500)), shared["noise"], np.random.default_rng(0)
    slices = np.asarray(residuals(full, table, noise, batch)[2])

    def right_side(motion):
        noisy = rng.normal(size=(2, *slices.shape[:2])) / np.sqrt(2)
        z = rng.normal(size=(len(slices), DIMS)) * motion
        d = np.einsum("bml,bl->bm", slices, z) + noisy[0] + 1j * noisy[1]
        sums = DirectionSums(low, full, DIMS)
        sums.add(table, noise, posed_images(task, batch, full, table, d, noise))
        columns = np.asarray(sums.total).reshape(lattice.rows, -1)
        return np.asarray(lattice.adjoint(jnp.asarray(columns[:, : 2 * DIMS], jnp.float32))).reshape(DIMS, -1)

    onto = np.asarray(maps).reshape(DIMS, -1)
    still = np.array([right_side(0.0) @ onto.T for _ in range(30)])
    moved = np.array([right_side(1.0) @ onto.T for _ in range(30)])
    error = still.std(0, ddof=1) / np.sqrt(30)
    assert np.all(np.abs(still.mean(0)) < 4 * error)
    assert np.all(np.diag(moved.mean(0)) > 20 * np.diag(error))


def test_the_moments_engine_finds_the_motion(swing):
    made, task, shared = swing
    spread, axes = directions(made.truth)
    found = np.asarray(shared["components"], float).reshape(DIMS, -1)
    cosine = np.abs(found[0] @ axes[0]) / np.linalg.norm(found[0])
    assert cosine > 0.93, cosine
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), spread[:DIMS], rtol=0.2)
    batch = task.batch(np.arange(len(made.particles)))
    infer = jax.jit(task.infer)
    ours = latent_spearman(made.states.astype(float), np.asarray(infer(jax.random.key(0), shared, batch).mean))
    true = shared | {
        "map": jnp.asarray(made.truth.mean(0), jnp.float32),
        "components": jnp.asarray((spread[:DIMS, None] * axes[:DIMS]).reshape(DIMS, *[SIZE] * 3), jnp.float32),
    }
    best = latent_spearman(made.states.astype(float), np.asarray(infer(jax.random.key(0), true, batch).mean))
    assert ours > 0.97 * best, (ours, best)


def test_em_rises_from_the_moment_solution(swing):
    _, task, shared = swing
    start = {name: shared[name] for name in ("map", "components", "map_tau2", "components_tau2", "noise")}
    engine = EM(iterations=8, tolerance=-1.0, mixture_tolerance=-1.0)
    trace = run(engine, dataclasses.replace(task, start=start), key=jax.random.key(0)).trace
    value = np.array([row["objective"] for row in trace])
    assert np.all(np.diff(value) > -1e-4 * np.abs(value[1:])), value
    assert value[-1] > value[0]


@pytest.mark.slow
def test_all_resolutions_hold_more_of_the_motion_than_the_lowest(swing):
    made, task, shared = swing
    _, axes = directions(made.truth)
    low = np.asarray(leading_components(task, shared["map"], shared["noise"], DIMS, 500), float).reshape(DIMS, -1)
    full = np.asarray(shared["components"], float).reshape(DIMS, -1)
    held = [np.abs(one[0] @ axes[0]) / np.linalg.norm(one[0]) for one in (low, full)]
    assert held[1] > held[0] - 0.01, held


def test_spectra_of_components_have_a_floor():
    maps = jnp.zeros((2, 8, 8, 8)).at[0].set(jax.random.normal(jax.random.key(0), (8, 8, 8)))
    found = np.asarray(spectra_of(maps, jnp.ones((2, 4))))
    assert found.shape == (2, 4) and (found >= 1e-3 - 1e-9).all() and found[0, 2] > 0.01
