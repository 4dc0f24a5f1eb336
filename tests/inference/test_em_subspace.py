"""EM on the subspace: motion is found, latents are calibrated, the objective never falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from simulated import problem, simulated

from hetmodels.errors import UsageError
from hetmodels.families import Subspace
from hetmodels.observation import Contrast
from inference import EM, MAP, fit
from inference.updates import expanded

SIZE = 16


@pytest.fixture(scope="module")
def swing():
    """Seven states of a swinging arm; their mean, and the directions and deviations of their spread."""
    made = simulated(n=1500, size=SIZE, snr=0.3, states=7, seed=1)
    mean = made.truth.mean(0)
    _, deviations, directions = np.linalg.svd((made.truth - mean).reshape(7, -1), full_matrices=False)
    return made, mean, deviations / np.sqrt(7), directions


@pytest.fixture(scope="module")
def fitted(swing):
    return fit(Subspace(dims=2), swing[0].particles, EM(iterations=25), key=jax.random.key(0))


def test_em_finds_the_motion_and_never_falls(swing, fitted):
    made, mean, deviations, directions = swing
    rows = [row["objective"] for row in fitted.trace]
    assert all(b >= a - 1e-4 * abs(a) for a, b in zip(rows, rows[1:], strict=False)), rows
    found = fitted.shared["components"][0, 0].reshape(2, -1)
    strength = np.linalg.norm(found, axis=1)
    cosine = np.abs(found[0] / strength[0] @ directions[0])
    assert cosine > 0.93, cosine
    assert strength[0] == pytest.approx(deviations[0], rel=0.15)
    latent = fitted.local["mean"][:, 0]
    order = np.abs(np.corrcoef(np.argsort(np.argsort(latent)), made.states)[0, 1])
    assert order > 0.85, order


def test_latents_are_calibrated_where_the_maps_are_true(fitted, swing):
    """Images drawn from the model itself: (z - mean) S^-1 (z - mean) is chi-squared with two degrees of freedom."""
    prob = problem(swing[0].particles, Subspace(dims=2), contrast=Contrast(0.2))
    shared = {name: jnp.asarray(value[0, 0]) for name, value in fitted.shared.items()}
    found = []
    for round_ in range(3):
        batch, z, _ = prob.simulate(jax.random.key(round_), shared, prob.whole())
        local = jax.jit(prob.infer)(jax.random.key(0), shared, batch)
        apart = np.asarray(z, np.float64) - np.asarray(local.mean, np.float64)
        found.append(np.einsum("bi,bij,bj->b", apart, np.linalg.inv(np.asarray(local.covariance, np.float64)), apart))
    distance = np.concatenate(found)  # 4,050 particles: two standard errors of a level of 0.9 are 0.0094
    for level in (0.5, 0.9):
        assert (distance < chi2.ppf(level, 2)).mean() == pytest.approx(level, abs=0.02)


@pytest.mark.slow
def test_map_finds_no_better_map_than_em(swing, fitted):
    """Gradients on the same collapsed density, started at EM's answer with its spectra given, stay there."""
    made = swing[0]
    again = fit(Subspace(dims=2), made.particles, MAP(iterations=40, learning_rate=1e-3), key=jax.random.key(1),
                start=fitted, given=fitted)  # fmt: skip
    a, b = (p.shared["components"][0, 0].reshape(2, -1) for p in (fitted, again))
    assert np.linalg.norm(a.T @ a - b.T @ b) < 0.1 * np.linalg.norm(a.T @ a)


def test_half_sets_are_refused(swing):
    made = swing[0]
    with pytest.raises(UsageError, match="halves"):
        fit(Subspace(dims=1), made.particles, EM(), key=jax.random.key(0), halves=True)


@pytest.mark.slow
def test_a_start_from_the_mean_map_gets_components(swing):
    made, mean, _, directions = swing
    result = fit(Subspace(dims=1), made.particles, EM(iterations=6), key=jax.random.key(0), start=mean[None])
    found = result.shared["components"][0, 0].ravel()
    assert np.abs(found / np.linalg.norm(found) @ directions[0]) > 0.85


def test_the_expansion_keeps_the_distribution_that_the_latents_were_found_to_have():
    """V_0 + sum z_j V_j with z of the found moments, and the new maps with z ~ N(0, I): same mean and covariance."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(1, 4, 2, 2, 2))
    z = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + rng.normal(size=3)
    one = np.concatenate([np.ones((500, 1)), z], axis=1)
    new, spectra = expanded(jnp.asarray(maps, jnp.float32), jnp.ones((4, 2)), one.T @ one)
    flat, fresh = maps[0].reshape(4, -1), np.asarray(new[0], np.float64).reshape(4, -1)
    drawn = one @ flat
    np.testing.assert_allclose(fresh[0], drawn.mean(0), atol=1e-4)
    np.testing.assert_allclose(fresh[1:].T @ fresh[1:], np.cov(drawn.T, bias=True), atol=1e-3)
    moments = np.cov(z.T, bias=True)
    np.testing.assert_allclose(spectra[1:].sum(0), np.trace(moments), rtol=1e-4)
