"""Laws of EM on the subspace: monotone to rounding, its step is the gradient, its latents are calibrated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from simulated import problem, simulated
from test_em import FIXED, Double

from hetmodels.families import Subspace
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.local import collapsed_ratio, component_lattice, mixing_pairs
from hetmodels.observation import Contrast
from inference import EM
from inference.engine import run
from inference.expectation import Mode, expect, look

DIMS = 2


def begun(n=150, seed=1, contrast=None, **choices):
    """A small problem that starts at a mean map and at two components that are only roughly right."""
    made = simulated(n=n, states=3, snr=0.3, seed=seed, contrast_sd=0.1 if contrast else 0.0, **choices)
    task = problem(made.particles, Subspace(dims=DIMS), contrast=contrast)
    shared = task.starting(jax.random.key(0))
    ball = Ball(made.particles.size)
    rough = ball.colour(jax.random.normal(jax.random.key(1), (2, ball.coordinates)), 0.02 * shared["map_tau2"])
    maps = jnp.asarray(np.stack([made.truth[2] - made.truth[0], made.truth[1] - made.truth.mean(0)]), jnp.float32)
    maps = ball.filter(maps, jnp.ones(ball.shells)) + rough
    mean = ball.filter(jnp.asarray(made.truth.mean(0), jnp.float32), jnp.ones(ball.shells))
    return made, dataclasses.replace(task, start=dict(shared) | {"map": mean, "components": maps})


@pytest.mark.parametrize(
    "contrast", [pytest.param(None, marks=pytest.mark.slow), Contrast(0.2)], ids=["contrast fixed", "contrast"]
)
def test_the_log_posterior_never_falls(contrast):
    """T5: 40 passes in double precision, spectra and noise fixed."""
    _, task = begun(contrast=contrast)
    with jax.enable_x64(True):
        task = dataclasses.replace(task, start={n: jnp.asarray(np.asarray(v, float)) for n, v in task.start.items()})
        engine = EM(iterations=40, solver_steps=2, **FIXED)
        trace = run(engine, Double(task), key=jax.random.key(0)).trace
    value = np.array([row["objective"] for row in trace])
    assert len(value) == 40 and value[-1] > value[0]
    assert np.all(np.diff(value) >= -1e-8 * np.abs(value[1:]))


def test_the_back_projected_residual_is_the_gradient():
    """T9: what the E-step back-projects is d log p / d maps, by automatic differentiation and finite differences."""
    _, task = begun(n=40, contrast=Contrast(0.2))
    with jax.enable_x64(True):
        batch = Double(task).batches(0, jax.random.key(0), 40)
        batch, family, obs = next(iter(batch)), task.family, task.observation
        shared = {name: jnp.asarray(np.asarray(v), jnp.float64) for name, v in task.starting(jax.random.key(0)).items()}
        maps, lattice = family.components(shared), component_lattice(family)

        def total(maps):
            now = shared | {"map": maps[0], "components": maps[1:]}
            return (batch.weight * collapsed_ratio(family, now, batch, obs, shared["noise"], None)).sum()

        total_ = jax.jit(total)
        slope = jax.jit(jax.grad(total))(maps)
        mode = Mode(obs, lattice, False, "posterior", mixing_pairs(family, shared))
        cells, images, slices = look(mode, lattice.table(maps), batch)
        values, _ = expect(
            mode, family, (shared, shared["noise"], None), batch, (cells.sign, images, slices), 1.0, jax.random.key(0)
        )
        count = 2 * len(maps)
        sums = accumulate.add(lattice, np.zeros((lattice.rows, count)), cells, values[..., :count])
        found = lattice.adjoint(jnp.asarray(sums))
        assert np.abs(found - slope).max() < 1e-8 * np.abs(slope).max()
        for number in range(20):
            way = jax.random.normal(jax.random.key(number), maps.shape) * 1e-6 * jnp.abs(maps).max()
            rise = (total_(maps + way) - total_(maps - way)) / 2
            assert float(rise) == pytest.approx(float(jnp.vdot(slope, way)), rel=1e-5, abs=1e-9)


@pytest.mark.slow
def test_regions_of_fitted_latents_hold_the_truth():
    """5,000 images drawn from a subspace; the fitted model's 90 % regions, turned to the true coordinates."""
    made = simulated(n=5000, size=16, snr=0.2, states=3, seed=2)
    task = problem(made.particles.with_holdout(0.0), Subspace(dims=DIMS))
    shared = dict(task.starting(jax.random.key(0)))
    maps = np.stack([made.truth[2] - made.truth[0], made.truth[1] - made.truth.mean(0)])
    shared |= {"map": jnp.asarray(made.truth.mean(0), jnp.float32), "components": jnp.asarray(maps, jnp.float32)}
    drawn, z, _ = task.simulate(jax.random.key(1), shared, task.batch(np.arange(5000)))
    p = made.particles
    particles = type(p).from_arrays(_unwhitened(p, drawn.images), p.rotation, p.shift, p.ctf, p.spacing)
    task = problem(particles.with_holdout(0.0), Subspace(dims=DIMS))
    engine = EM(iterations=60)
    fitted = engine.draw(jax.random.key(0), task, run(engine, task, key=jax.random.key(2)).state)
    local = jax.jit(task.infer)(jax.random.key(3), fitted, task.batch(np.arange(5000)))
    mean, spread, true = np.asarray(local.mean, float), np.asarray(local.covariance, float), np.asarray(z, float)
    flat = [np.asarray(s["components"], float).reshape(DIMS, -1) for s in (shared, fitted)]
    turn = np.linalg.lstsq(flat[1].T, flat[0].T, rcond=None)[0]  # true components in fitted ones
    off = true @ turn.T - mean
    distance = np.einsum("bi,bij,bj->b", off, np.linalg.inv(spread), off)
    inside = np.mean(distance < scipy.stats.chi2.ppf(0.9, DIMS))
    assert 0.88 <= inside <= 0.92, inside


def _unwhitened(particles, images):
    """Images in real space from coefficients over the reference spectrum's standard deviation."""
    disc = particles.disc
    scale = np.sqrt(np.asarray(particles.reference))[0][disc.shell]
    return np.asarray(disc.inverse(images * scale), np.float32)
