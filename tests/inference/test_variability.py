"""3DVA: least squares is the subspace without prior and posterior covariance; eigenvalues lose their errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.errors import UsageError
from hetmodels.families import Classes, Subspace
from hetmodels.local import design_moments
from hetmodels.observation import Contrast, Outliers
from inference import EM, Variability, fit
from inference.variability import least_squares

DIMS, ROWS, PIXELS = 2, 6, 20


class Flat:
    """A Gaussian latent whose prior says nothing."""

    def latent_covariance(self, shared):
        return 1e9 * jnp.eye(DIMS)


def test_it_is_the_subspace_with_no_posterior_covariance_and_a_flat_prior():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 1 + DIMS, PIXELS))
    y = x[:, 0] + rng.normal(size=(ROWS, PIXELS))
    h, gram = np.einsum("np,nlp->nl", y, x), 0.5 * np.einsum("nlp,nmp->nlm", x, x)
    with jax.enable_x64(True):
        b, error = jax.jit(lambda *known: least_squares(*known, None))(h, gram)
        full = jax.jit(lambda *known: design_moments(Flat(), {}, *known, None))(h, gram)
        scaled, own = jax.jit(lambda *known: least_squares(*known, Contrast(0.2)))(h, gram)
    np.testing.assert_allclose(b[:, 1:], full.mean, rtol=1e-5, atol=1e-6)
    second = np.asarray(full.second).copy()
    second[:, 1:, 1:] -= full.covariance
    np.testing.assert_allclose(b[:, :, None] * b[:, None, :], second, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(error[:, 1:, 1:], full.covariance, rtol=1e-5)
    for row in range(ROWS):  # with a free scale, ordinary least squares on the mean and the components
        expected = np.linalg.lstsq(x[row].T, y[row])[0]
        np.testing.assert_allclose(scaled[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own[row], np.linalg.inv(x[row] @ x[row].T), rtol=1e-5)
    assert not error[:, 0].any()


@pytest.fixture(scope="module")
def measured():
    """One pass over images of a subspace of one component whose latent has twice the power of its error, s = 2."""
    base = simulated(n=300, size=8, snr=0.3, states=2, seed=1)
    task, key = problem(base.particles, Subspace(dims=1)), jax.random.key(0)
    maps = jnp.asarray(base.truth, jnp.float32)
    shared = task.starting(key) | {"map": maps.mean(0), "components": maps[:1] - maps.mean(0)}
    task = dataclasses.replace(task, start=shared)
    engine, batch = Variability(batch_size=300), task.whole()
    begun = engine.init(key, task)

    @jax.jit
    def images(key, strength):
        return task.simulate(key, shared | {"components": begun.maps[1:] * strength}, batch)[0]

    state, _ = engine.step(key, task, begun, images(key, 0.0))
    strength = float(np.sqrt(2 * state.spread.error[1, 1] / state.spread.particles))
    state = begun
    for number in range(30):
        state, _ = engine.step(key, task, state, images(jax.random.key(number), strength))
    return engine, task, state, strength**2


def test_eigenvalues_lose_their_errors(measured):
    engine, task, state, truth = measured
    done, report = engine.sweep(jax.random.key(0), task, state)
    raw, corrected = report["eigenvalues_raw"][0], report["eigenvalues"][0]
    assert corrected == pytest.approx(truth, rel=0.05), (raw / truth, corrected / truth)
    assert raw > 1.3 * truth, (raw / truth, corrected / truth)
    shared = engine.draw(jax.random.key(0), task, done)
    power = float((np.asarray(shared["components"], float) ** 2).sum())
    assert power == pytest.approx(corrected, rel=1e-3)


def test_filters_come_before_the_basis_is_made_orthonormal(measured):
    engine, task, state, _ = measured
    narrow = dataclasses.replace(engine, low_pass=60.0, high_pass=50.0)
    done, _ = narrow.sweep(jax.random.key(0), task, state)
    solved, mean = (np.asarray(narrow.solved(task, state)[one], np.float64) for one in (1, 0))
    line = np.fft.fftfreq(8, 1 / 8)
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    k = np.rint(radius) / 96  # box of 96 Å
    gain = np.sqrt(1 - 1 / (1 + (50 * k) ** 16)) / np.sqrt(1 + (60 * k) ** 3) * (radius <= 3)
    expected = np.fft.ifftn(np.fft.fftn(solved) * gain).real
    expected -= (expected * mean).sum() / (mean**2).sum() * mean  # no contrast is modelled
    expected /= np.linalg.norm(expected)
    found = np.asarray(done.maps[1], np.float64)
    np.testing.assert_allclose(found * np.sign((found * expected).sum()), expected, atol=1e-4)
    assert np.array_equal(np.asarray(done.maps[0]), np.asarray(state.maps[0]))  # the mean map stays


def test_what_does_not_fit_is_refused():
    assert Variability.lacks(Subspace()) is None
    assert "latent_covariance" in Variability.lacks(Classes)
    assert "2 Gaussians" in Variability.lacks(Subspace(mixture=2))
    with pytest.raises(ValueError, match="positive"):
        Variability(low_pass=0.0)
    base = simulated(n=20, size=8)
    with pytest.raises(UsageError, match="junk"):
        Variability().init(jax.random.key(0), problem(base.particles, Subspace(dims=1), outliers=Outliers()))


@pytest.mark.slow
def test_the_motion_is_found_and_em_is_ahead_on_held_out_images():
    """On the swing of an arm the first component is found; the model with a posterior predicts better, or no worse."""
    made = simulated(n=1500, size=16, snr=0.3, states=7, seed=1)
    mean = made.truth.mean(0)
    _, deviations, directions = np.linalg.svd((made.truth - mean).reshape(7, -1), full_matrices=False)
    rival = fit(Subspace(dims=2), made.particles, Variability(low_pass=30.0), key=jax.random.key(0))
    ours = fit(Subspace(dims=2), made.particles, EM(iterations=25), key=jax.random.key(0))
    found = rival.shared["components"][0, 0].reshape(2, -1)
    strength = np.linalg.norm(found, axis=1)
    assert np.abs(found[0] / strength[0] @ directions[0]) > 0.85
    raw, corrected = (rival.extra[name][0] for name in ("eigenvalues_raw", "eigenvalues"))
    truth = deviations[0] ** 2 / 7
    assert abs(corrected / truth - 1) < abs(raw / truth - 1)
    held = ours.local["held_out"].astype(bool)
    gain = (ours.local["log_evidence"] - rival.local["log_evidence"])[held]
    assert gain.mean() > -2 * gain.std() / np.sqrt(len(gain)), (gain.mean(), gain.std())
